"""The command ``chat``: a conversation in a terminal, or an answer to each line of a pipe."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fullfed.runs.conversation import Conversation


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

    In a terminal it is one conversation, which Ctrl-D ends. Where the input is a pipe or a file,
    each of its lines is a question of its own.
    """
    from fullfed.runs.conversation import conversations

    speakers = conversations(model, system, after_only)
    if sys.stdin.isatty():
        _talk(speakers, max_new_tokens)
    else:
        _answer_lines(speakers, max_new_tokens)


def _talk(speakers: Mapping[str, Conversation], max_new_tokens: int) -> None:
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            typer.echo()
            return
        for name, speaker in speakers.items() if question else ():
            _write(f"{name}: " if name else "")
            speaker.ask(question, max_new_tokens, _write)
            typer.echo()


def _answer_lines(speakers: Mapping[str, Conversation], max_new_tokens: int) -> None:
    """One line of output a speaker and line of input; line breaks of an answer become spaces."""
    for line in sys.stdin:
        for name, speaker in speakers.items():
            anew = copy.copy(speaker)  # whose turns do not reach the next line
            answer = anew.ask(line.strip(), max_new_tokens, lambda _: None)
            shown = _shown(" ".join(answer.split()))
            typer.echo(f"{name}: {shown}" if len(speakers) > 1 else shown)


def _write(piece: str) -> None:
    typer.echo(_shown(piece), nl=False)
    sys.stdout.flush()


def _shown(text: str) -> str:
    """The text without what could steer a terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
