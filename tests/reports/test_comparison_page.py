"""The page in headless Chromium, opened from disk."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By

from fullfed.errors import UserError
from fullfed.reports.comparison_page import comparison_page
from fullfed.reports.pages import write_page
from reports.contrast import poor_contrasts
from reports.invented import METHODS, comparison, fail

Open = Callable[..., Chrome]


def all_texts(page: Chrome, selector: str) -> list[str]:
    script = (
        "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText ?? e.textContent)"
    )
    return [text.strip() for text in page.execute_script(script, selector)]


def count(page: Chrome, selector: str) -> int:
    return len(page.find_elements(By.CSS_SELECTOR, selector))


def marks(page: Chrome, axis: str, method: str) -> list[tuple[float, float]]:
    """Where a plot marks a method's points, in pixels."""
    places = page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(m => m.getAttribute('transform'))",
        f'figure[data-axis="{axis}"] [data-method="{method}"] .marker',
    )
    numbers = (re.findall(r"[-\d.]+", place) for place in places)
    return [(float(x), float(y)) for x, y in numbers]


def shown_methods(page: Chrome) -> list[str]:
    """The first column of the table, without the notes on failures."""
    return [text.split("\n")[0] for text in all_texts(page, ".results tbody th")]


def heading(page: Chrome, text: str) -> Any:
    return page.find_element(By.XPATH, f'//th[button[text()="{text}"]]')


def test_three_plots_with_a_line_a_method(open_page: Open) -> None:
    page = open_page(comparison(methods=6, seeds=3))
    axes = [f.get_attribute("data-axis") for f in page.find_elements(By.CSS_SELECTOR, "figure")]
    assert axes == ["rounds", "bytes", "seconds"]
    assert all_texts(page, "figcaption") == [
        f"loss against {name} · nats per token" for name in ("rounds", "bytes", "time")
    ]
    for axis in axes:
        lines = page.find_elements(By.CSS_SELECTOR, f'figure[data-axis="{axis}"] .series')
        assert [line.get_attribute("data-method") for line in lines] == list(METHODS)
        assert count(page, f'figure[data-axis="{axis}"] .mean') == 6
        assert count(page, f'figure[data-axis="{axis}"] .band') == 6
    assert count(page, ".failed") == 0
    assert all_texts(page, "#legend label") == list(METHODS)


def test_nothing_is_loaded_but_the_page(open_page: Open) -> None:
    page = open_page(comparison())
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_the_policy_names_style_and_script_by_their_hashes() -> None:
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', comparison_page(comparison()))
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert rules["default-src"] == "'none'"
    for kind in ("style-src", "script-src"):
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules[kind])


def test_lines_skip_rounds_without_evaluation(open_page: Open) -> None:
    page = open_page(comparison(methods=1, rounds=5, every=2))
    # The base model, rounds 2, 4 and 5; nothing is at zero bytes, as that axis is logarithmic.
    assert [len(marks(page, axis, "fedavg")) for axis in ("rounds", "bytes", "seconds")] == [
        4,
        3,
        4,
    ]
    at = [x for x, _ in marks(page, "rounds", "fedavg")]
    steps = [(x - at[0]) / (at[-1] - at[0]) for x in at]
    assert steps == pytest.approx([0, 2 / 5, 4 / 5, 1])


def test_places_are_means_over_seeds(open_page: Open) -> None:
    data = comparison(methods=2, seeds=3, rounds=4, every=1)
    page = open_page(data)
    means = [
        [statistics.fmean(run["rounds"][n]["loss"] for run in method["runs"]) for n in range(4)]
        for method in data["methods"]
    ]
    sums = [
        [
            statistics.fmean(
                sum(r["up"] + r["down"] for r in run["rounds"][: n + 1]) for run in runs
            )
            for n in range(4)
        ]
        for runs in (method["runs"] for method in data["methods"])
    ]
    (a, b), (bytes_a, bytes_b) = means, sums
    points_a, points_b = (marks(page, "bytes", method) for method in ("fedavg", "ferret"))
    # Heights are linear in the loss, and equal ratios of bytes are equal distances.
    pixels_a_nat = (points_a[3][1] - points_a[0][1]) / (a[3] - a[0])
    height = points_a[0][1] + (b[2] - a[0]) * pixels_a_nat
    assert points_b[2][1] == pytest.approx(height, abs=0.01)
    across = [(x - points_a[0][0]) for x, _ in (points_a[3], points_b[0], points_b[3])]
    ratios = [math.log(y / bytes_a[0]) for y in (bytes_a[3], bytes_b[0], bytes_b[3])]
    assert [x / across[0] for x in across] == pytest.approx([r / ratios[0] for r in ratios])


