"""Whether an entropy coder would make more of a byte than the codes of fixed length do.

    python benchmarks/entropy.py [--run runs/ferret]

For each group of GroupArgmax: its bits a number, and how much of the squared correlation with a
standard normal variable it keeps, a bit. Beside it, at the same rate, the best uniform quantiser
with a dead zone whose symbols an ideal entropy coder sends (at no overhead: no real one does
better), of as many levels and whatever step do best; and 1 - 2**(-2 rate), the most that any code
can keep. With --run, the codes in a run's log, compressed by LZMA: fixed-length codes waste nothing
if they do not get smaller.
"""

from __future__ import annotations

import argparse
import itertools
import lzma
import math
from pathlib import Path
from statistics import NormalDist

from fullfed.sketch import GroupArgmax

_NORMAL = NormalDist()
_STEPS = [n / 20 for n in range(4, 41)]  # between levels, in standard deviations
_LEVELS = 5  # above zero at most


def dead_zone(edges: tuple[float, ...]) -> tuple[float, float]:
    """Entropy in bits, and what is kept: the energy of each cell's mean.

    Args:
        edges: above zero, of the cells of numbers that are not told as zero; below it the same.
    """
    bits, kept, inside = 0.0, 0.0, 1.0
    for low, high in itertools.pairwise((*edges, math.inf)):
        p = _NORMAL.cdf(-low) - _NORMAL.cdf(-high)
        if p > 0:
            bits -= 2 * p * math.log2(p)
            kept += 2 * (_NORMAL.pdf(low) - _NORMAL.pdf(high)) ** 2 / p
            inside -= 2 * p
    return bits - inside * math.log2(inside), kept


def best_dead_zone(rate: float) -> float:
    """The most that a quantiser of this entropy keeps."""
    more = itertools.product(range(2, _LEVELS + 1), _STEPS)
    shapes = [(0.0,), *(tuple(step * n for n in range(levels)) for levels, step in more)]
    return max(kept for shape in shapes if (kept := _kept_at(rate, shape)) is not None)


def _kept_at(rate: float, shape: tuple[float, ...]) -> float | None:
    """With the threshold, by bisection, at which the entropy is ``rate``; None if none has it."""
    low, high = 0.612, 6.0  # a zero as likely as either sign: more entropy than any rate here
    if dead_zone(tuple(low + s for s in shape))[0] < rate:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        if dead_zone(tuple(middle + s for s in shape))[0] > rate:
            low = middle
        else:
            high = middle
    return dead_zone(tuple(high + s for s in shape))[1]


def compressed(folder: Path) -> str:
    """What LZMA makes of the codes in a run's log."""
    from fullfed.federation.log import read_log
    from fullfed.federation.messages import Update, decode
    from fullfed.runs.folder import RunFolder

    before = after = 0
    for payload in read_log(RunFolder(folder).log_file):
        codes = decode(payload, Update).tensors["codes"].numpy().tobytes()
        before += len(codes)
        after += len(lzma.compress(codes, preset=9 | lzma.PRESET_EXTREME))
    return f"{folder}: {before:,} bytes of codes, {after:,} compressed ({after / before:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, nargs="*", default=[])
    folders = parser.parse_args().run
    print("| group | bits a number | fixed length | entropy-coded | bound |")
    print("|---|---|---|---|---|")
    for group in (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        rate = (math.log2(group) + 1) / group
        kept = (GroupArgmax(group).fidelity, best_dead_zone(rate), 1 - 2 ** (-2 * rate))
        print(f"| {group} | {rate:.4f} | {' | '.join(f'{k / rate:.3f}' for k in kept)} |")
    for folder in folders:
        print(compressed(folder))


if __name__ == "__main__":
    main()
