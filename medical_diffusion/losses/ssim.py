"""Structural similarity (Wang et al. 2004) and its multi-scale form (Wang et al. 2003) for volumes and images.

With local means, variances and covariance under a Gaussian window (sigma 1.5, 11 wide, whole windows only):

    l = (2 mu_x mu_y + C1) / (mu_x² + mu_y² + C1)        cs = (2 s_xy + C2) / (s_x² + s_y² + C2)
    SSIM = mean(l cs)        MS-SSIM = mean(l_M cs_M)^w_M  prod_{j < M} mean(cs_j)^w_j

Any size works. An axis of size 1 is not filtered, a short one gets a narrower window, and between two scales only those
axes are halved that stay at least a window long; the number of scales follows from that, and the published weights of
the scales used are scaled to sum to 1.

The window is separable. Along each axis it is a matrix product with a banded matrix: on a CPU ten times as fast at 64³
as a depthwise convolution, forward and backward, and without its reduced precision on a GPU.

Why no library's: with the published window and five scales, MS-SSIM of MONAI and of torchmetrics refuses every image
with an axis shorter than 176 voxels, and their SSIM an axis of size 1. Where MONAI's take an image, these give the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medical_diffusion.errors import UserError, did_you_mean

WINDOW_SIZE = 11
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales, finest first (Wang et al. 2003, Section 3.2)."""

MIN_CONTRAST = 1e-4
"""Negative similarities have no fractional power, and at zero it has no finite gradient."""


def ssim(x: Tensor, y: Tensor, data_range: float, window_size: int = WINDOW_SIZE, sigma: float = 1.5) -> Tensor:
    """Mean structural similarity of each sample.

    Args:
        x: ``(B, C, H, W[, D])``, any float type; computed in float32 at least.
        y: of the same shape.
        data_range: difference between the largest and the smallest possible value, 2 for images in [-1, 1].
        window_size: width of the Gaussian window in voxels, odd.
        sigma: its standard deviation in voxels.

    Returns:
        ``(B,)``, in [-1, 1], 1 for equal images.

    Raises:
        UserError: different shapes, no spatial axis, ``data_range`` not positive, ``window_size`` not odd.
    """
    x, y = _checked(x, y, data_range, window_size)
    with torch.autocast(x.device.type, enabled=False):
        luminance, contrast = _similarities(x, y, data_range, window_size, sigma)
        return (luminance * contrast).flatten(1).mean(1)


def ms_ssim(
    x: Tensor,
    y: Tensor,
    data_range: float,
    window_size: int = WINDOW_SIZE,
    sigma: float = 1.5,
    scale_weights: Sequence[float] = SCALE_WEIGHTS,
) -> Tensor:
    """Multi-scale structural similarity of each sample, over as many scales as the size allows.

    Args:
        x: ``(B, C, H, W[, D])``, any float type; computed in float32 at least.
        y: of the same shape.
        data_range: difference between the largest and the smallest possible value, 2 for images in [-1, 1].
        window_size: width of the Gaussian window in voxels, odd.
        sigma: its standard deviation in voxels.
        scale_weights: exponents, finest scale first; their number is the largest number of scales.

    Returns:
        ``(B,)``, in [0, 1], 1 for equal images.

    Raises:
        UserError: as for :func:`ssim`.
    """
    x, y = _checked(x, y, data_range, window_size)
    strides = scale_strides(x.shape[2:], window_size, len(scale_weights))
    used = scale_weights[: len(strides) + 1]
    weights = [weight / sum(used) for weight in used]
    with torch.autocast(x.device.type, enabled=False):
        result = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
        for scale, weight in enumerate(weights):
            luminance, contrast = _similarities(x, y, data_range, window_size, sigma)
            coarsest = scale == len(strides)
            similarity = (luminance * contrast if coarsest else contrast).flatten(2).mean(2)
            result = result * similarity.clamp(min=MIN_CONTRAST) ** weight
            if not coarsest:
                x, y = _pool(x, strides[scale]), _pool(y, strides[scale])
        return result.mean(1)


