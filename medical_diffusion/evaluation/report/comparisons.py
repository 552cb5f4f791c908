"""Do generators differ? Permutation tests of FID and KID to the same real images, of every pair of generators.

FID takes two eigenvalue decompositions a permutation and KID the kernel of all pairs of samples, so both are tested on
a random part where there are many samples. A test on a part is as valid, and sees smaller differences less often.
Both generators are tested with equal numbers: FID is biased by c/n, so with unequal ones the difference under exchange
is that of the biases, and the test loses its power.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.permutation import permutation_test_fid, permutation_test_kid

MOST_SAMPLES = {"fid": 1000, "kid": 2000}
"""Of each generator, and real images, in one test."""


def compare(features: Mapping[str, np.ndarray], generators: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """p-values of every pair of generators.

    Args:
        features: (N, F) by name, those of the real images under "real".
        generators: names.
        seed: of the parts and the permutations.

    Returns:
        for each pair ``generators``, ``p_fid``, ``p_kid`` (None with a ``reason`` where there are too few samples),
        ``n_fid`` and ``n_kid``: the samples of each that were compared, and ``tests``: how many pairs there are, by
        which a p-value is to be multiplied before any one of them is called significant (Bonferroni).
    """
    pairs = list(itertools.combinations(generators, 2))
    found = []
    for a, b in pairs:
        entry: dict[str, Any] = {"generators": [a, b], "tests": len(pairs), "seed": seed}
        for key, test in (("fid", permutation_test_fid), ("kid", permutation_test_kid)):
            # FID's bias depends on the number: with unequal ones every exchange differs by it, and nothing is found
            most = min(MOST_SAMPLES[key], len(features[a]), len(features[b]))
            real = _part(features["real"], MOST_SAMPLES[key], seed)
            first, second = (_part(features[name], most, seed) for name in (a, b))
            entry[f"n_{key}"] = [len(first), len(second)]
            try:
                entry[f"p_{key}"] = test(real, first, second, seed=seed)
            except UserError as error:
                entry[f"p_{key}"], entry["reason"] = None, str(error)
        found.append(entry)
    return found


def _part(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])]
