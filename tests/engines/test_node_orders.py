"""Orders, answers and settings survive the way, and nothing else passes for one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfed.config import Recipe, parse_recipe
from fullfed.config_data import DataTable
from fullfed.engines.node_messages import (
    _DATA,
    _TABLES,
    Answer,
    Order,
    decode_settings,
    encode_settings,
)
from fullfed.errors import MessageError, UserError
from fullfed.quickstart import quickstart_recipe

RUN = "0123456789abcdef"
HASH = RUN * 4
some = st.binary(min_size=1, max_size=20)
maybe = st.binary(max_size=20)


@given(
    some,
    st.lists(some, max_size=4),
    st.integers(0, 99),
    st.lists(maybe, min_size=5, max_size=5),
    st.integers(-1, 99),
)
def test_an_order_arrives_as_it_was_sent(
    plan: bytes, updates: list[bytes], first: int, others: list[bytes], aggregated: int
) -> None:
    names = ("settings", "snapshot", "last", "submodel", "static_weights")
    optional = dict(zip(names, others, strict=True))
    order = Order(RUN, plan, updates=tuple(updates), first=first, aggregated=aggregated, **optional)
    assert Order.of(order.frames()) == order
    assert all(order.frames().values()), "no frame is empty"
    messages = [plan, *updates, *(optional[name] for name in names[1:])]
    assert order.message_bytes == sum(map(len, messages))


@given(st.integers(-1, 99), maybe, st.text(st.characters(codec="ascii", categories=["L"])))
def test_an_answer_arrives_as_it_was_sent(version: int, report: bytes, failure: str) -> None:
    answer = Answer(version, report, failure[:500], 0.5, 0.25)
    assert Answer.of(answer.frames()) == answer
    assert answer.lacks == (not report and not failure)


@given(st.dictionaries(st.sampled_from(["description", "plan", "report"]), maybe, max_size=3))
def test_whatever_arrives_nothing_but_a_message_error_comes_of_it(frames: dict[str, bytes]) -> None:
    for kind in (Order, Answer):
        with pytest.raises(MessageError):
            kind.of(frames)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "../../etc/passwd"},
        {"run": RUN.upper()},
        {"updates": -1},
        {"updates": 10**9},
        {"first": -1},
        {"first": 1.0},
        {"aggregated": -2},
        {"more": 1},
    ],
)
def test_an_order_out_of_range_is_refused(changes: dict[str, object]) -> None:
    frames = Order(RUN, b"plan").frames()
    frames["description"] = json.dumps({**json.loads(frames["description"]), **changes}).encode()
    with pytest.raises(MessageError):
        Order.of(frames)


@pytest.mark.parametrize(
    "changes", [{"version": -2}, {"version": True}, {"train_seconds": float("inf")}, {"failure": 1}]
)
def test_an_answer_out_of_range_is_refused(changes: dict[str, object]) -> None:
    frames = Answer(1, b"report").frames()
    frames["description"] = json.dumps({**json.loads(frames["description"]), **changes}).encode()
    with pytest.raises(MessageError):
        Answer.of(frames)


def test_a_failure_from_a_node_is_short_and_printable() -> None:
    frames = Answer(1).frames()
    description = {**json.loads(frames["description"]), "failure": "\x1b[2J\n" + "x" * 10_000}
    text = Answer.of({"description": json.dumps(description).encode()}).failure
    assert len(text) == 500
    assert text.isprintable()


def test_a_node_has_the_recipe_but_for_model_and_data_of_its_own() -> None:
    recipe = parse_recipe(
        {
            "model": {
                "path": "here", "device": "cpu", "dtype": "bfloat16", "rounding": "stochastic"
            },
            "data": {
                "train": "ours.jsonl", "template": "alpaca", "answers": "last", "max_length": 99
            },
            "federation": {"rounds": 3, "clients_per_round": 2, "seed": 8},
            "local": {"optimizer": "adamw", "learning_rate": 0.5, "steps": 4, "clip_by": "tensor"},
            "memory": {"optimizer_in_backward": True, "frozen": "int4", "cache_inputs": "1MiB"},
            "method": {"name": "fedcybgd", "surrogate": 0.5},
            "trainer": {"name": "dpo", "beta": 0.2},
        },
        "a test",
    )  # fmt: skip
    settings = decode_settings(encode_settings(recipe, 7, HASH), "there", "auto", "mine.jsonl")
    assert (settings.clients, settings.base_hash) == (7, HASH)
    model = recipe.model.model_copy(update={"path": "there", "device": "auto"})
    data = recipe.data.model_copy(update={"train": "mine.jsonl"})
    assert settings.recipe == recipe.model_copy(update={"model": model, "data": data})


def test_whatever_a_recipe_says_is_told_or_is_no_affair_of_nodes() -> None:
    """A new key is one of the two; nodes that are not told train something else."""
    assert set(Recipe.model_fields) == {
        *_TABLES, "model", "data", "evaluation", "simulation", "deployment", "check"
    }  # fmt: skip
    whose = {"partition", "by", "clients", "clients_per_source", "alpha", "min_samples"}
    where = {"train", "test", "sources", "columns", "ignore", "hold_out", "test_samples"}
    assert set(DataTable.model_fields) == {*_DATA, *whose, *where}


SETTINGS = encode_settings(quickstart_recipe("ferret"), 7, HASH)


@pytest.mark.parametrize(
    "settings",
    [
        b"{}",
        b"[]",
        b"no settings",
        SETTINGS.replace(b'"clients":7', b'"clients":7,"clients":8'),
        SETTINGS.replace(b'"steps":10', b'"steps":10,"steps":1'),
        SETTINGS.replace(b'"clients":7', b'"clients":7,"more":8'),
        SETTINGS.replace(b'"clients":7', b'"clients":7.0'),
        SETTINGS.replace(b'"clients":7', b'"clients":true'),
        SETTINGS.replace(b'"tables":{', b'"tables":{"data":{"train":"/etc/passwd"},'),
        SETTINGS.replace(b'"tables":{', b'"tables":{"model":{"path":"/"},'),
        SETTINGS.replace(HASH.encode(), b"../" * 10),
        SETTINGS.replace(b'"max_length":null', b'"max_length":NaN'),
        SETTINGS.replace(b"0.3", b"1e999"),
        SETTINGS.decode().encode("utf-16"),
        b"[" * 100_000,
        SETTINGS[:-1] + b" " * (1 << 20) + b"}",
    ],
    ids=range(16),
)
def test_what_are_no_settings_or_could_be_read_in_two_ways_is_an_error(settings: bytes) -> None:
    decode_settings(SETTINGS, "there", "auto", "mine.jsonl")
    assert settings != SETTINGS
    with pytest.raises(UserError, match="the server's task settings are malformed"):
        decode_settings(settings, "there", "auto", "mine.jsonl")


@pytest.mark.parametrize("key", ["run", "version"])
def test_a_description_that_could_be_read_in_two_ways_is_refused(key: str) -> None:
    order, answer = Order(RUN, b"plan").frames(), Answer(1, b"report").frames()
    for frames, kind in ((order, Order), (answer, Answer)):
        description = frames["description"]
        twice = description.replace(b"{", b'{"%s": "%s", ' % (key.encode(), b"f" * 16), 1)
        with pytest.raises(MessageError, match="the description of what was sent"):
            kind.of({**frames, "description": twice})


def test_a_frame_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(MessageError, match="a frame 'more'"):
        Order.of({**Order(RUN, b"plan").frames(), "more": b"x"})
    with pytest.raises(MessageError, match="a frame"):
        Answer.of({**Answer(1, b"report").frames(), "more": b"x"})