def scale_strides(size: Sequence[int], window_size: int, max_scales: int) -> list[tuple[int, ...]]:
    """The stride per axis between each scale and the next: 2 where the axis stays at least a window long, else 1."""
    current, strides = list(size), []
    for _ in range(max_scales - 1):
        stride = tuple(2 if n // 2 >= window_size else 1 for n in current)
        if max(stride) == 1:
            break
        strides.append(stride)
        current = [n // s for n, s in zip(current, stride, strict=True)]
    return strides


class StructuralLoss(nn.Module):
    """``1 - MS-SSIM`` or ``1 - SSIM``, averaged over the batch: a perceptual term without weights to download.

    Either takes images of any size, depth 1 included.

    Args:
        kind: ``"ms_ssim"``, or ``"ssim"`` (Medfusion's).
        data_range: difference between the largest and the smallest possible value, 2 for images in [-1, 1].
        window_size: width of the Gaussian window in voxels, odd.
        sigma: its standard deviation in voxels.

    Raises:
        UserError: unknown kind.
    """

    def __init__(
        self,
        kind: Literal["ms_ssim", "ssim"] = "ms_ssim",
        data_range: float = 2.0,
        window_size: int = WINDOW_SIZE,
        sigma: float = 1.5,
    ) -> None:
        super().__init__()
        if kind not in SIMILARITIES:
            raise UserError("kind must be ms_ssim or ssim", kind, did_you_mean(str(kind), SIMILARITIES))
        self.kind, self.data_range, self.window_size, self.sigma = kind, data_range, window_size, sigma

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Scalar for two tensors ``(B, C, H, W[, D])``: in [0, 1] for MS-SSIM, in [0, 2] for SSIM."""
        similarity = SIMILARITIES[self.kind]
        return 1 - similarity(reconstruction, target, self.data_range, self.window_size, self.sigma).mean()


SIMILARITIES = {"ms_ssim": ms_ssim, "ssim": ssim}


def _checked(x: Tensor, y: Tensor, data_range: float, window_size: int) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape:
        raise UserError("two images of the same shape are needed", (tuple(x.shape), tuple(y.shape)))
    if x.ndim < 3:
        raise UserError("images need a batch, a channel and at least one spatial axis", tuple(x.shape))
    if not data_range > 0:
        raise UserError("data_range must be positive", data_range, "Images in [-1, 1] have data_range 2")
    if window_size < 1 or window_size % 2 == 0:
        raise UserError("window_size must be odd and positive", window_size)
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(dtype).contiguous(), y.to(dtype).contiguous()


def _similarities(x: Tensor, y: Tensor, data_range: float, window_size: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure of every whole window, each ``(B, C, ...)``."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    # only the sum of the two variances is needed: four maps to filter instead of five
    mean_x, mean_y, mean_square, mean_product = _filter(torch.stack([x, y, x * x + y * y, x * y]), window_size, sigma)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    luminance = (2 * product + c1) / (squares + c1)
    contrast = (2 * (mean_product - product) + c2) / (mean_square - squares + c2)
    return luminance, contrast


def _filter(maps: Tensor, window_size: int, sigma: float) -> Tensor:
    """Gaussian means over whole windows of ``(maps, B, C, *spatial)``."""
    for axis in range(3, maps.ndim):
        size = maps.shape[axis]
        if size == 1:
            continue
        # the largest odd width that fits
        width = min(window_size, size if size % 2 else size - 1)
        band = _gaussian_band(size, width, sigma).to(maps)
        before, after = maps.shape[:axis], maps.shape[axis + 1 :]
        if after:
            rows = band.T @ maps.reshape(before.numel(), size, after.numel())
        else:
            rows = maps @ band
        maps = rows.reshape(*before, size - width + 1, *after)
    return maps


def _gaussian_band(size: int, width: int, sigma: float) -> Tensor:
    """``(size, size - width + 1)``: column j holds the window that starts at row j."""
    window = torch.exp(-0.5 * ((torch.arange(width, dtype=torch.float64) - width // 2) / sigma) ** 2)
    window = window / window.sum()
    columns = torch.arange(size - width + 1)
    band = torch.zeros(size, size - width + 1, dtype=torch.float64)
    for offset in range(width):
        band[columns + offset, columns] = window[offset]
    return band


def _pool(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Means of neighbours along the axes with stride 2; an odd last plane is left out."""
    return _POOLS[len(stride)](x, stride)


_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
