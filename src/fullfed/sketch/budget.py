"""What a byte budget is best spent on: how many coordinates, in how many bits."""

from __future__ import annotations

from fullfed.sketch.coded import Code
from fullfed.sketch.codes import LEVELS, Largest, Rounded

_SPARSEST = 1024  # numbers of which one is sent; more gain little
_SPREAD = 4  # parameters a number must be made of, where few of the numbers are sent


def affordable(nbytes: int, most: int, times: int = 1) -> tuple[int, Code | None]:
    """The K <= ``most`` and the code, None for float32, that make the best of ``nbytes``.

    One scale comes free, as part of a report's header; those of further blocks are paid for.

    K (1 - D) is what counts, or K (1 - D)**times where what was decoded is coded again so many
    ``times`` in all. So it is the code with most of it a bit that there are numbers
    enough for. Numbers of which few are sent are not to be more than a quarter of ``most``, so that
    reconstructing from them costs a copy or two of all the parameters, and not several.
    """
    codes: list[Code] = [Largest(1 << n) for n in range(_SPARSEST.bit_length())]
    codes += [Rounded(bits) for bits in LEVELS]
    choices: list[tuple[int, Code | None]] = [(min(most, nbytes // 4), None)]
    for code in codes:
        sparse = isinstance(code, Largest) and code.group > 1
        choices.append((_fitting(nbytes, most // _SPREAD if sparse else most, code), code))

    def worth(choice: tuple[int, Code | None]) -> float:
        count, code = choice
        return count * code.fidelity**times if code else float(count)

    return max(choices, key=worth)


def _fitting(nbytes: int, most: int, code: Code) -> int:
    """The most numbers, ``most`` at most, whose codes and further scales fit ``nbytes``."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if code.nbytes(middle) + 4 * (code.blocks(middle) - 1) <= nbytes:
            low = middle
        else:
            high = middle - 1
    return low
