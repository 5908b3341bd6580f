"""What a person sees of a run: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from fullfed.errors import UserError
from fullfed.federation.inbox import Arrival
from fullfed.federation.messages import Plan, encode
from fullfed.headway import Headway
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.runs.progress import RoundLines, describe_round, progress_callbacks
from fullfed.runs.visits_table import RunProgress, VisitsTable
from runs.small import ROUNDS, recipe, write_ingredients

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ingredients(tmp_path_factory.mktemp("ingredients"))


def shown(ingredients: Path, out: Path, terminal: bool, failures: float = 0.0) -> str:
    """Everything a small run writes to its console."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=160)
    with progress_callbacks(console, out) as callbacks:
        run.start(recipe(ingredients, simulation={"failures": failures}), out, callbacks)
    return text.getvalue()


def lines_of_rounds(text: str) -> list[str]:
    return re.findall(rf"^round \d/{ROUNDS}  train loss .*$", CONTROL.sub("", text), re.M)


def test_a_file_gets_one_line_a_round_and_no_control_sequences(
    ingredients: Path, tmp_path: Path
) -> None:
    text = shown(ingredients, tmp_path / "run", terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.startswith("ferret: ")
    rounds = lines_of_rounds(text)
    assert len(rounds) == ROUNDS
    assert all(line.endswith("left") for line in rounds[:-1])
    assert len(text.splitlines()) == 1 + ROUNDS


def test_a_long_wait_is_never_silent_where_there_is_no_terminal(
    ingredients: Path, tmp_path: Path
) -> None:
    """A step takes 100 s by this clock, which stands still but for steps and samples."""
    now = [0.0]

    class Slow(run.Callback):
        def on_headway(self, version: int, headway: Headway) -> None:
            now[0] += 100.0 if headway.done else 0.0

    changes = {"federation": {"rounds": 1}, "local": {"steps": 3}, "evaluation": {"batch_size": 99}}
    text, long = io.StringIO(), recipe(ingredients, **changes)
    console = Console(file=text, width=160)
    with progress_callbacks(console, tmp_path / "run", lambda: now[0]) as callbacks:
        run.start(long, tmp_path / "run", [Slow(), *callbacks])
    number = r"[\d.,]+"
    lines = [line for line in text.getvalue().splitlines() if not line.startswith("compiling")]
    trained = rf"step (\d)/3  loss {number}  {number} tokens/s"
    expected = [
        "ferret: .*",
        rf"base model  evaluating, sample 8/8  loss {number}  {number} tokens/s",
        rf"round 1/1  \w+  {trained}  3.33 min left",  # no visit has ended yet
        rf"round 1/1  \w+  {trained}  1.67 min left",
        rf"round 1/1  \w+  {trained}",
        rf"round 1/1  \w+  {trained}  3.33 min left  3.33 min left in all",
        rf"round 1/1  \w+  {trained}  1.67 min left  1.67 min left in all",
        rf"round 1/1  \w+  {trained}",
        r"round 1/1  aggregating, report 1/2.*",
        rf"after round 1  evaluating, sample 8/8  loss {number}  {number} tokens/s",
        "round 1/1  train loss .*",
    ]
    assert len(lines) == len(expected), lines
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_terminal_gets_a_bar_that_counts_visits_and_goes_away(
    ingredients: Path, tmp_path: Path
) -> None:
    text = shown(ingredients, tmp_path / "run", terminal=True)
    plain = CONTROL.sub("", text)
    assert len(lines_of_rounds(text.replace("\r", "\n"))) == ROUNDS
    assert re.search(rf"round {ROUNDS}: \w+ sent [\d.]+ KiB", plain)
    assert f"{2 * ROUNDS}/{2 * ROUNDS} visits" in plain
    assert text.rstrip().endswith("\x1b[2K"), "the bar's last line is erased"
    assert "\x1b[?25h" in text, "the cursor is back"


def test_a_failed_visit_is_shown_as_such(ingredients: Path, tmp_path: Path) -> None:
    text = CONTROL.sub("", shown(ingredients, tmp_path / "run", terminal=True, failures=0.2))
    assert re.search(r"round \d: \w+ failed", text)
    assert "1 refused" in text


def test_the_bar_goes_away_after_an_error(ingredients: Path, tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=160)
    wild = recipe(ingredients, local={"learning_rate": 1e30, "steps": 4})
    with pytest.raises(UserError), progress_callbacks(console, tmp_path / "run") as callbacks:
        run.start(wild, tmp_path / "run", callbacks)
    assert "\x1b[?25h" in text.getvalue()


def test_a_round_says_who_was_refused_and_why() -> None:
    def refusal(client: int, reason: str) -> dict[str, object]:
        return {"client": client, "reason": reason}

    record = {
        "round": 0,
        "aggregated": [],
        "refused": [
            refusal(1, "its base model is not the one the run begins with"),
            refusal(4, "its base model is not the one the run begins with"),
            refusal(2, "the node was not there"),
        ],
        "limited": [{"client": 5, "claimed": 1000, "counted": 40}],
        "left_out": [3],
        "bytes": {"up": 0, "down": 10},
    }
    assert describe_round(record, 9).endswith(
        "3 refused (client 1, 4: its base model is not the one the run begins with; "
        "client 2: the node was not there)  1 counted as fewer samples  1 left out by the rule"
    )


def test_a_terminal_has_a_table_of_the_rounds_visits(ingredients: Path, tmp_path: Path) -> None:
    text = CONTROL.sub("", shown(ingredients, tmp_path / "run", terminal=True, failures=0.2))
    lines = RunFolder(tmp_path / "run").metrics()
    assert re.search(r"client +samples +train loss +sent +took", text)
    number = r"[\d.]+"
    rows = re.findall(rf"(\w+) +8 +({number}) +{number} KiB +{number} ms", text)
    losses = {float(loss) for _, loss in rows}
    alone = [record for record in lines if len(record["aggregated"]) == 1]
    assert alone, "a round of one client, whose loss is the round's"
    for record in alone:
        assert round(record["train_loss"], 4) in losses
    assert re.search(r"\w+ +failed: \w+", text)


@pytest.mark.parametrize("payload", [b"", b"nonsense", encode(Plan(0, 0))])
def test_whatever_a_client_sends_has_a_row(payload: bytes) -> None:
    table = VisitsTable()
    table.add("north", Arrival(0, payload))
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    assert re.search(r"north +\? +\? +[\d.]+ B", text.getvalue())


def test_the_newest_visits_of_a_large_round_are_shown() -> None:
    table, text = VisitsTable(), io.StringIO()
    for number in range(20):
        table.add(f"client-{number}", Arrival(number, None, failure="it is off"))
    Console(file=text, width=100).print(table)
    assert re.findall(r"client-(\d+)", text.getvalue()) == [str(n) for n in range(12, 20)]


MARKUP = "[/red] [bold]it is off[/bold]"  # rich takes the first for an error


def test_what_a_client_says_is_shown_to_the_letter_in_the_table() -> None:
    table, text = VisitsTable(), io.StringIO()
    table.add("[north]", Arrival(0, None, failure=MARKUP))
    Console(file=text, width=100).print(table)
    assert re.search(r"\[north\] .*failed: ", text.getvalue())
    assert MARKUP in text.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_client_says_is_shown_to_the_letter_in_a_line(terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, width=100, force_terminal=terminal)
    RoundLines(RunProgress(console=console, disable=not terminal)).on_notice(MARKUP)
    assert CONTROL.sub("", text.getvalue()) == f"note: {MARKUP}\n"
