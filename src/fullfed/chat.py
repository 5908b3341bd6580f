"""The command ``chat``: a conversation in a terminal, or an answer to each line of a pipe."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fullfed.runs.conversation import Conversation
    from fullfed.runs.exemplar import Exemplar

_OTHERS = 8  # instructions that are named


def chat(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run or a model.")],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="The most tokens of an answer.")
    ] = 128,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system message.")
    ] = None,
    after_only: Annotated[
        bool, typer.Option("--after-only", help="Leave a run's base model out.")
    ] = False,
) -> None:
    """Talk with a model, or with a run's model beside its base, before beside after.

    In a terminal it is one conversation, which Ctrl-D ends. Where the samples of a run have an
    input beside the instruction, it shows one of them and asks for both, each time anew. Where the
    input is a pipe or a file, each of its lines is a question of its own; a tab may stand between
    instruction and input.
    """
    from fullfed.runs.conversation import conversations
    from fullfed.runs.exemplar import exemplar_of
    from fullfed.runs.folder import RunFolder

    speakers = conversations(model, system, after_only)
    if not sys.stdin.isatty():
        _answer_lines(speakers, max_new_tokens)
        return
    exemplar = exemplar_of(RunFolder(Path(model))) if "after" in speakers else None
    with suppress(EOFError):
        if exemplar is None:
            _talk(speakers, max_new_tokens)
        else:
            _ask_as_in(exemplar, speakers, max_new_tokens)
    typer.echo()


def _talk(speakers: Mapping[str, Conversation], max_new_tokens: int) -> None:
    while True:
        question = input("> ").strip()
        for name, speaker in speakers.items() if question else ():
            _write(f"{name}: " if name else "")
            speaker.ask(question, max_new_tokens, _write)
            typer.echo()


def _ask_as_in(
    exemplar: Exemplar, speakers: Mapping[str, Conversation], max_new_tokens: int
) -> None:
    """Single requests, as the exemplar is one."""
    typer.echo(
        "A request to this model is an instruction and an input. One that it was tested on:\n"
    )
    for name, text in {"instruction": exemplar.instruction, "input": exemplar.input}.items():
        typer.echo(f"{name}: {_shown(text)}")
    for name in speakers:
        typer.echo(f"{name}: {_shown(exemplar.answers[name])}")
    if exemplar.others:
        typer.echo(f"\nOthers: {_shown(' '.join(exemplar.others[:_OTHERS]))}")
    typer.echo("\nYour turn. An empty instruction repeats the last one; Ctrl-D ends.\n")
    instruction = exemplar.instruction
    while True:
        instruction = input(f"instruction [{_shown(instruction)}]: ").strip() or instruction
        context = input("input: ").strip()
        for name, speaker in speakers.items():
            _write(f"{name}: ")
            copy.copy(speaker).ask(instruction, max_new_tokens, _write, context)
            typer.echo()
        typer.echo()


def _answer_lines(speakers: Mapping[str, Conversation], max_new_tokens: int) -> None:
    """One line of output a speaker and line of input; line breaks of an answer become spaces."""
    for line in sys.stdin:
        question, _, context = line.strip().partition("\t")
        for name, speaker in speakers.items():
            anew = copy.copy(speaker)  # whose turns do not reach the next line
            answer = anew.ask(question, max_new_tokens, lambda _: None, context)
            shown = _shown(" ".join(answer.split()))
            typer.echo(f"{name}: {shown}" if len(speakers) > 1 else shown)


def _write(piece: str) -> None:
    typer.echo(_shown(piece), nl=False)
    sys.stdout.flush()


def _shown(text: str) -> str:
    """The text without what could steer a terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
