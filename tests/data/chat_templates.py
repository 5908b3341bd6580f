"""Chat templates as published models have them, shortened to what a plain conversation uses.

Each comes with the special tokens that its tokenizer has, and those that it has as ordinary added
tokens; the first special one is the end of sequence, "<s>" the beginning.
"""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast


class Kind(NamedTuple):
    """A template, its tokens, and the end of turn and opening that it must be found to have."""

    template: str
    special: tuple[str, ...]
    end: str
    opening: str = ""
    added: tuple[str, ...] = ()
    rstrip: bool = False  # the special tokens take the white space after them
    pieces: str = "bytes"  # or "first", "every": as SentencePiece, a space before the text or parts


CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + \
message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}\
{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA_2 = """{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 \
== 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}{% else %}\
{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
LLAMA_3 = """{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}\
{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}{%- endif %}\
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}{{- "Today Date: " + date_string + "\n\n" }}\
{{- "<|eot_id|>" }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + \
'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\
{%- endif %}"""
GEMMA = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'assistant') %}\
{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""
MISTRAL = """{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'user' %}\
{{- '[INST] ' + message['content'] + '[/INST]' }}{%- else %}\
{{- ' ' + message['content'] + eos_token}}{%- endif %}{%- endfor %}"""
PHI_3 = """{% for message in messages %}{{'<|' + message['role'] + '|>\n' + message['content'] + \
'<|end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}\
{{ eos_token }}{% endif %}"""
QWEN_2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + \
message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
QWEN_3 = """{%- for message in messages %}{%- if message.role == "user" %}\
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}\
{%- else %}{%- set content = message.content %}{%- set thoughts = '' %}\
{%- if '</think>' in content %}\
{%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}\
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}\
{{- '<|im_start|>' + message.role + '\n<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + \
content.lstrip('\n') }}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
ZEPHYR = """{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + \
message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n\
{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n\
{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"""
DEEPSEEK_R1 = """{{ bos_token }}{%- for message in messages %}{%- if message['role'] == 'user' %}\
{{- '<｜User｜>' + message['content'] -}}{%- else %}{%- set content = message['content'] -%}\
{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' -}}{%- endif %}{%- endfor %}\
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"""
SMOLLM_2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are named SmolLM.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + \
message['role'] + '\n'}}{% generation %}{{ message['content'] + '<|im_end|>' }}\
{% endgeneration %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|im_start|>assistant\n' }}{% endif %}"""
HARMONY = """{%- for message in messages %}{%- if message.role == 'user' %}\
{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}{%- else %}\
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}\
{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""
VICUNA = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}\
{{ 'USER: ' + message['content'] + ' ' }}{% else %}{{ 'ASSISTANT: ' + message['content'] + \
eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
BARE = """{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}\
{% if add_generation_prompt %}[assistant] {% endif %}"""

TOOLS = """{%- if tools %}{{- '<|im_start|>system\n' }}{%- if messages[0].role == 'system' %}\
{{- messages[0].content + '\n\n' }}{%- endif %}{{- '# Tools\n<tools>' }}{%- for tool in tools %}\
{{- '\n' + tool | tojson }}{%- endfor %}{{- '\n</tools><|im_end|>\n' }}{%- endif %}\
{%- for m in messages %}{%- if not (tools and loop.first and m.role == 'system') %}\
{%- if m.role == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + m.content + \
'\n</tool_response><|im_end|>\n' }}{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content }}\
{%- for call in m.tool_calls or [] %}{{- '\n<tool_call>\n' + call.function | tojson + \
'\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

_IM = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
KINDS = {
    "ChatML": Kind(CHATML, _IM, "<|im_end|>"),
    "ChatML, its tokens ordinary ones": Kind(CHATML, ("</s>",), "<|im_end|>", added=_IM),
    "ChatML, its tokens unknown": Kind(CHATML, ("</s>",), "</s>"),
    "Llama 2": Kind(LLAMA_2, ("</s>", "<s>"), "</s>", pieces="every"),
    "Llama 3": Kind(
        LLAMA_3,
        ("<|end_of_text|>", "<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "Gemma": Kind(
        GEMMA, ("<eos>", "<s>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", pieces="first"
    ),
    "Mistral": Kind(MISTRAL, ("</s>", "<s>", "[INST]", "[/INST]"), "</s>", pieces="first"),
    "Phi 3": Kind(
        PHI_3,
        ("<|endoftext|>", "<s>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|end|>",
        rstrip=True,
        pieces="every",
    ),
    "Qwen 2": Kind(QWEN_2, _IM, "<|im_end|>"),
    "Qwen 3": Kind(QWEN_3, _IM, "<|im_end|>", "<think>\n\n</think>", added=("<think>", "</think>")),
    "Zephyr": Kind(ZEPHYR, ("</s>", "<s>"), "</s>", pieces="every"),
    "DeepSeek R1": Kind(
        DEEPSEEK_R1,
        ("<｜end▁of▁sentence｜>", "<s>"),
        "<｜end▁of▁sentence｜>",
        added=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
    "SmolLM 2": Kind(SMOLLM_2, _IM, "<|im_end|>"),
    "gpt-oss": Kind(
        HARMONY,
        ("<|return|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>"),
        "<|return|>",
        "final",
    ),
    "Vicuna": Kind(VICUNA, ("</s>", "<s>"), "</s>", pieces="every"),
    "no end of turn": Kind(BARE, ("</s>",), "</s>"),
}

_CORPUS = [
    "Add the numbers one and two and three, and say what the answer is.",
    "You are a helpful assistant. What is the capital of France? It is Paris, the capital.",
    "user assistant system model Today Date: USER: ASSISTANT: \n\nuser\nassistant\n",
]


def make_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """A small BPE with real merges, of bytes or of characters as SentencePiece has it."""
    raw = Tokenizer(models.BPE(unk_token=None, byte_fallback=kind.pieces != "bytes"))
    alphabet = [*pre_tokenizers.ByteLevel.alphabet()]
    if kind.pieces == "bytes":
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
    else:
        alphabet = [*"▁\n", *(chr(n) for n in range(33, 127))]
        alphabet = [*alphabet, *(f"<0x{n:02X}>" for n in range(256))]
        raw.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        if kind.pieces == "first":
            raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            raw.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(Regex(" "), "▁")]
            )
    trainer = BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(_CORPUS, trainer)
    raw.add_tokens([AddedToken(t, normalized=False, special=False) for t in kind.added])
    raw.add_special_tokens(
        [AddedToken(t, normalized=False, special=True, rstrip=kind.rstrip) for t in kind.special]
    )
    bos = {"bos_token": "<s>"} if "<s>" in kind.special else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=kind.special[0], **bos)
    tokenizer.chat_template = kind.template
    return tokenizer
