"""The autoencoder of stage 1, for volumes and, at depth 1, for images: one class, two architectures, two bottlenecks.

``architecture="vqgan"`` is Medical Diffusion's, ``"medfusion"`` that of Medfusion; either takes a vector quantiser or a
Gaussian bottleneck. The compression is set per axis. With ``deep_supervision`` a second head gives the image at half
resolution for the training loss (Medfusion); it changes nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.networks import architecture_medfusion, architecture_vqgan
from medical_diffusion.networks.codec import LatentCodec, LatentNormalization
from medical_diffusion.networks.conv import Convolution, PaddingMode, channels_last
from medical_diffusion.networks.quantizer import VectorQuantizer
from medical_diffusion.shapes import per_axis

Architecture = Literal["vqgan", "medfusion"]
ARCHITECTURES = {"vqgan": architecture_vqgan, "medfusion": architecture_medfusion}


class Autoencoder(LatentCodec):
    """Encoder, bottleneck and decoder: (B, in_channels, H, W, D) → the same shape.

    Args:
        image_size: (H, W, D), or one number for all three; divisible by the compression. Depth 1 makes it 2D.
        in_channels: channels of the image.
        channels: width of the first convolution (Medical Diffusion: 16; Medfusion: 64).
        compression: factor per axis, a power of two (Medical Diffusion: 4, or 2 for 64³; Medfusion: 8); axes of size 1
            are never compressed.
        latent_channels: channels of the latent (8 in both papers).
        bottleneck: a :class:`~medical_diffusion.networks.bottleneck.Bottleneck`; by default
            ``VectorQuantizer(16384, latent_channels)``.
        norm_groups: groups of the group normalisations. The 32 that Medical Diffusion published make it an instance
            normalisation at 32 channels, which removes the local brightness that CT lives on.
        latent_normalization: ``"codebook_range"`` maps minimum and maximum of the codes in use to [-1, 1] (paper; needs
            a codebook); ``"standardize"`` gives each channel of the training latents mean 0 and standard deviation 1;
            ``"whiten"`` also makes the channels uncorrelated.
        padding_mode: border of the convolutions, ``"replicate"`` (paper) or ``"zeros"``.
        architecture: ``"vqgan"`` or ``"medfusion"``.
        deep_supervision: :meth:`reconstruct` also gives the image at half resolution, by a 3³ convolution on the
            decoder's map before the last upsampling.

    Raises:
        UserError: the image size is not divisible by the compression, or an option is out of range.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int = 1,
        channels: int = 16,
        compression: int | Sequence[int] = 4,
        latent_channels: int = 8,
        bottleneck: nn.Module | None = None,
        norm_groups: int = 8,
        latent_normalization: LatentNormalization = "codebook_range",
        padding_mode: PaddingMode = "replicate",
        architecture: Architecture = "vqgan",
        deep_supervision: bool = False,
    ) -> None:
        if bottleneck is None:
            bottleneck = VectorQuantizer(code_dim=latent_channels)
        super().__init__(image_size, in_channels, compression, latent_channels, bottleneck, latent_normalization)
        if architecture not in ARCHITECTURES:
            raise UserError("architecture must be known", architecture, did_you_mean(str(architecture), ARCHITECTURES))
        parts, strides = ARCHITECTURES[architecture], _strides(self.compression)
        self.encoder = parts.encoder(
            self.image_size,
            in_channels,
            channels,
            strides,
            latent_channels * self.bottleneck.moments,
            norm_groups,
            padding_mode,
        )
        self.decoder, self._half_index, half_channels = parts.decoder(
            self.latent_size, in_channels, channels, strides, latent_channels, norm_groups, padding_mode
        )
        self.half_head: Convolution | None = None
        if deep_supervision:
            if self._half_index is None:
                raise UserError("deep_supervision needs a compression of at least 2 along an axis", self.compression)
            half = per_axis([n // s for n, s in zip(self.image_size, strides[0], strict=True)], "half resolution")
            self.half_head = Convolution(half, half_channels, in_channels, 3, padding_mode=padding_mode)

    def moments(self, x: Tensor) -> Tensor:
        """The encoder's output: (B, in_channels, H, W, D) → (B, moments x latent_channels, *latent_size)."""
        self._check_image(x)
        return self.encoder(channels_last(x))

    def decode_all(self, h: Tensor) -> list[Tensor]:
        """Images (B, in_channels, ...) of a latent: the full resolution, then half of it under deep supervision."""
        self._check_latent(h)
        h, coarser = channels_last(h), []
        for index, layer in enumerate(self.decoder):
            h = layer(h)
            if self.half_head is not None and index == self._half_index:
                coarser.append(self.half_head(h))
        return [h, *coarser]

    def decode(self, h: Tensor) -> Tensor:
        """Image of a latent, without quantisation: (B, latent_channels, *latent_size) → (B, in_channels, H, W, D)."""
        self._check_latent(h)
        return self.decoder(channels_last(h))


def _strides(compression: Sequence[int]) -> list[tuple[int, int, int]]:
    """Strides of the halvings, the finest first: (4, 4, 2) → (2, 2, 2), (2, 2, 1)."""
    levels = max(compression).bit_length() - 1
    return [per_axis([2 if c >> level > 1 else 1 for c in compression], "stride") for level in range(levels)]
