"""Who takes part follows from the seed and the round, and from nothing else."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from fullfed.methods.schedules import SampledCohort

SEED = st.integers(0, 2**64 - 1)
ROUND = st.integers(0, 2**32 - 1)


@given(SEED, ROUND, st.integers(1, 200), st.data())
def test_a_cohort_is_so_many_different_clients_in_increasing_order(
    seed: int, round: int, clients: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, clients))
    cohort = SampledCohort(seed, clients, size).cohort(round)
    assert len(cohort) == size
    assert list(cohort) == sorted(set(cohort))
    assert set(cohort) <= set(range(clients))
    torch.manual_seed(round)
    assert SampledCohort(seed, clients, size).cohort(round) == cohort


def test_another_process_samples_the_same_cohort() -> None:
    what = "SampledCohort(3, 170, 9).cohort(8)"
    code = f"from fullfed.methods.schedules import SampledCohort; print({what})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(SampledCohort(3, 170, 9).cohort(8))


def test_every_client_takes_part_equally_often() -> None:
    rounds, clients, size = 2000, 10, 3
    counts = Counter(c for r in range(rounds) for c in SampledCohort(1, clients, size).cohort(r))
    share = size / clients
    deviation = math.sqrt(rounds * share * (1 - share))
    assert all(abs(counts[c] - rounds * share) < 4.5 * deviation for c in range(clients))


def test_every_pair_meets_equally_often() -> None:
    rounds = 3000
    pairs = Counter(SampledCohort(2, 5, 2).cohort(r) for r in range(rounds))
    deviation = math.sqrt(rounds * 0.1 * 0.9)
    assert len(pairs) == 10
    assert all(abs(count - rounds / 10) < 4.5 * deviation for count in pairs.values())


def test_seeds_and_rounds_have_cohorts_of_their_own() -> None:
    assert len({SampledCohort(seed, 1000, 10).cohort(0) for seed in range(50)}) == 50
    assert len({SampledCohort(0, 1000, 10).cohort(round) for round in range(50)}) == 50
