"""How well the autoencoder gives volumes back: MSE, PSNR, MS-SSIM, LPIPS, sharpness, beside plain interpolation.

The baseline shrinks the volume as much as the latent does, by trilinear down- and upsampling: an autoencoder has to
beat it to have learned anything. A number is per volume, and a table shows mean ± standard deviation over volumes; but
sharpness, the high-frequency energy of all reconstructions by that of all volumes, is one ratio. MSE and PSNR are
MONAI's, in float64; MS-SSIM is that of :mod:`medical_diffusion.losses.ssim`, which says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from monai.metrics import MSEMetric, PSNRMetric
from torch import Tensor
from torch.nn import functional

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.spectrum import high_frequency_energy
from medical_diffusion.losses.ssim import ms_ssim


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation over volumes, NaN for a single volume or where a figure has none."""

    mean: float
    std: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if math.isnan(self.std) else f"{self.mean:.4g} ± {self.std:.2g}"


def summarise(values: Tensor | Sequence[float]) -> Summary:
    """Summary of one number per volume, ``(N,)``.

    Raises:
        UserError: no volume.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.numel() == 0:
        raise UserError("a summary needs at least one volume")
    std = values.std().item() if values.numel() > 1 else math.nan
    return Summary(values.mean().item(), std, values.numel())


def mean_squared_error(x: Tensor, y: Tensor) -> Tensor:
    """``(B,)`` from two tensors ``(B, ...)``."""
    return MSEMetric()(x.double(), y.double())[:, 0]


def psnr(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``10 log10(data_range² / MSE)``; infinite for equal volumes.

    Args:
        x: ``(B, ...)``.
        y: of the same shape.
        data_range: difference between the largest and the smallest possible value, 2 for images in [-1, 1].

    Returns:
        ``(B,)``, float64.
    """
    return PSNRMetric(data_range)(x.double(), y.double())[:, 0]


def reconstruction_metrics(reconstruction: Tensor, target: Tensor, data_range: float = 2.0) -> dict[str, Tensor]:
    """``psnr`` (dB), ``mse`` and ``ms_ssim`` of each volume, ``(B,)`` each.

    Args:
        reconstruction: ``(B, C, H, W, D)``.
        target: of the same shape.
        data_range: difference between the largest and the smallest possible value, 2 for images in [-1, 1].

    Raises:
        UserError: different shapes or ``data_range`` not positive.
    """
    # first, because it checks its input
    similarity = ms_ssim(reconstruction, target, data_range)
    return {
        "psnr": psnr(reconstruction, target, data_range),
        "mse": mean_squared_error(reconstruction, target),
        "ms_ssim": similarity,
    }


def trilinear_baseline(volumes: Tensor, compression: Sequence[int]) -> Tensor:
    """The volumes after trilinear down- and upsampling.

    Averaging whole blocks on the way down instead is the same at 2 and scores lower at 4: the way up blurs once more.

    Args:
        volumes: ``(B, C, H, W, D)``.
        compression: factor of each axis; an axis is never made shorter than 1.

    Returns:
        of the same shape.
    """
    size = volumes.shape[2:]
    small = [max(1, n // c) for n, c in zip(size, compression, strict=True)]
    reduced = functional.interpolate(volumes, small, mode="trilinear", align_corners=False)
    return functional.interpolate(reduced, size, mode="trilinear", align_corners=False)


class ReconstructionScore:
    """Collects the metrics of volumes and of the interpolation baseline, batch by batch.

    Args:
        compression: of the autoencoder, per axis.
        data_range: difference between the largest and the smallest possible value, 2 for images in [-1, 1].
        lpips: LPIPS of two batches as (B,), which becomes a metric too.
    """

    def __init__(
        self,
        compression: Sequence[int],
        data_range: float = 2.0,
        lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.compression, self.data_range, self.lpips = tuple(compression), data_range, lpips
        self.values: dict[str, list[float]] = {}
        self.energy = dict.fromkeys(("", "baseline_", "target"), 0.0)

    @torch.no_grad()
    def update(self, reconstruction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Adds a batch ``(B, C, H, W, D)`` and returns its metrics ``(B,)``, the baseline's as ``baseline_...``."""
        metrics = self._of(reconstruction, target)
        baseline = trilinear_baseline(target, self.compression)
        metrics |= {f"baseline_{name}": value for name, value in self._of(baseline, target).items()}
        for name, value in metrics.items():
            self.values.setdefault(name, []).extend(value.tolist())
        for name, volumes in zip(self.energy, (reconstruction, baseline, target), strict=True):
            self.energy[name] += high_frequency_energy(volumes).double().sum().item()
        return metrics

    def _of(self, volumes: Tensor, target: Tensor) -> dict[str, Tensor]:
        metrics = reconstruction_metrics(volumes, target, self.data_range)
        return metrics if self.lpips is None else metrics | {"lpips": self.lpips(volumes, target)}

    def summary(self) -> dict[str, Summary]:
        """Mean and standard deviation of each metric over all volumes so far, and of the gain in dB.

        ``psnr_gain`` is the PSNR above the baseline's, volume by volume. ``high_frequency_ratio`` is that of
        :func:`~medical_diffusion.evaluation.spectrum.high_frequency_ratio`, left out where the volumes have no detail.

        Raises:
            UserError: no volume yet.
        """
        if not self.values:
            raise UserError("a summary needs at least one volume")
        result = {name: summarise(values) for name, values in self.values.items()}
        gains = [a - b for a, b in zip(self.values["psnr"], self.values["baseline_psnr"], strict=True)]
        result["psnr_gain"] = summarise(gains)
        if target := self.energy["target"]:
            for prefix in ("", "baseline_"):
                result[f"{prefix}high_frequency_ratio"] = Summary(self.energy[prefix] / target, math.nan, len(gains))
        return result
