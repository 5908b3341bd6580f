"""A run's page in headless Chromium, against what the run's files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from typer.testing import CliRunner

import fullfed
from fullfed.cli import app
from fullfed.errors import UserError
from fullfed.reports import runs as plots
from fullfed.reports.run_content import RunRecord
from fullfed.reports.run_page import run_page
from fullfed.runs import run
from fullfed.runs.folder import RunFolder
from fullfed.units import bytes_text
from reports.contrast import poor_contrasts
from runs.small import recipe, write_ingredients

Open = Callable[..., Chrome]
MEASURED = {"metrics": ["loss", "exact_match"], "max_new_tokens": 4, "every": 2}
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ingredients(tmp_path_factory.mktemp("ingredients"))


@pytest.fixture(scope="module")
def measured(ingredients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four rounds, some visits of which failed."""
    out = tmp_path_factory.mktemp("measured") / "a-run"
    failing = {"failures": 0.2}
    run.start(recipe(ingredients, evaluation=MEASURED, simulation=failing), out)
    return out


@pytest.fixture(scope="module")
def page(measured: Path) -> str:
    return run_page(RunFolder(measured))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def texts(browser: Chrome, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)"
    return [" ".join(text.split()) for text in browser.execute_script(script, selector)]


def rows(browser: Chrome, kind: str) -> list[list[str]]:
    """The rows of the table in a section."""
    script = """return [...document.querySelectorAll(arguments[0])].map(
        row => [...row.cells].map(cell => cell.innerText))"""
    return list(browser.execute_script(script, f"[aria-labelledby={kind}-heading] tbody tr"))


def test_results_traffic_and_hashes_are_the_files(
    open_page: Open, measured: Path, page: str
) -> None:
    browser, lines = open_page(page), records(measured)
    base = json.loads((measured / "base.json").read_text())
    assert texts(browser, "h1") == ["a-run"]
    assert texts(browser, ".lede") == ["ferret, 4 rounds with 2 of 4 clients"]
    loss, exact = rows(browser, "results")
    best = min((line for line in lines if line["loss"]), key=lambda line: line["loss"])
    assert loss == [
        "loss\nnats per token",
        f"{base['loss']:.3f}",
        f"{lines[-1]['loss']:.3f}\nround 4",
        f"{best['loss']:.3f}\nround {best['round'] + 1}",
    ]
    assert exact[0] == "exact match\n0 to 1"
    up, down = rows(browser, "traffic")
    sums = [sum(line["bytes"][way] for line in lines) for way in ("up", "down")]
    assert [up[1], down[1]] == [bytes_text(n) for n in sums]
    assert [up[3], down[3]] == [bytes_text(n / 8) for n in sums]
    hashes = dict(rows(browser, "hashes"))
    summary = json.loads((measured / "summary.json").read_text())
    assert hashes["model after round 4"] == summary["model_hash"]
    assert hashes["base model"] == base["model_hash"]
    assert 'name = "ferret"' in texts(browser, ".recipe")[0]
    assert ["torch", base["arithmetic"]["torch"]] in rows(browser, "environment")
    parts = [row[0] for row in rows(browser, "time")]
    assert parts == ["training", "encoding", "aggregation", "evaluation"]
    shares = [int(row[2].split()[0]) for row in rows(browser, "time")]
    assert 97 <= sum(shares) <= 103


def test_clients_are_counted_as_the_rounds_have_them(
    open_page: Open, measured: Path, page: str
) -> None:
    lines = records(measured)
    found = {row[0]: row[1:] for row in rows(open_page(page), "clients")}
    assert sorted(found) == ["black", "blue", "green", "red"]
    for number, name in enumerate(sorted(found)):
        visits = sum(number in line["cohort"] for line in lines)
        used = sum(number in line["aggregated"] for line in lines)
        up, down = (
            sum(line["bytes"][f"{way}_by_client"].get(str(number), 0) for line in lines)
            for way in ("up", "down")
        )
        failed = sum(one["client"] == number for line in lines for one in line["refused"])
        expected = ["8", str(visits), str(used), str(failed), bytes_text(up), bytes_text(down)]
        assert found[name] == expected
    assert any(line["refused"] for line in lines)


def test_curves_of_test_and_training_loss_and_a_row_a_round(
    open_page: Open, measured: Path, page: str
) -> None:
    browser = open_page(page)
    for axis, of_test in (("rounds", 3), ("bytes", 2), ("seconds", 3)):
        marks = f'figure[data-axis="{axis}"] [data-method="%s"] .marker'
        assert len(browser.find_elements(By.CSS_SELECTOR, marks % "test set")) == of_test
        assert len(browser.find_elements(By.CSS_SELECTOR, marks % "training")) == 4
    shown = rows(browser, "rounds")
    assert [row[0] for row in shown] == ["1", "2", "3", "4"]
    for row, line in zip(shown, records(measured), strict=True):
        assert row[1] == f"{line['train_loss']:.3f}"
        assert row[2] == ("–" if line["loss"] is None else f"{line['loss']:.3f}")
        assert row[5] == f"{len(line['aggregated'])} of {len(line['cohort'])}"


