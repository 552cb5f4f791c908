"""Another project's autoencoder as codec: an ``AutoencoderKL`` in diffusers' format, such as Stable Diffusion's.

For images (depth 1). Out of the box it is what Medfusion compares its autoencoder with (its Table 2); with
:meth:`set_latent_statistics` it can take the place of stage 1. Colour networks see a grey image as three equal
channels, and their output is averaged back. The factor by which Stable Diffusion scales its latents is not used:
whitening does that, from the training images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medical_diffusion.errors import UserError
from medical_diffusion.networks.codec import LatentCodec
from medical_diffusion.networks.gaussian import GaussianBottleneck
from medical_diffusion.shapes import per_axis

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CLASS_NAME = "AutoencoderKL"


class ExternalAutoencoder(LatentCodec):
    """A frozen external autoencoder: (B, in_channels, H, W, 1) → the same shape.

    Latents are posterior means; ``reconstruct`` draws nothing, in training mode neither.

    Args:
        network: the ``AutoencoderKL``; see :meth:`from_folder`.
        image_size: (H, W, 1), divisible by the compression that follows from the network's levels.
        in_channels: channels of the images: those of the network, or 1 for a network of 3.

    Raises:
        UserError: a depth above 1, a size not divisible by the compression, or channels that the network does not take.
    """

    def __init__(self, network: nn.Module, image_size: int | Sequence[int], in_channels: int = 1) -> None:
        config: Any = network.config
        size = per_axis([image_size, image_size, 1] if isinstance(image_size, int) else image_size, "image_size")
        if size[-1] != 1:
            raise UserError(
                "an external autoencoder takes images, of depth 1", f"image_size {size}", "Use a bundle for images"
            )
        expected = int(config.in_channels)
        if int(config.out_channels) != expected or (in_channels != expected and (in_channels, expected) != (1, 3)):
            raise UserError(
                f"the external autoencoder maps {expected} to {config.out_channels} channels, and images must have "
                "as many (or one, for a network of three)",
                f"{in_channels} channels",
                "Convert the images, or take another network",
            )
        factor = 2 ** (len(config.block_out_channels) - 1)
        latent_channels = int(config.latent_channels)
        bottleneck = GaussianBottleneck(latent_channels)
        super().__init__(size, in_channels, (factor, factor, 1), latent_channels, bottleneck, "standardize")
        self.network: Any = network.requires_grad_(False)
        self.repeats = expected // in_channels
        self.train(False)

    @classmethod
    def from_folder(
        cls, path: str | os.PathLike[str], image_size: int | Sequence[int], in_channels: int = 1
    ) -> ExternalAutoencoder:
        """Load ``config.json`` and ``diffusion_pytorch_model.safetensors`` from a local folder; nothing is downloaded.

        Args:
            path: the folder; in Stable Diffusion's format, the one named ``vae``.
            image_size: (H, W, 1), or one number for H and W.
            in_channels: channels of the images.

        Raises:
            UserError: the extra ``diffusers`` is not installed, the folder or its files are missing, it holds another
                kind of network or does not fit the images.
        """
        folder = Path(path).expanduser()
        _check_folder(folder)
        network = _load(folder)
        return cls(network, image_size, in_channels)

    def train(self, mode: bool = True) -> ExternalAutoencoder:
        """A fixed network: it stays in evaluation mode."""
        return super().train(False)

    def moments(self, x: Tensor) -> Tensor:
        """Posterior mean and log-variance: (B, in_channels, H, W, 1) → (B, 2 x latent_channels, h, w, 1)."""
        self._check_image(x)
        images = x.squeeze(-1).repeat(1, self.repeats, 1, 1)
        return self.network.encode(images).latent_dist.parameters.unsqueeze(-1)

    def decode_all(self, h: Tensor) -> list[Tensor]:
        """The image of a latent, in a list of one: (B, latent_channels, h, w, 1) → (B, in_channels, H, W, 1)."""
        self._check_latent(h)
        images = self.network.decode(h.squeeze(-1)).sample
        return [(images.mean(1, keepdim=True) if self.repeats > 1 else images).unsqueeze(-1)]


def _check_folder(folder: Path) -> None:
    remedy = (
        f"Give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, fetched beforehand: nothing is downloaded here. In "
        "Stable Diffusion's repositories it is the folder vae"
    )
    if not folder.is_dir():
        raise UserError("the folder of the external autoencoder must exist", str(folder), remedy)
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            "the folder of the external autoencoder must hold its files", f"no {missing[0]} in {folder}", remedy
        )
    try:
        kind = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{CONFIG_FILE} must be readable JSON", f"{folder / CONFIG_FILE}: {error}") from error
    if kind != CLASS_NAME:
        raise UserError(f"the external autoencoder must be an {CLASS_NAME}", f"{kind} in {folder}", remedy)


def _load(folder: Path) -> nn.Module:
    try:
        from diffusers import AutoencoderKL
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "an external autoencoder needs the package diffusers",
            str(error),
            'Install the extra with: python -m pip install "medical_diffusion[diffusers]"',
        ) from error
    try:
        network, info = AutoencoderKL.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:  # whatever a damaged file makes the library raise
        raise UserError(
            f"{WEIGHTS_FILE} must hold the network that {CONFIG_FILE} describes",
            f"{folder}: {error}",
            "Fetch the folder again",
        ) from error
    wrong = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    if wrong:
        raise UserError(
            f"{WEIGHTS_FILE} must hold the network that {CONFIG_FILE} describes",
            f"{len(wrong)} weights missing, {wrong[0]} for one",
            "Fetch the folder again",
        )
    return network
