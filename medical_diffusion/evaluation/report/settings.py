"""The settings of every figure of a report, from where they are defined: what the hash of its protocol covers."""

from __future__ import annotations

from typing import Any

from medical_diffusion.evaluation import copies, copy_rate, feature_views
from medical_diffusion.evaluation.bootstrap import LEVEL, RESAMPLES
from medical_diffusion.evaluation.distances.kid import SUBSET_SIZE, SUBSETS
from medical_diffusion.evaluation.distances.manifold import NEIGHBOURS
from medical_diffusion.evaluation.diversity import PAIRS
from medical_diffusion.evaluation.permutation import FID_PERMUTATIONS, PERMUTATIONS
from medical_diffusion.evaluation.report import comparisons, figures, utility
from medical_diffusion.evaluation.spectrum import HIGH_FREQUENCY


def settings(utility_steps: int | None) -> dict[str, Any]:
    """Numbers by figure, for JSON.

    Args:
        utility_steps: of the classifiers; None where there are no labels.
    """
    return {
        "kid": {"subset_size": SUBSET_SIZE, "subsets": SUBSETS},
        "manifold": {"neighbours": NEIGHBOURS},
        "ms_ssim": {"pairs": PAIRS},
        "high_frequency_ratio": {"above": HIGH_FREQUENCY},
        "intervals": {
            "level": LEVEL,
            "resamples": RESAMPLES,
            "repeats": figures.INTERVAL_REPEATS,
            "share": figures.INTERVAL_SHARE,
            "most_in_subset": figures.MOST_IN_SUBSET,
            "fewest_in_small_share": figures.FEWEST_IN_SMALL_SHARE,
        },
        "comparisons": {
            "permutations": {"fid": FID_PERMUTATIONS, "kid": PERMUTATIONS},
            "most_samples": comparisons.MOST_SAMPLES,
        },
        "copies": {
            "shift": copies.SHIFT,
            "working_size": copies.WORKING_SIZE,
            "coefficients": copies.MAX_COEFFICIENTS,
            "candidates": copies.CANDIDATES,
            "noise_levels": list(copies.NOISE_LEVELS),
            "search_noise": copies.SEARCH_NOISE,
            "false_alarm_rates": list(copy_rate.FALSE_ALARM_RATES),
            "sensitivity": [copy_rate.LEAST_SENSITIVITY, copy_rate.SENSITIVITY],
            "strangers": [copy_rate.FEWEST_STRANGERS, copy_rate.MAX_STRANGERS],
            "planted": {"images": copy_rate.PLANTED, "noise": copy_rate.PLANTED_NOISE},
        },
        "feature_copies": {
            "mean": feature_views.MEAN,
            "deviation": feature_views.DEVIATION,
            "averaged": feature_views.AVERAGED,
            "shortest_axis": feature_views.SHORTEST_AXIS,
        },
        "utility": None
        if utility_steps is None
        else {
            "steps": utility_steps,
            "most_images": utility.MOST_IMAGES,
            "most_bytes": utility.MOST_BYTES,
            "working_size": utility.WORKING_SIZE,
        },
    }
