"""A few of the architectures that tests/trials/architectures.py tries all of."""

from __future__ import annotations

from pathlib import Path

import pytest

from trials.architectures import Row, table, trial


@pytest.mark.parametrize("name", ["gpt2", "gemma3n_text", "mixtral", "mamba", "deepseek_v3"])
def test_an_architecture_goes_all_the_way(tmp_path: Path, name: str) -> None:
    row = trial(name, tmp_path)
    assert (row.ferret, row.fedcybgd, row.exported) == ("yes", "yes", "yes"), row
    assert row.ours == pytest.approx(row.own, rel=1e-5)
    without = "cache_inputs: memory.cache_inputs: the layers" if name == "mixtral" else ""
    assert row.refused.startswith(without)
    assert bool(row.refused) == bool(without)


def test_an_architecture_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    row = trial("electra", tmp_path)
    assert "depends on what comes after" in row.refused
    assert not row.ferret


def test_the_table_has_a_row_for_each() -> None:
    text = table([Row("a", 5, 1.0, 1.0, "yes", "yes", "yes"), Row("b", refused="no | never")])
    assert "1 are carried out, 1 refused, 0 not tried, 0 fail otherwise." in text
    assert "| a | 5 | 1.00000 | 1.00000 | yes | yes | yes |  |" in text
    assert "| b | no \\| never |" in text
