"""A small round of the message trial; docs/results/trials.md has a large one's counts."""

from __future__ import annotations

import sys

import pytest

from trials import messages
from trials.federations import tables
from trials.mutations import dump, parse

SAMPLE = [
    *(
        "ferret",
        "fedkseed-pro",
        "flora",
        "fed-sb",
        *("flexlora", "slora", "fedbpt", "fedpeptao"),
        "cyclic-ferret",
        "fedcybgd without replicas",
    ),
    *("fedavg, topk 9", "fedavg, sketch 24 normal"),
]


def test_no_spoilt_message_is_an_error_of_ours_or_changes_anything_unseen() -> None:
    counts = messages.go(600, seed=7, names=SAMPLE)
    assert counts.faults == {}
    assert counts.total == 600
    refused = sum(count for (_, what), count in counts.outcomes.items() if what == "refused")
    same = sum(count for (_, what), count in counts.outcomes.items() if what == "same")
    assert refused > 300
    assert same > 5


def test_the_trial_knows_every_method_codec_and_rule() -> None:
    from fullfed.methods.catalogue import AGGREGATIONS, CODECS, METHODS

    known = tables()
    assert set(METHODS) <= set(known)
    assert all(any(name.startswith(f"fedavg, {codec}") for name in known) for codec in CODECS)
    assert all(f"fedavg, {rule}" in known for rule in AGGREGATIONS)


def test_the_trial_sees_what_it_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that fails, and one that lets everything through."""
    monkeypatch.setattr(messages, "decode_settings", lambda *_: {}["no such key"])
    monkeypatch.setattr("fullfed.federation.replica._snapshot_hash", lambda *_: "0" * 64)
    counts = messages.go(300, seed=7, names=["ferret"])
    assert any(fault.startswith("settings traceback KeyError") for fault in counts.faults)
    assert any(fault.startswith("snapshot damage") for fault in counts.faults)


def test_it_counts_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["messages.py", "--messages", "20", "--only", "fedit"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        messages.main()
    assert end.value.code == 0
    assert "20 messages of 1 federation" in capsys.readouterr().out


def test_json_with_equal_keys_survives_being_read_and_written() -> None:
    text = '{"a":1,"a":[2,{"b":null}]}'
    assert dump(parse(text)) == text
