"""LPIPS with VGG-16 features (Zhang et al. 2018) on one random slice of each volume.

LPIPS knows flat colour images, so a volume is compared on slices (planes across the last axis), the same one of both
volumes, drawn anew for each sample and call. A grey image becomes three equal channels; several channels are compared
one by one.

The library ``lpips`` brings the small linear weights; the VGG-16 features are a separate file of 528 MB, taken from
``weights_file`` or torch's hub folder, and downloaded only where neither has it.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError

VGG_FILE = "vgg16-397923af.pth"
VGG_URL = f"https://download.pytorch.org/models/{VGG_FILE}"
MIN_PLANE = 16
"""VGG-16 halves the plane four times before its last features."""
MOST_SLICES = 16
"""Of a volume that are compared where it is evaluated."""


class PerceptualLoss(nn.Module):
    """Mean LPIPS distance over random slices.

    Args:
        weights_file: VGG-16 weights of torchvision (``vgg16-397923af.pth``); torch's hub folder by default.

    Raises:
        UserError: the extra ``perceptual`` is not installed, or the weights can neither be found nor downloaded.
    """

    def __init__(self, weights_file: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self.network = load_lpips(weights_file)

    def train(self, mode: bool = True) -> PerceptualLoss:
        """A fixed metric: dropout stays off."""
        return super().train(False)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Scalar for two tensors ``(B, C, H, W, D)`` in [-1, 1].

        Raises:
            UserError: different shapes, or a plane below 16 x 16.
        """
        if reconstruction.shape != target.shape or target.ndim != 5:
            raise UserError(
                "two volumes (B, C, H, W, D) of the same shape are needed",
                (tuple(reconstruction.shape), tuple(target.shape)),
            )
        if min(target.shape[2:4]) < MIN_PLANE:
            raise UserError(
                f"LPIPS needs slices of at least {MIN_PLANE} x {MIN_PLANE} pixels",
                tuple(target.shape[2:4]),
                "Set perceptual to none",
            )
        depth = torch.randint(target.shape[4], (target.shape[0],), device=target.device)
        return self.network(_slices(reconstruction, depth), _slices(target, depth)).mean()


def lpips_of_volumes(network: nn.Module, reconstruction: Tensor, target: Tensor) -> Tensor:
    """LPIPS of each volume, the mean over up to 16 slices at equal distances and over the channels.

    Args:
        network: of :func:`load_lpips`.
        reconstruction: (B, C, H, W, D) in [-1, 1].
        target: of the same shape.

    Returns:
        (B,), 0 for equal volumes.
    """
    depths = torch.linspace(0, target.shape[4] - 1, min(MOST_SLICES, target.shape[4])).round().long().tolist()
    distances = []
    for depth in depths:
        index = torch.full((len(target),), depth, device=target.device)
        found = network(_slices(reconstruction, index), _slices(target, index))
        distances.append(found.reshape(len(target), -1).mean(1))
    return torch.stack(distances).mean(0)


def load_lpips(weights_file: str | os.PathLike[str] | None = None, download: bool = True) -> nn.Module:
    """LPIPS-VGG, without gradients for its weights.

    Args:
        weights_file: see :class:`PerceptualLoss`.
        download: where the file is missing; otherwise it has to be there.

    Returns:
        a module that maps two tensors ``(N, 3, H, W)`` in [-1, 1] to distances ``(N, 1, 1, 1)``.

    Raises:
        UserError: as for :class:`PerceptualLoss`.
    """
    try:
        import lpips
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises RuntimeError
        raise UserError(
            "the perceptual loss needs the packages lpips and torchvision",
            str(error),
            'Install the extra with: python -m pip install "medical_diffusion[perceptual]", or set perceptual to none',
        ) from error
    weights = _vgg_weights(weights_file, download)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by arguments that it has renamed
        # random features, filled below: lpips would otherwise download them, pretrained=False included
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    features = network.net.state_dict()
    # slice1.0.weight in lpips is features.0.weight in torchvision
    names = {name: "features." + name.split(".", 1)[1] for name in features}
    missing = sorted(source for source in names.values() if source not in weights)
    if missing:
        raise UserError(f"{VGG_FILE} must hold torchvision's VGG-16 weights", f"{missing[0]} is missing")
    network.net.load_state_dict({name: weights[source] for name, source in names.items()})
    return network.eval().requires_grad_(False)


def _vgg_weights(weights_file: str | os.PathLike[str] | None, download: bool) -> dict[str, Tensor]:
    path = Path(weights_file) if weights_file else Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
    if not path.is_file():
        remedy = f"Download {VGG_URL} elsewhere and put it there, or set perceptual to none"
        if weights_file or not download:
            raise UserError(f"the file of the VGG-16 weights ({VGG_FILE}) must exist", str(path), remedy)
        try:
            torch.hub.load_state_dict_from_url(VGG_URL, map_location="cpu", check_hash=True, weights_only=True)
        except OSError as error:
            raise UserError(
                f"the perceptual loss needs the VGG-16 weights {path}, and they could not be downloaded",
                str(error),
                remedy,
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        remedy = "Delete it and fetch it again"
        raise UserError(f"{VGG_FILE} must be a readable weights file", str(path), remedy) from error


def _slices(volumes: Tensor, depth: Tensor) -> Tensor:
    """Slice ``depth[b]`` of sample b as grey images, ``(B * C, 3, H, W)``."""
    index = depth.view(-1, 1, 1, 1, 1).expand(*volumes.shape[:4], 1)
    return volumes.gather(4, index).squeeze(4).flatten(0, 1).unsqueeze(1).expand(-1, 3, -1, -1)
