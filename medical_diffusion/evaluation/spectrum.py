"""Power spectra: does a synthetic volume carry as much fine detail as a real one?

The mean is subtracted and a Hann window applied along each axis, since the jump between opposite faces of a volume
would otherwise look like detail at all frequencies. Power is scaled so that white noise of variance v has power v at
every frequency (and so, by Parseval's theorem, the mean power over all frequencies is the windowed variance).

Frequencies are in units of each axis' Nyquist frequency (1 is half a cycle per voxel), or in cycles per mm where the
spacing is given. Axes of size 1 have no frequency.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medical_diffusion.errors import UserError

HIGH_FREQUENCY = 0.5
"""Lower end of the high band, in units of the Nyquist frequency."""


def radial_power_spectrum(volumes: Tensor, spacing: Sequence[float] | None = None) -> tuple[Tensor, Tensor]:
    """Power averaged over shells of equal frequency.

    Args:
        volumes: ``(B, C, H, W, D)``; channels are averaged.
        spacing: voxel size in mm along H, W, D; without it frequencies are relative to each axis' Nyquist frequency.

    Returns:
        frequencies ``(K,)``, from 0 to the highest Nyquist frequency of an axis, and power ``(B, K)``. The width of the
        shells is the frequency step of that axis, so that none is empty.

    Raises:
        UserError: volumes of one voxel, or a spacing that is not three positive numbers.
    """
    size = _spatial_size(volumes)
    # frequency per axis and unit of the radius: cycles/mm, or 2 cycles/voxel
    units = [2.0] * len(size) if spacing is None else [1 / s for s in _checked_spacing(spacing, len(size))]
    nyquist = {axis: (0.5 * units[axis], n) for axis, n in enumerate(size) if n > 1}
    finest = max(nyquist, key=lambda axis: nyquist[axis])
    width, shells = units[finest] / size[finest], size[finest] // 2 + 1
    shell = (_radius(size, units) / width + 0.5).floor().long().flatten()
    inside = shell < shells
    power = _power(volumes).flatten(1)[:, inside.to(volumes.device)]
    index = shell[inside].to(volumes.device)
    total = power.new_zeros(power.shape[0], shells).index_add_(1, index, power)
    return torch.arange(shells) * width, (total / torch.bincount(index, minlength=shells)).cpu()


def high_frequency_energy(volumes: Tensor, cutoff: float = HIGH_FREQUENCY) -> Tensor:
    """Energy of the band above half the Nyquist frequency: the variance (intensity²) that it carries.

    It is the power of all frequencies with ``sqrt(f_H² + f_W² + f_D²) > cutoff``, each ``f`` relative to its axis'
    Nyquist frequency (the corners of the spectrum included), divided by the number of all frequencies.

    Args:
        volumes: ``(B, C, H, W, D)``; channels are averaged.
        cutoff: lower end of the band, in units of the Nyquist frequency.

    Returns:
        ``(B,)``.

    Raises:
        UserError: volumes of one voxel.
    """
    size = _spatial_size(volumes)
    high = _radius(size, [2.0] * len(size)) > cutoff
    return (_power(volumes) * high.to(volumes.device)).flatten(1).mean(1).cpu()


def high_frequency_ratio(
    synthetic: Tensor,
    real: Tensor,
    cutoff: float = HIGH_FREQUENCY,
    labels: Sequence[int] | None = None,
    real_labels: Sequence[int] | None = None,
) -> float:
    """Mean high-frequency energy of synthetic volumes by that of real ones: 1 is as sharp, below is blurred.

    With classes, each synthetic volume is held against the real ones of its class. Classes differ in sharpness and are
    rarely as frequent in one set as in the other, so that the plain ratio mixes sharpness with frequency.

    Args:
        synthetic: ``(N, C, H, W, D)``.
        real: ``(M, C, H, W, D)`` in the same units.
        cutoff: see :func:`high_frequency_energy`.
        labels: class of each synthetic volume; None compares all with all.
        real_labels: class of each real volume.

    Raises:
        UserError: labels of one side only, or a class without real volumes.
    """
    if (labels is None) != (real_labels is None):
        raise UserError("classes of synthetic and of real volumes are given together", "one of them")
    energy, real_energy = high_frequency_energy(synthetic, cutoff), high_frequency_energy(real, cutoff)
    if labels is None or real_labels is None:
        return (energy.mean() / real_energy.mean()).item()
    missing = sorted(set(labels) - set(real_labels))
    if missing:
        raise UserError("every class of the synthetic volumes needs real ones", f"none of class {missing[0]}")
    of_class = torch.tensor(real_labels)
    expected = {label: real_energy[of_class == label].mean() for label in set(labels)}
    return (energy.mean() / torch.stack([expected[label] for label in labels]).mean()).item()


def _spatial_size(volumes: Tensor) -> list[int]:
    if volumes.ndim < 3 or max(volumes.shape[2:]) < 2:
        raise UserError("a spectrum needs volumes (B, C, H, W, D) with more than one voxel", tuple(volumes.shape))
    return list(volumes.shape[2:])


def _checked_spacing(spacing: Sequence[float], axes: int) -> list[float]:
    if len(spacing) != axes or not all(s > 0 for s in spacing):
        raise UserError(f"spacing must be {axes} positive numbers in mm", tuple(spacing))
    return [float(s) for s in spacing]


def _radius(size: Sequence[int], units: Sequence[float]) -> Tensor:
    """Distance of every frequency from zero, of the shape ``size``."""
    squared = torch.zeros(*size, dtype=torch.float64)
    for axis, (n, unit) in enumerate(zip(size, units, strict=True)):
        shape = [-1 if a == axis else 1 for a in range(len(size))]
        squared = squared + (torch.fft.fftfreq(n, dtype=torch.float64) * unit).square().reshape(shape)
    return squared.sqrt()


def _power(volumes: Tensor) -> Tensor:
    """Power at every frequency, averaged over channels, ``(B, *spatial)``."""
    axes = [axis for axis in range(2, volumes.ndim) if volumes.shape[axis] > 1]
    x = volumes.to(torch.promote_types(volumes.dtype, torch.float32))
    x = x - x.mean(axes, keepdim=True)
    for axis in axes:
        size = x.shape[axis]
        # Hann's window between the voxels' centres: nowhere zero, so that two voxels are enough
        window = torch.sin(torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size) ** 2
        window = window / window.square().mean().sqrt()
        x = x * window.to(x).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return torch.fft.fftn(x, dim=axes, norm="ortho").abs().square().mean(1)
