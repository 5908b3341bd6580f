"""What recipes can name: the catalogue, what is registered, and what does not go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import pytest

import fullfed
from fullfed.config import Recipe, parse_recipe
from fullfed.errors import UserError
from fullfed.methods import registration
from fullfed.methods.catalogue import AGGREGATIONS, CODECS, METHODS
from fullfed.methods.codecs.dense import Dense
from fullfed.methods.codecs.topk import TopK
from fullfed.methods.entries import AggregationEntry, CodecEntry
from fullfed.runs.assembly import choose, resolved


def recipe(**tables: Any) -> Recipe:
    known: dict[str, Any] = {
        "model": {"path": "builtin"},
        "data": {"train": "builtin"},
        "federation": {"rounds": 1, "clients_per_round": 5},
        "method": {"name": "fedavg"},
    }
    return parse_recipe(known | tables, "the test")


@pytest.fixture
def clean() -> Iterator[None]:
    """The tables as they are, put back afterwards."""
    tables = (METHODS, CODECS, AGGREGATIONS)
    before = [dict(table) for table in tables]
    yield
    for table, own in zip(tables, before, strict=True):
        table.clear()
        table.update(own)  # type: ignore[arg-type]
    registration.load_plugins.cache_clear()


def test_every_entry_has_a_dataclass_of_options_that_are_explained() -> None:
    for entry in (*METHODS.values(), *CODECS.values(), *AGGREGATIONS.values()):
        assert is_dataclass(entry.options)
        for option in fields(entry.options):
            kinds = [kind.__doc__ or "" for kind in entry.options.__mro__]
            assert any(f"{option.name}" in text for text in kinds), (entry.options, option.name)


def test_every_default_codec_is_one_a_recipe_can_name() -> None:
    for name, entry in METHODS.items():
        if entry.codec is not None:
            chosen = choose(recipe(method={"name": name}, codec=dict(entry.codec)))
            assert chosen == choose(recipe(method={"name": name}))


def test_the_resolved_recipe_spells_out_codec_and_rule() -> None:
    short = recipe(codec={"name": "topk", "upload": "4KiB"})
    spelled = resolved(short, choose(short))
    assert spelled.codec is not None
    assert spelled.codec.options == {
        "upload": "4KiB", "bits": 1, "error_feedback": False, "decay": 1.0
    }  # fmt: skip
    assert spelled.aggregation.options == {"weights": "samples"}
    again = parse_recipe(spelled.model_dump(mode="json", exclude_none=True), "the test")
    assert choose(again).codec == TopK(upload="4KiB")
    assert resolved(again, choose(again)) == spelled


@pytest.mark.parametrize("name", [n for n, entry in METHODS.items() if entry.codec is None])
def test_a_method_with_a_codec_of_its_own_refuses_another(name: str) -> None:
    own = {"coordinates": 9} if name == "ferret" else {}
    with pytest.raises(UserError, match=f"^codec: {name} has a codec of its own"):
        choose(recipe(method={"name": name, **own}, codec={"name": "dense"}))
    assert choose(recipe(method={"name": name, **own})).codec is None


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"method": {"name": "sgd"}}, "method.name: there is no method 'sgd'; choose among"),
        ({"codec": {"name": "zip"}}, "codec.name: there is no codec 'zip'; choose among dense"),
        ({"aggregation": {"name": "bulyan"}}, "aggregation.name: there is no aggregation 'bulyan'"),
        ({"codec": {"name": "dense", "bits": 3}}, "there is no key 'codec.bits'"),
        ({"codec": {"name": "topk"}}, "codec: give upload or count"),
        ({"codec": {"name": "dense", "precision": "int4"}}, "codec.precision: input should be"),
        ({"aggregation": {"name": "trimmed-mean", "trim": 0.5}}, "aggregation: trim is a share"),
        ({"aggregation": {"name": "mean", "weights": "loss"}}, "aggregation.weights: input sh"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tables: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        choose(recipe(**tables))
    assert str(caught.value).startswith(expected)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("clean")
def test_what_is_registered_can_be_named_and_no_name_is_taken_twice() -> None:
    entry = CodecEntry("the same in 16 bits", Dense, lambda seed, codec: Dense("bfloat16"))
    with pytest.raises(UserError, match="there is no codec 'halves'"):
        choose(recipe(codec={"name": "halves"}))
    fullfed.register_codec("halves", entry)
    assert choose(recipe(codec={"name": "halves"})).codec == Dense()
    with pytest.raises(UserError, match=r"^halves: there is a codec of this name"):
        fullfed.register_codec("halves", entry)
    with pytest.raises(UserError, match=r"^fedavg: there is a method of this name"):
        fullfed.register_method("fedavg", METHODS["ferret"])
    rule = AggregationEntry("another kind", *[Dense, lambda rule: rule])
    fullfed.register_aggregation("halves", rule)


@pytest.mark.usefixtures("clean")
def test_installed_packages_register_by_entry_points_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    points = [SimpleNamespace(load=lambda: lambda: called.append("mine"))]
    monkeypatch.setattr(registration, "entry_points", lambda group: points * (group == "fullfed"))
    registration.load_plugins.cache_clear()
    choose(recipe())
    choose(recipe())
    assert called == ["mine"]
