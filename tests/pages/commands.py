"""Holds shell commands of pages against what would carry them out, without carrying them out."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.util import find_spec

import typer
from click import ClickException, Context, Group

from fullfed.cli import app
from pages.blocks import ROOT

# What pages ask of a shell besides.
PLAIN = {".", "cat", "echo", "head", "split"}
_ENDS = {"|", "&&", ";"}
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def commands_in(text: str) -> list[list[str]]:
    """The words of each command: without comments, variables that are set, and redirections."""
    found: list[list[str]] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = list(_words(line))
        while words and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        command: list[str] = []
        for word in [*words, ";"]:
            if word in _ENDS:
                found += [command] if command else []
                command = []
            else:
                command.append(word)
    return found


def _words(line: str) -> list[str]:
    # What is in brackets may be left out, and is held to be there.
    plain = re.sub(r"\s\[(-[^\]]*)\]", r" \1", line)
    words, kept = shlex.split(plain, comments=True), list[str]()
    for n, word in enumerate(words):
        if word not in ("<", ">") and (n == 0 or words[n - 1] not in ("<", ">")):
            kept.append(word)
    return kept


def fault_of(command: list[str]) -> str:
    """What would be wrong with a command; "" if nothing is."""
    name, *arguments = command
    name = name.removeprefix(".venv/bin/")
    if name == "fullfed":
        return _fault_of_ours(arguments)
    if name == "make":
        makefile = (ROOT / "Makefile").read_text()
        unknown = [t for t in arguments if not re.search(rf"^{re.escape(t)}:", makefile, re.M)]
        return f"there is no target {unknown[0]}" if unknown else ""
    if name in ("python", "python3"):
        return _fault_of_python(arguments)
    if name == "pip":
        return _fault_of_pip(arguments)
    return "" if name in PLAIN else f"{name}: no test knows this command"


def _fault_of_ours(arguments: list[str]) -> str:
    """By the command line's own parser, which does not look whether files are there."""
    command, context = typer.main.get_command(app), None
    # Names in capitals stand for anything; where a number is due, for one.
    words = ["1" if word == "ROUND" else word for word in arguments]
    try:
        while isinstance(command, Group):
            context = Context(command, parent=context, info_name=command.name)
            if not words or words[0] not in command.commands:
                return f"there is no command {' '.join(words[:1])}"
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words, parent=context)
    except ClickException as error:
        return error.format_message()
    return ""


def _fault_of_python(arguments: list[str]) -> str:
    if arguments[0] == "-m":
        return "" if find_spec(arguments[1]) else f"there is no module {arguments[1]}"
    file = ROOT / arguments[0]
    if not file.exists():
        return f"there is no file {arguments[0]}"
    source = file.read_text()
    flags = [word for word in arguments[1:] if word.startswith("-")]
    unknown = [flag for flag in flags if f'"{flag}"' not in source]
    return f"{arguments[0]} has no {unknown[0]}" if unknown else ""


def _fault_of_pip(arguments: list[str]) -> str:
    if arguments[0] not in ("install", "download"):
        return f"pip {arguments[0]}: no test knows this command"
    for word in arguments[1:]:
        ours = re.fullmatch(r"(?:fullfed|\.)\[([\w,-]+)\]", word)
        for extra in ours[1].split(",") if ours else ():
            if extra not in _PROJECT["optional-dependencies"]:
                return f"there is no extra {extra}"
        if word.endswith(".txt") and not (ROOT / word).exists():
            return f"there is no file {word}"
    return ""