def test_bytes_up_or_down_alone(open_page: Open) -> None:
    page = open_page(comparison())
    before = {axis: marks(page, axis, "ferret") for axis in ("rounds", "bytes", "seconds")}
    page.find_element(By.CSS_SELECTOR, "input[value=up]").click()
    assert marks(page, "bytes", "ferret") != before["bytes"]
    assert marks(page, "rounds", "ferret") == before["rounds"]
    assert "bytes up so far, all clients (log scale)" in all_texts(page, "figure text")


def test_another_metric(open_page: Open) -> None:
    page = open_page(comparison())
    page.find_element(By.CSS_SELECTOR, "input[value=rouge_l]").click()
    assert all_texts(page, "figcaption")[0] == "ROUGE-L against rounds · 0 to 1"
    (_, start), *_, (_, end) = marks(page, "rounds", "fedavg")
    assert end < start  # it rises


def test_a_method_can_be_hidden(open_page: Open) -> None:
    page = open_page(comparison(methods=2))
    page.find_element(By.CSS_SELECTOR, "#legend input").send_keys(Keys.SPACE)
    assert count(page, ".mean") == 3
    assert count(page, '[data-method="fedavg"]') == 0


def test_values_under_the_pointer(open_page: Open) -> None:
    data = comparison(methods=2, seeds=3, rounds=4, every=1)
    page = open_page(data)
    x, y = marks(page, "seconds", "ferret")[4]
    page.execute_script(
        "const svg = document.querySelector('figure[data-axis=seconds] svg');"
        "const box = svg.getBoundingClientRect();"
        "const at = {clientX: box.left + arguments[0] + 3, clientY: box.top + arguments[1]};"
        "svg.dispatchEvent(new PointerEvent('pointermove', at));",
        *(x, y),
    )
    runs = data["methods"][1]["runs"]
    losses = [run["rounds"][3]["loss"] for run in runs]
    seconds = [sum(sum(r["seconds"].values()) for r in run["rounds"]) for run in runs]
    down = statistics.fmean(sum(r["down"] for r in run["rounds"]) for run in runs)
    (tip,) = filter(None, all_texts(page, ".tip"))
    assert tip.split("\n") == [
        "ferret, round 4",
        f"loss {statistics.fmean(losses):.3f} ± {statistics.stdev(losses):.3f} (nats per token)",
        f"410 KiB up, {down / 2**20:.1f} MiB down",  # 4 x 105,000 B
        f"after {statistics.fmean(seconds):.1f} s",
    ]
    assert count(page, ".here") == 3  # the same round in every plot


def test_values_by_keyboard(open_page: Open) -> None:
    page = open_page(comparison(methods=2, rounds=4, every=1))
    plot = page.find_element(By.CSS_SELECTOR, "figure svg")
    plot.send_keys(Keys.ARROW_RIGHT)
    assert all_texts(page, ".tip strong") == ["fedavg, round 4"]
    plot.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_DOWN)
    assert all_texts(page, ".tip strong") == ["ferret, round 2"]


def test_clicking_a_heading_sorts(open_page: Open) -> None:
    page = open_page(comparison())
    loss = heading(page, "loss")
    loss.find_element(By.TAG_NAME, "button").click()
    expected = ["fedavg", "ferret", "fedit", "fedkseed-pro", "fedkseed", "fedzo"]
    assert shown_methods(page) == expected
    assert loss.get_attribute("aria-sort") == "ascending"
    loss.find_element(By.TAG_NAME, "button").click()
    assert shown_methods(page) == expected[::-1]
    assert loss.get_attribute("aria-sort") == "descending"
    heading(page, "method").find_element(By.TAG_NAME, "button").click()
    assert shown_methods(page) == sorted(METHODS)
    assert count(page, "th[aria-sort]") == 1


def test_more_is_better_sorts_downwards_first(open_page: Open) -> None:
    page = open_page(comparison())
    heading(page, "ROUGE-L").find_element(By.TAG_NAME, "button").click()
    assert shown_methods(page)[0] == "fedavg"


def test_what_is_missing_sorts_last_both_ways_and_by_keyboard(open_page: Open) -> None:
    page = open_page(comparison())
    button = heading(page, "rounds to target").find_element(By.TAG_NAME, "button")
    for order in (["fedavg", "ferret", "fedit"], ["fedit", "ferret", "fedavg"]):
        button.send_keys(Keys.ENTER)
        assert shown_methods(page)[:3] == order
        assert set(shown_methods(page)[3:]) == {"fedkseed", "fedkseed-pro", "fedzo"}


