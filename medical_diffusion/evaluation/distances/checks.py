"""What every distance asks of its two sets of features."""

from __future__ import annotations

import numpy as np

from medical_diffusion.errors import UserError


def checked_features(name: str, features: np.ndarray, minimum: int, metric: str) -> np.ndarray:
    """``features`` as a float array (N, F), not copied where it is one.

    Raises:
        UserError: not two axes, fewer than ``minimum`` images, no feature, or a value that is not finite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] == 0:
        raise UserError(f"{name} features must have the shape (images, features)", features.shape)
    if len(features) < minimum:
        raise UserError(
            f"{metric} needs at least {minimum} {name} images", f"{len(features)}", "Give more images, or leave it out"
        )
    if features.dtype not in (np.float32, np.float64):
        features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise UserError(f"{name} features must be finite", f"{int((~np.isfinite(features)).sum())} that are not")
    return features


def checked_pair(real: np.ndarray, synthetic: np.ndarray, minimum: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Both sets, with as many features.

    Raises:
        UserError: as :func:`checked_features`, or another number of features.
    """
    real = checked_features("real", real, minimum, metric)
    synthetic = checked_features("synthetic", synthetic, minimum, metric)
    if real.shape[1] != synthetic.shape[1]:
        raise UserError(
            "real and synthetic images must have as many features",
            f"{real.shape[1]} and {synthetic.shape[1]}",
            "Extract both with the same extractor",
        )
    return real, synthetic
