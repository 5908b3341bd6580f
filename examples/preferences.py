"""Three shops have a model prefer short answers to long ones, by TRL's DPOTrainer at each shop."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fullfed
from fullfed.quickstart import MODEL_PATH  # of the small model that comes with fullfed

SHOPS = {"books": "the atlas", "tools": "the hammer", "music": "the violin"}
QUESTIONS = ("Is {} there?", "Do you have {}?", "Can I buy {}?", "Is {} sold out?")


def preferences(thing: str, questions: tuple[str, ...]) -> list[dict[str, str]]:
    long = f"Thank you for asking about {thing}. We will look and let you know."
    return [{"prompt": q.format(thing), "chosen": "Yes.", "rejected": long} for q in questions]


def margin(model: torch.nn.Module, tokenizer: object, pair: dict[str, str]) -> float:
    """How much likelier a token of the chosen answer is than one of the rejected, in nats."""
    losses = []
    for name in ("chosen", "rejected"):
        prompt = tokenizer(f"{pair['prompt']}\n", return_tensors="pt").input_ids
        answer = tokenizer(pair[name], return_tensors="pt", add_special_tokens=False).input_ids
        ids = torch.cat([prompt, answer], dim=1)
        labels = torch.cat([torch.full_like(prompt, -100), answer], dim=1)
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=labels).loss))
    return losses[1] - losses[0]


base, tokenizer = (
    AutoModelForCausalLM.from_pretrained(MODEL_PATH),
    AutoTokenizer.from_pretrained(MODEL_PATH),
)
run = fullfed.run(
    {
        "federation": {"rounds": 3, "clients_per_round": 3},
        "local": {"optimizer": "adamw", "learning_rate": 1e-3, "steps": 4, "batch_size": 3},
        "method": {"name": "ferret", "upload": "64KiB"},  # of a client in a round
        "trainer": {"name": "dpo", "beta": 0.1},
    },
    sys.argv[1] if len(sys.argv) > 1 else None,
    model=base,
    tokenizer=tokenizer,
    clients={shop: preferences(thing, QUESTIONS[:3]) for shop, thing in SHOPS.items()},
    test=[pair for thing in SHOPS.values() for pair in preferences(thing, QUESTIONS[3:])],
)
print(run)  # its loss is that of the chosen answers alone, which DPO lets rise
trained, _ = run.model()
for thing in SHOPS.values():
    (pair,) = preferences(thing, QUESTIONS[3:])
    print(thing, f"{margin(base, tokenizer, pair):.2f} -> {margin(trained, tokenizer, pair):.2f}")
