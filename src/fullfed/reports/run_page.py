"""A run as an HTML page; its template is ``page/run.html``."""

from __future__ import annotations

from fullfed.evaluation.metrics import METRICS
from fullfed.reports.comparison_content import recipe_text
from fullfed.reports.pages import Heading, SortableCell, render_page
from fullfed.reports.run_content import (
    RunRecord,
    answers,
    client_totals,
    curves,
    hashes,
    refusals,
    time_by_part,
    traffic,
)
from fullfed.runs.binding import tables_of
from fullfed.runs.budget import privacy_text
from fullfed.runs.folder import RunFolder
from fullfed.runs.history import results
from fullfed.units import bytes_text, seconds_text

_CLIENT_COLUMNS = (
    *("samples", "visits", "in updates", "failed or refused"),
    *("bytes up", "bytes down"),
)


def run_page(folder: RunFolder) -> str:
    """A run's page as text, of as many rounds as it has.

    Raises:
        UserError: there is no run here, it has not begun, or its files are damaged.
    """
    run = RunRecord.of(folder)
    return render_page(
        "run.html",
        curves=curves(run),
        trained=any(record["train_loss"] is not None for record in run.rounds),
        title=run.name,
        lede=_lede(run),
        results=_results(run),
        notes=_notes(run),
        answers=answers(run),
        answered=max(run.predictions, default=0),
        most_tokens=run.recipe.evaluation.max_new_tokens,
        traffic=traffic(run),
        time=time_by_part(run),
        client_headings=[
            Heading("client"),
            *(Heading(text, first="descending") for text in _CLIENT_COLUMNS),
        ],
        client_rows=_client_rows(run),
        refusals=refusals(run),
        round_headings=[
            Heading("round"),
            Heading("training loss", METRICS["loss"].unit),
            *(_heading(name) for name in run.metrics),
            *(Heading(text) for text in ("step", "in update", "bytes up", "bytes down", "time")),
        ],
        round_rows=_round_rows(run),
        recipe=recipe_text(tables_of(run.recipe)),
        environment=run.base["arithmetic"],
        hashes=hashes(run),
    )


def _lede(run: RunRecord) -> str:
    done, asked = len(run.rounds), run.recipe.federation.rounds
    over = f"{done} round" + "s" * (done != 1)
    rounds = over if run.ended else f"{done} of {asked} rounds so far"
    each = run.recipe.federation.clients_per_round
    return f"{run.recipe.method.name}, {rounds} with {each} of {len(client_totals(run))} clients"


def _heading(name: str) -> Heading:
    metric = METRICS[name]
    first = "descending" if metric.more_is_better else "ascending"
    return Heading(metric.heading, metric.unit, first)


def _results(run: RunRecord) -> list[list[list[str]]]:
    """Metric, base model, last and best; each cell's lines."""
    rows = []
    for one in results(run.base, run.rounds, run.metrics):
        metric = METRICS[one.metric]
        values = ([_number(one.base)], *map(_at_round, (one.last, one.best)))
        rows.append([[metric.heading, metric.unit], *values])
    return rows


def _notes(run: RunRecord) -> list[str]:
    """What is to be known of the results."""
    told = privacy_text(run.recipe.privacy, run.rounds)
    if not run.metrics:
        return [*told, "Nothing was measured: the run had no test set."]
    records = [("of the base model", run.base)]
    records += [(f"after round {record['round'] + 1}", record) for record in run.rounds]
    told += [
        f"The {METRICS[name].heading} {when} was not measured: {why}."
        for when, record in records
        for name, why in record.get("unmeasured", {}).items()
    ]
    return told


def _client_rows(run: RunRecord) -> list[list[SortableCell]]:
    return [
        [
            SortableCell([one.name], one.name),
            SortableCell(["–" if one.samples is None else f"{one.samples:,}"], one.samples),
            *(SortableCell([str(n)], n) for n in (one.visits, one.aggregated, one.refused)),
            *(SortableCell([bytes_text(n)], n) for n in (one.up, one.down)),
        ]
        for one in client_totals(run)
    ]


def _round_rows(run: RunRecord) -> list[list[SortableCell]]:
    rows = []
    for record in run.rounds:
        number, traffic = record["round"] + 1, record["bytes"]
        measured = [record["train_loss"], *(record.get(name) for name in run.metrics)]
        measured.append(record["step"].get("server_step"))
        taken, asked = len(record["aggregated"]), len(record["cohort"])
        seconds = record["seconds"]["elapsed"]
        rows.append(
            [
                SortableCell([str(number)], number),
                *(SortableCell([_number(value)], value) for value in measured),
                SortableCell([f"{taken} of {asked}"], taken),
                *(SortableCell([bytes_text(traffic[way])], traffic[way]) for way in ("up", "down")),
                SortableCell([seconds_text(seconds)], seconds),
            ]
        )
    return rows


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _at_round(value: tuple[float, int] | None) -> list[str]:
    return ["–"] if value is None else [f"{value[0]:.3f}", f"round {value[1]}"]
