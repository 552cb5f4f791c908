"""Do generators differ? Permutation tests of FID and KID to the same real images, of every pair of generators.

FID takes two eigenvalue decompositions a permutation and KID the kernel of all pairs of samples, so both are tested on
a random part where there are many samples. A test on a part is as valid, and sees smaller differences less often.
Both generators are tested with equal numbers: FID is biased by c/n, so with unequal ones the difference under exchange
is that of the biases, and the test loses its power.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.permutation import permutation_test_fid, permutation_test_kid
from medical_diffusion.evaluation.report.kept import NOTHING_KEPT, KeptFigures

MOST_SAMPLES = {"fid": 1000, "kid": 2000}
"""Of each generator, and real images, in one test."""


def compare(
    features: Mapping[str, np.ndarray], generators: Sequence[str], seed: int = 0, kept: KeptFigures = NOTHING_KEPT
) -> list[dict[str, Any]]:
    """p-values of every pair of generators.

    Args:
        features: (N, F) by name, those of the real images under "real".
        generators: names.
        seed: of the parts and the permutations.
        kept: p-values of earlier runs.

    Returns:
        for each pair ``generators``, ``p_fid``, ``p_kid`` (None with a ``reason`` where there are too few samples),
        ``n_fid`` and ``n_kid``: the samples of each that were compared, and ``tests``: how many pairs there are, by
        which a p-value is to be multiplied before any one of them is called significant (Bonferroni).
    """
    pairs = list(itertools.combinations(generators, 2))
    return [
        {"generators": [a, b], "tests": len(pairs), "seed": seed}
        | kept("comparison", ["real", a, b], partial(_tests, features["real"], features[a], features[b], seed))
        for a, b in pairs
    ]


def _tests(real: np.ndarray, a: np.ndarray, b: np.ndarray, seed: int) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for key, test in (("fid", permutation_test_fid), ("kid", permutation_test_kid)):
        # FID's bias depends on the number: with unequal ones every exchange differs by it, and nothing is found
        most = min(MOST_SAMPLES[key], len(a), len(b))
        first, second = (_part(rows, most, seed) for rows in (a, b))
        entry[f"n_{key}"] = [len(first), len(second)]
        try:
            entry[f"p_{key}"] = test(_part(real, MOST_SAMPLES[key], seed), first, second, seed=seed)
        except UserError as error:
            entry[f"p_{key}"], entry["reason"] = None, str(error)
    return entry


def _part(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])]
