"""Names and small rules for shapes: tensors are ``(batch, channel, H, W, D)``, depth (the slice axis) last."""

from __future__ import annotations

from collections.abc import Sequence

from medical_diffusion.errors import UserError

SPATIAL_AXES = 3


def per_axis(value: int | Sequence[int], name: str) -> tuple[int, int, int]:
    """One positive whole number for each of H, W, D, from one number or three.

    Raises:
        UserError: not one or three positive whole numbers.
    """
    values = [value] * SPATIAL_AXES if isinstance(value, int) else list(value)
    if len(values) != SPATIAL_AXES or any(isinstance(v, bool) or int(v) != v or v < 1 for v in values):
        raise UserError(f"{name} must be one or three positive whole numbers (H, W, D)", value)
    return (int(values[0]), int(values[1]), int(values[2]))


def latent_size(image_size: Sequence[int], compression: Sequence[int]) -> tuple[int, int, int]:
    """Spatial size of the latent; an axis of size 1 is never compressed.

    Raises:
        UserError: an axis is not divisible by its compression.
    """
    strides = effective_compression(image_size, compression)
    bad = [axis for axis, size, stride in zip("HWD", image_size, strides, strict=True) if size % stride]
    if bad:
        raise UserError(
            f"image_size must be divisible by the compression {tuple(strides)} along {', '.join(bad)}",
            tuple(image_size),
            f"Use for example {tuple(-(-s // c) * c for s, c in zip(image_size, strides, strict=True))}",
        )
    h, w, d = (size // stride for size, stride in zip(image_size, strides, strict=True))
    return (h, w, d)


def effective_compression(image_size: Sequence[int], compression: Sequence[int]) -> tuple[int, int, int]:
    """Compression per axis with 1 wherever the axis has size 1."""
    h, w, d = (1 if size == 1 else stride for size, stride in zip(image_size, compression, strict=True))
    return (h, w, d)