def test_losses_that_nobody_is_told_have_no_curve(
    open_page: Open, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With differential privacy of records, say."""
    told = RunRecord.of(RunFolder(measured))
    untold = replace(told, rounds=[{**one, "train_loss": None} for one in told.rounds])
    monkeypatch.setattr(RunRecord, "of", lambda _: untold)
    browser = open_page(run_page(RunFolder(measured)))
    assert texts(browser, "#legend label") == ["test set"]
    assert "The training loss is" not in browser.find_element(By.TAG_NAME, "main").text


def test_answers_of_the_base_model_and_the_newest(
    open_page: Open, measured: Path, page: str
) -> None:
    browser = open_page(page)
    lines = [json.loads(x) for x in (measured / "predictions.jsonl").read_text().splitlines()]
    before, after = ([x for x in lines if x["version"] == version] for version in (0, 4))
    assert len(browser.find_elements(By.CSS_SELECTOR, ".answer")) == len(before) == 8
    script = """return [...document.querySelectorAll('.answer')].map(
        one => [one.querySelector('pre').textContent,
                ...[...one.querySelectorAll('dd')].map(dd => dd.textContent)])"""
    assert browser.execute_script(script) == [
        [a["prompt"], a["references"][0], a["answer"] or "(nothing)", b["answer"] or "(nothing)"]
        for a, b in zip(before, after, strict=True)
    ]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off_and_all_can_be_read(
    open_page: Open, page: str, width: int, dark: bool
) -> None:
    browser = open_page(page, width=width, dark=dark)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    beyond = """return [...document.querySelectorAll('body *')].filter(e =>
        e.getBoundingClientRect().right > document.documentElement.clientWidth + 1
        && !e.closest('.scroll, pre, svg')).map(e => e.outerHTML)"""
    assert browser.execute_script(beyond) == []
    assert poor_contrasts(browser) == []


def test_all_of_it_is_reached_by_keyboard(open_page: Open, page: str) -> None:
    browser = open_page(page, width=390)
    hidden = """return [...document.querySelectorAll('*')].filter(e =>
        ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.tabIndex < 0
        && e.scrollWidth > e.clientWidth).map(e => e.outerHTML)"""
    assert browser.execute_script(hidden) == [], "what scrolls takes the focus"
    more = browser.find_element(By.TAG_NAME, "summary")
    assert more.text == "2 more answers"
    more.send_keys(Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, "details .answer").is_displayed()
    button = browser.find_element(By.CSS_SELECTOR, ".rounds th button")
    for first in ("1", "4"):
        button.send_keys(Keys.ENTER)
        assert rows(browser, "rounds")[0][0] == first
    labels = """return [...document.querySelectorAll('[role=region], section')].map(
        e => e.getAttribute('aria-label') ?? e.getAttribute('aria-labelledby'))"""
    found = browser.execute_script(labels)
    assert len(set(found)) == len(found), "each region has a name of its own"


def test_strings_of_the_data_stay_text(open_page: Open, ingredients: Path, tmp_path: Path) -> None:
    """A client's name, a prompt and a reference."""
    lines = [json.loads(x) for x in (ingredients / "train.jsonl").read_text().splitlines()]
    for line in lines:
        line["instruction"] += HOSTILE
        line["category"] += HOSTILE if line["category"] == "red" else ""
        line["output"] = HOSTILE if line["category"] == "white" else line["output"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"train": str(tmp_path / "train.jsonl"), "max_length": 128}
    one = recipe(ingredients, data=data, federation={"rounds": 1}, evaluation=MEASURED)
    run.start(one, tmp_path / "run")
    browser = open_page(run_page(RunFolder(tmp_path / "run")))
    assert browser.execute_script("return window.hacked") is None
    assert f"red{HOSTILE}" in [row[0] for row in rows(browser, "clients")]
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 2


def test_a_run_that_measures_nothing_has_a_page(
    open_page: Open, ingredients: Path, tmp_path: Path
) -> None:
    one = recipe(ingredients, evaluation={"metrics": []}, federation={"rounds": 1})
    run.start(one, tmp_path / "run")
    browser = open_page(run_page(RunFolder(tmp_path / "run")))
    assert rows(browser, "results") == []
    assert "Nothing was measured" in browser.find_element(By.TAG_NAME, "main").text
    assert "The run kept no answers" in browser.find_element(By.TAG_NAME, "main").text


def test_a_run_in_its_midst_has_a_page(ingredients: Path, tmp_path: Path) -> None:
    class Stop(fullfed.Callback):
        def __init__(self, after: int) -> None:
            self.after = after

        def on_round_begin(self, round: int) -> None:
            if round == self.after:
                raise KeyboardInterrupt

    for after, lede in ((0, "0 of 4 rounds so far"), (1, "1 of 4 rounds so far")):
        out = tmp_path / f"after-{after}"
        with pytest.raises(KeyboardInterrupt):
            run.start(recipe(ingredients, evaluation=MEASURED), out, [Stop(after)])
        assert lede in run_page(RunFolder(out))


def test_a_run_that_ended_early_is_over(ingredients: Path, tmp_path: Path) -> None:
    """Its clients train nothing, so that nothing gets better."""
    early = {"every": 1, "patience": 1}
    one = recipe(ingredients, evaluation=early, method={"name": "fedavg"})
    run.start(one, tmp_path / "run", trainer=lambda *_: {"loss": 1.0})
    assert "fedavg, 1 round with 2 of 4 clients" in run_page(RunFolder(tmp_path / "run"))


def test_the_command_and_the_function(measured: Path, page: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(measured), "--out", str(tmp_path / "p.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "p.html").read_text() == page
    assert fullfed.report(measured) == measured / "report.html"
    assert (measured / "report.html").read_text() == page
    with pytest.raises(UserError, match="there is no run here"):
        fullfed.report(tmp_path)


def test_a_picture_has_a_title_and_whole_rounds(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    plots.plot_runs({"one": RunFolder(measured)}, tmp_path)
    titles = [picture.axes[0].get_title() for picture in drawn]
    assert titles == [f"Loss on the test set against {x}" for x in ("rounds", "bytes")]
    ticks = drawn[0].axes[0].get_xticks()
    assert all(tick == int(tick) for tick in ticks)
