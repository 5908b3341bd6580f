"""What a check found, as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from fullfed.preflight.check import Check
from fullfed.preflight.memory import Memory
from fullfed.preflight.samples import Passage, Samples
from fullfed.preflight.timing import Timing
from fullfed.units import bytes_text, seconds_text

_NAMED = 12  # clients that are listed one by one
_BINS, _BAR = 8, 40  # of a histogram: its lines, and the longest one's marks
_SHOWN = 600  # characters of a passage


def report(found: Check, colour: bool) -> Text:
    """All of it.

    Args:
        colour: whether what is learned of a sample shows by its colour; else it is in brackets.
    """
    recipe, work = found.recipe, found.work
    lines = [
        f"{recipe.method.name}: {recipe.federation.rounds} rounds, {work.visits:,} visits, "
        f"{work.steps:,} steps, {found.evaluations} evaluations, on {found.device}",
        *_clients(found.samples),
        *_tokens(found),
        "",
        f"a sample of {next(iter(found.samples.by_client))}, what is learned "
        f"{'in green' if colour else 'between [[ and ]]'}:",
    ]
    text = Text("\n".join(lines) + "\n")
    text.append_text(_sample(found.samples.shown, colour))
    return text.append("\n\n" + "\n".join(_costs(found)))


def _clients(samples: Samples) -> Iterator[str]:
    counts = samples.by_client
    total = sum(counts.values())
    yield f"{len(counts)} clients have {total:,} samples, the test set {samples.test:,}"
    if len(counts) <= _NAMED:
        width = max(map(len, counts))
        yield from (f"  {name:<{width}}  {count:,}" for name, count in counts.items())
    else:
        yield from histogram(list(counts.values()))


def histogram(counts: Sequence[int]) -> list[str]:
    """A line for each range of numbers: how many there are in it."""
    least, most = min(counts), max(counts)
    width = -(-(most - least + 1) // _BINS)
    starts = range(least, most + 1, width)
    found = [sum(start <= count < start + width for count in counts) for start in starts]
    ranges = [
        f"{start:,}" if width == 1 else f"{start:,} to {min(start + width - 1, most):,}"
        for start in starts
    ]
    left = max(map(len, ranges))
    return [
        f"  {samples:>{left}} samples  {'#' * -(-_BAR * clients // max(found))} {clients}"
        for samples, clients in zip(ranges, found, strict=True)
    ]


def _tokens(found: Check) -> Iterator[str]:
    samples, work = found.samples, found.work
    yield (
        f"tokens of a sample: median {samples.median_tokens:g}, longest {samples.longest_tokens}, "
        f"at most {samples.most_tokens}; {1 - work.tokens / work.padded:.1%} of a step are padding"
    )
    yield (
        f"{samples.shortened} prompts shortened, {samples.dropped} samples too long and left out, "
        f"{samples.empty} answers empty"
    )


def _sample(shown: Sequence[Passage], colour: bool) -> Text:
    text = Text()
    for passage in shown:
        own = _middle_left_out(passage.text)
        if passage.learned and not colour:
            own = f"[[{own}]]"
        text.append(own, "green" if passage.learned and colour else "")
    return text


def _middle_left_out(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    return f"{text[: _SHOWN // 2]} (...) {text[-_SHOWN // 2 :]}"


def _costs(found: Check) -> Iterator[str]:
    costs = found.costs
    yield (
        f"{costs.parameters:,} parameters, {costs.trained_parameters:,} trained in a visit of "
        f"{costs.steps:g} steps"
    )
    yield f"a visit sends {costs.up_text} and {bytes_text(costs.bytes_down)} down"
    yield (
        f"the run sends {bytes_text(costs.run_bytes_up)} up and "
        f"{bytes_text(costs.run_bytes_down)} down"
    )
    if costs.class_bytes:
        classes = [f"{name} {bytes_text(own)}" for name, own in costs.class_bytes.items()]
        yield f"memory of a visit, but for activations: {', '.join(classes)}"
    if costs.scales_bytes:
        yield (
            "the sketch's scales are measured on the base model before the first round, and sent "
            f"once: {bytes_text(costs.scales_bytes)}"
        )
    yield from _memory(found.memory)
    if found.timing is not None:
        yield from _timing(found.timing, found)


def _memory(memory: Memory) -> Iterator[str]:
    beside = f", {bytes_text(memory.server)} for the server beside it" if memory.server else ""
    beside += f" and {bytes_text(memory.process)} of this program" if memory.process else ""
    yield (
        f"memory, by formula: {bytes_text(memory.peak)} of {bytes_text(memory.there)} here, "
        f"{bytes_text(memory.visit)} for a visit{beside}"
    )
    if memory.together > memory.peak:
        yield (
            f"memory of the run's process and {memory.workers} worker processes at once: "
            f"{bytes_text(memory.together)}"
        )
    if memory.together > memory.there:
        yield "  more than there is: docs/memory.md says what needs less"


def _timing(timing: Timing, found: Check) -> Iterator[str]:
    if timing.peak_bytes is not None:
        yield f"memory, measured in a short visit: {bytes_text(timing.peak_bytes)}"
    yield (
        f"time, by that visit: {seconds_text(timing.step_seconds)} a step, "
        f"{seconds_text(timing.visit_seconds)} a visit, "
        f"{seconds_text(timing.evaluation_seconds)} an evaluation"
    )
    if found.recipe.check is not None:
        yield f"the held-out check of a round's reports: {seconds_text(timing.check_seconds)}"
    yield f"the run: {seconds_text(timing.run_seconds)}, if clients work one after another"
