"""What coordinates in few bits cost, in copies of the model.

    python benchmarks/codes.py [--threads 2] [--elements N] [--device cuda]

A model of 2**26 float32, or of as many as said, in 109 tensors, and as many coordinates as are 1 /
ratio of its bytes (one for each parameter at most). A client projects and encodes, everybody
reconstructs from the codes, for each client of the cohort where directions are its own. "decode"
decodes all of them first, "reconstruct" is from numbers. Each time is the best of several, over
that of a copy of the model measured in turn with it. All of it is on the device, a GPU where there
is one; "encode and send" has the copy of the codes to the host too.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from fullfed.sketch import Purpose, SignBasis, Stream, affordable
from sketch import in_tensors, seconds

COLUMNS = [
    "ratio",
    "K",
    "code",
    "project",
    "encode",
    "encode and send",
    "decode",
    "reconstruct",
    "reconstruct from codes",
]


def row(d: int, ratio: int, device: str) -> str:
    """One line of the table."""
    count, code = affordable(4 * d // ratio, d)
    assert code is not None
    basis = SignBasis(seed=1, round=1, coordinates=count)
    stream = Stream(1, Purpose.CODES, 1, 1)
    delta = torch.randn(d, generator=torch.Generator().manual_seed(1)).to(device)
    weights = torch.zeros_like(delta)
    deltas, models = in_tensors(delta), in_tensors(weights)
    y = basis.project(deltas)
    sent, room = code.encode(y, stream), torch.empty(code.padded(count), device=device)
    copy, *times = seconds(
        device,
        lambda: weights.copy_(delta),
        lambda: basis.project(deltas),
        lambda: code.encode(y, stream),
        lambda: code.encode(y, stream).codes.cpu(),
        lambda: replace(sent, room=room).numbers,
        lambda: basis.reconstruct_(models, y),
        lambda: basis.reconstruct_(models, replace(sent, room=room)),
        repeats=7,
    )
    cells = [f"{taken / copy:.2f}" for taken in times]
    return f"| {ratio:,} | {count:,} | {code} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--elements", type=int, default=1 << 26)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    for ratio in (32, 100, 1000, 10000):
        print(row(options.elements, ratio, options.device), flush=True)


if __name__ == "__main__":
    main()