def test_failed_runs_are_shown(open_page: Open) -> None:
    data = comparison(seeds=2)
    fail(data, "fedzo", 1, "the loss is not finite", after=7)
    fail(data, "fedit", 0, "out of memory", after=0)
    fail(data, "fedit", 1, "out of memory", after=0)
    page = open_page(data)
    assert all_texts(page, ".failures li") == [
        "fedzo, seed 1, failed: the loss is not finite",
        "fedit, seed 0, failed: out of memory",
        "fedit, seed 1, failed: out of memory",
    ]
    rows = {row.split("\n")[0]: row for row in all_texts(page, ".results tbody th")}
    assert "1 of 2 failed" in rows["fedzo"]
    assert "2 of 2 failed" in rows["fedit"]
    for axis in ("rounds", "bytes", "seconds"):
        assert count(page, f'figure[data-axis="{axis}"] .mean') == 5
        assert count(page, f'figure[data-axis="{axis}"] [data-method="fedzo"] .failed') == 1
    row = page.find_element(By.XPATH, '//tr[th[starts-with(., "fedit")]]')
    assert {cell.text for cell in row.find_elements(By.TAG_NAME, "td")} == {"0.5", "–"}


def test_a_method_whose_loss_explodes_leaves_the_others_legible(open_page: Open) -> None:
    data = comparison()
    for run in data["methods"][4]["runs"]:
        run["rounds"][-1]["loss"] = 1234.5
    page = open_page(data)
    assert set(all_texts(page, ".clipped-note")) == {"Above the plot: fedzo (up to 1235)."}
    heights = [y for _, y in marks(page, "rounds", "fedavg")]
    assert max(heights) - min(heights) > 100  # pixels


def test_one_seed_has_no_bands(open_page: Open) -> None:
    page = open_page(comparison(methods=2, seeds=1))
    assert count(page, ".mean") == 6
    assert count(page, ".band") == 0
    assert "±" not in page.find_element(By.CSS_SELECTOR, ".results").text
    assert "One seed" in page.find_element(By.TAG_NAME, "main").text


HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '"><svg onload="window.hacked = 1">',
    "<!--<script>",
    "$title ${1} &lt;b&gt; \u2028 'quoted'",
    "unpaired \udcff",  # how Python reads a byte of a file name that is not UTF-8
)


@pytest.mark.parametrize("text", HOSTILE)
def test_strings_stay_text(open_page: Open, text: str) -> None:
    data = comparison(methods=2, seeds=2)
    data |= {"title": text, "command": text, "environment": {text: text}}
    data["target"]["meaning"] = text
    data["methods"][0] |= {"title": text, "paper": text, "label": text}
    data["methods"][0]["runs"][0]["failed"] = text
    data["search"]["methods"] = {text: [{"learning_rate": 0.5, "loss": None, "reason": text}]}
    if "\udcff" not in text:  # TOML has no such strings
        data["recipe"]["data"]["train"] = text
        data["methods"][0]["changes"] = {"data.train": text}
    page = open_page(data)
    assert page.execute_script("return window.hacked") is None
    embedded = "return JSON.parse(document.getElementById('data').textContent).data"
    assert page.execute_script(f"{embedded}.methods.length") == 2
    shown = text.encode("utf-8", "backslashreplace").decode()
    assert page.execute_script("return document.querySelector('h1').textContent") == shown
    assert count(page, "script") == 2
    assert count(page, "img") == 0
    assert count(page, ".mean") == 6


def test_it_fits_a_phone_and_a_wide_screen(open_page: Open) -> None:
    data = comparison()
    for width, columns in ((400, 1), (1600, 3)):
        page = open_page(data, width=width)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        lefts = {f.location["x"] for f in page.find_elements(By.CSS_SELECTOR, "figure")}
        assert len(lefts) == columns


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out(open_page: Open, dark: bool) -> None:
    assert poor_contrasts(open_page(comparison(), dark=dark)) == []


def test_a_window_too_narrow_for_names_still_has_its_plots(open_page: Open) -> None:
    page = open_page(comparison(), width=150)
    assert count(page, ".mean") == 18


def test_it_follows_the_reader_s_colour_scheme(open_page: Open) -> None:
    colours = []
    for dark in (False, True):
        page = open_page(comparison(methods=1), dark=dark)
        colours.append(page.find_element(By.TAG_NAME, "body").value_of_css_property("color"))
    assert colours[0] != colours[1]


def test_recipe_search_and_environment(open_page: Open) -> None:
    page = open_page(comparison(methods=2))
    recipe = page.find_element(By.CSS_SELECTOR, ".recipe").text
    assert "[federation]\nrounds = 24\nclients_per_round = 10" in recipe
    chosen = [text.split("\n") for text in all_texts(page, ".search .chosen")]
    assert chosen == [["0.5", "loss 6.500"]] * 2
    assert "the loss is not finite in round 2" in page.find_element(By.CSS_SELECTOR, ".search").text
    assert ["torch", "2.13.0"] in [row.split() for row in all_texts(page, ".pairs tr")]


def test_the_page_holds_the_data_itself() -> None:
    data = comparison(methods=1, rounds=2)
    block = re.search(r'id="data">(.*?)</script>', comparison_page(data), re.DOTALL)
    assert block is not None
    assert json.loads(block[1])["data"] == data


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no/page.html: cannot be written"):
        write_page(comparison_page(comparison(methods=1)), tmp_path / "no" / "page.html")
