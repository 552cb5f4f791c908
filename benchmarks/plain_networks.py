"""The networks and the stage 1 step of Medical Diffusion (Khader et al., 2023), written plainly, to measure against.

Same structure, parameters and results as ``medical_diffusion.networks``, in the way the paper describes them: 3D
convolutions on contiguous tensors, attention by einsum, the whole matrix of distances to the codebook, and an
autoencoder that runs once for each optimiser. None of the package's choices for speed or memory. The time embedding,
the bias of the depth attention and the shapes of the discriminators are the package's own: they cost next to nothing.
The plain UNet needs planes that can be halved three times to more than one position, and a depth of more than one.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from medical_diffusion.networks import PatchDiscriminator
from medical_diffusion.networks.attention import RelativePositionBias
from medical_diffusion.networks.blocks import NORM_EPS
from medical_diffusion.networks.conv import Convolution
from medical_diffusion.networks.unet_blocks import TimestepEmbedding

HEADS, HEAD_CHANNELS, GROUPS = 8, 32, 8
MULTIPLIERS = (1, 2, 4, 8)


def copy_weights(ours: nn.Module, plain: nn.Module) -> None:
    """Give ``plain`` its weights of the package's network of that kind; kernels gain or lose axes of size 1."""
    weights = ours.state_dict()
    plain.load_state_dict({name: weights[name].reshape(own.shape) for name, own in plain.state_dict().items()})


# the UNet of stage 2: maps (B, C, D, H, W)


class SliceGroupNorm(nn.GroupNorm):
    """Group normalisation whose statistics belong to one slice."""

    def forward(self, x: Tensor) -> Tensor:
        slices = super().forward(rearrange(x, "b c d h w -> (b d) c h w"))
        return rearrange(slices, "(b d) c h w -> b c d h w", b=len(x))


class UNetBlock(nn.Module):
    """Residual block with scale and shift from the time embedding (Dhariwal and Nichol 2021, equation 6)."""

    def __init__(self, before: int, after: int, embedding: int) -> None:
        super().__init__()
        self.norm_in = SliceGroupNorm(GROUPS, before)
        self.conv_in = nn.Conv3d(before, after, (1, 3, 3), padding=(0, 1, 1))
        self.scale_shift = nn.Linear(embedding, 2 * after)
        self.norm_out = SliceGroupNorm(GROUPS, after, affine=False)
        self.conv_out = nn.Conv3d(after, after, (1, 3, 3), padding=(0, 1, 1))
        self.skip = nn.Conv3d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = rearrange(self.scale_shift(F.silu(embedding)), "b c -> b c 1 1 1").chunk(2, dim=1)
        h = self.norm_out(h) * (scale + 1) + shift
        return self.conv_out(F.silu(h)) + self.skip(x)


class Attention(nn.Module):
    """Normalisation and projections; the kinds differ in what they do with queries, keys and values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, HEADS * HEAD_CHANNELS, bias=False)
        self.to_k = nn.Linear(channels, HEADS * HEAD_CHANNELS, bias=False)
        self.to_v = nn.Linear(channels, HEADS * HEAD_CHANNELS, bias=False)
        self.to_out = nn.Linear(HEADS * HEAD_CHANNELS, channels, bias=False)

    def project(self, tokens: Tensor, heads: str) -> list[Tensor]:
        tokens = self.norm(tokens)
        return [rearrange(to(tokens), heads, heads=HEADS) for to in (self.to_q, self.to_k, self.to_v)]


class LinearAttention(Attention):
    """Within each slice, at a cost that grows with the number of positions (Shen et al. 2021, equation 3)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(rearrange(x, "b c d h w -> (b d) (h w) c"), "n p (heads e) -> n heads e p")
        context = torch.einsum("n h e p, n h f p -> n h e f", k.softmax(-1), v)
        y = torch.einsum("n h e f, n h e p -> n h f p", context, q.softmax(-2))
        y = self.to_out(rearrange(y, "n heads e p -> n p (heads e)"))
        return x + rearrange(y, "(b d) (h w) c -> b c d h w", d=x.shape[2], h=x.shape[3])


class FullAttention(Attention):
    """Within each slice, every position to every position."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(rearrange(x, "b c d h w -> (b d) (h w) c"), "n p (heads e) -> n heads p e")
        y = self.to_out(attend(q * HEAD_CHANNELS**-0.5, k, v))
        return x + rearrange(y, "(b d) (h w) c -> b c d h w", d=x.shape[2], h=x.shape[3])


class DepthAttention(Attention):
    """Among the slices at each position of the plane, with rotary embedding and a bias for each distance."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.project(rearrange(x, "b c d h w -> (b h w) d c"), "n d (heads e) -> n heads d e")
        q, k = rotary(q * HEAD_CHANNELS**-0.5), rotary(k)
        y = self.to_out(attend(q, k, v, bias))
        return x + rearrange(y, "(b h w) d c -> b c d h w", h=x.shape[3], w=x.shape[4])


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """``softmax(Q K^T + bias) V`` of (n, heads, tokens, channels), as (n, tokens, heads x channels)."""
    weights = (torch.einsum("n h i e, n h j e -> n h i j", q, k) + bias).softmax(-1)
    return rearrange(torch.einsum("n h i j, n h j e -> n h i e", weights, v), "n heads i e -> n i (heads e)")


def rotary(x: Tensor) -> Tensor:
    """Rotary embedding of neighbouring channels of (..., positions, channels) (Su et al. 2021, equation 34)."""
    length, channels = x.shape[-2:]
    frequencies = 10000.0 ** (-torch.arange(0, channels, 2, device=x.device) / channels)
    angles = repeat(torch.arange(length, device=x.device)[:, None] * frequencies, "p e -> p (e pair)", pair=2)
    even, odd = x[..., ::2], x[..., 1::2]
    return x * angles.cos() + torch.stack([-odd, even], dim=-1).flatten(-2) * angles.sin()


class UNetLevel(nn.Module):
    """Two residual blocks, spatial attention, depth attention."""

    def __init__(self, before: int, after: int, embedding: int, spatial: type[Attention] = LinearAttention) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([UNetBlock(before, after, embedding), UNetBlock(after, after, embedding)])
        self.spatial_attention, self.depth_attention = spatial(after), DepthAttention(after)

    def forward(self, x: Tensor, embedding: Tensor, bias: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        return self.depth_attention(self.spatial_attention(x), bias)


class PlainUNet(nn.Module):
    """The paper's UNet: ``UNet(in_channels, width=width, spatial_attention="linear")`` without a depth embedding."""

    def __init__(self, in_channels: int = 8, width: int = 32) -> None:
        super().__init__()
        embedding = 4 * width
        channels = [width * multiplier for multiplier in MULTIPLIERS]
        down = list(zip([width, *channels[:-1]], channels, strict=True))
        plane = {"kernel_size": (1, 4, 4), "stride": (1, 2, 2), "padding": (0, 1, 1)}
        self.time_embedding = TimestepEmbedding(width, embedding)
        self.depth_bias = RelativePositionBias(HEADS)
        self.first = nn.Conv3d(in_channels, width, (1, 7, 7), padding=(0, 3, 3))
        self.down = nn.ModuleList(UNetLevel(before, after, embedding) for before, after in down)
        self.downsample = nn.ModuleList(nn.Conv3d(n, n, **plane) for n in channels[:-1])
        self.middle = UNetLevel(channels[-1], channels[-1], embedding, FullAttention)
        self.up = nn.ModuleList(UNetLevel(2 * after, before, embedding) for before, after in reversed(down))
        self.upsample = nn.ModuleList(nn.ConvTranspose3d(n, n, **plane) for n in reversed(channels[:-1]))
        self.last = UNetBlock(2 * width, width, embedding)
        self.norm = SliceGroupNorm(GROUPS, width)
        self.out = nn.Conv3d(width, in_channels, 1)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """(B, in_channels, D, H, W) and (B,) → (B, in_channels, D, H, W)."""
        embedding, bias = self.time_embedding(timesteps), self.depth_bias(x.shape[2])
        h = self.first(x)
        skips = [h]
        for i, level in enumerate(self.down):
            h = level(self.downsample[i - 1](h) if i else h, embedding, bias)
            skips.append(h)
        h = self.middle(h, embedding, bias)
        for i, level in enumerate(self.up):
            h = self.upsample[i - 1](h) if i else h
            h = level(torch.cat([h, skips.pop()], dim=1), embedding, bias)
        h = self.last(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(F.silu(self.norm(h)))


# the VQ-GAN of stage 1: maps (B, C, H, W, D)


class PaddedConv(nn.Conv3d):
    """Convolution after "same" padding that repeats the border."""

    def forward(self, x: Tensor) -> Tensor:
        padding = (self.kernel_size[0] - self.stride[0] + 1) // 2
        return super().forward(F.pad(x, (padding,) * 6, mode="replicate"))


class PaddedTransposedConv(nn.ConvTranspose3d):
    """Transposed convolution that doubles the size, after padding that repeats the border."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, kernel_size=4, stride=2, padding=3)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(F.pad(x, (1,) * 6, mode="replicate"))


class NormActConv(nn.Module):
    """Group normalisation, SiLU, convolution."""

    def __init__(self, before: int, after: int, kernel: int = 3) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, before, eps=NORM_EPS)
        self.conv = PaddedConv(before, after, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(x)))


class ResidualBlock(nn.Module):
    """Two convolutions, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = NormActConv(channels, channels), NormActConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class PlainQuantizer(nn.Module):
    """Nearest code by the whole matrix of distances; moving averages by a one-hot matrix of tokens x codes."""

    codebook: Tensor
    ema_counts: Tensor
    ema_sums: Tensor

    def __init__(self, num_codes: int, dim: int, decay: float = 0.99, commitment: float = 0.25) -> None:
        super().__init__()
        self.decay, self.commitment, self.initialised = decay, commitment, False
        self.register_buffer("codebook", torch.zeros(num_codes, dim))
        self.register_buffer("ema_counts", torch.ones(num_codes))
        self.register_buffer("ema_sums", torch.zeros(num_codes, dim))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised (B, dim, h, w, d), straight-through, and the commitment loss; in training updates the codebook."""
        h = h.float()
        tokens = rearrange(h.detach(), "b c h w d -> (b h w d) c")
        if self.training and not self.initialised:
            self.codebook.copy_(self._random_tokens(tokens))
            self.ema_sums.copy_(self.codebook)
            self.initialised = True
        squares = tokens.square().sum(1, keepdim=True) + self.codebook.square().sum(1)
        indices = (squares - 2 * tokens @ self.codebook.T).argmin(1)
        codes = F.embedding(indices.view(len(h), *h.shape[2:]), self.codebook).movedim(-1, 1)
        if self.training:
            self._update(tokens, F.one_hot(indices, len(self.codebook)).float())
        return h + (codes - h).detach(), self.commitment * F.mse_loss(h, codes)

    def _update(self, tokens: Tensor, one_hot: Tensor) -> None:
        self.ema_counts.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
        self.ema_sums.mul_(self.decay).add_((tokens.T @ one_hot).T, alpha=1 - self.decay)
        used = (self.ema_counts >= 1)[:, None]
        means = self.ema_sums / self.ema_counts.clamp_min(1e-5)[:, None]
        self.codebook.copy_(torch.where(used, means, self._random_tokens(tokens)))

    def _random_tokens(self, tokens: Tensor) -> Tensor:
        return tokens[torch.randint(len(tokens), (len(self.codebook),), device=tokens.device)]


class PlainAutoencoder(nn.Module):
    """``medical_diffusion.networks.Autoencoder`` for volumes, compressed alike along the three axes."""

    def __init__(self, compression: int, num_codes: int, latent_channels: int = 8, channels: int = 16) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(compression.bit_length())]
        encoder: list[nn.Module] = [PaddedConv(1, channels, 3)]
        decoder: list[nn.Module] = [PaddedConv(latent_channels, widths[-1], 1)]
        width = widths[-1]
        for before, after in pairwise(widths):
            encoder += [PaddedConv(before, after, 4, stride=2), ResidualBlock(after)]
        for after in reversed(widths[1:]):
            decoder += [PaddedTransposedConv(width, after), ResidualBlock(after), ResidualBlock(after)]
            width = after
        self.encoder = nn.Sequential(*encoder, NormActConv(widths[-1], latent_channels, kernel=1))
        self.decoder = nn.Sequential(*decoder, PaddedConv(width, 1, 3))
        self.bottleneck = PlainQuantizer(num_codes, latent_channels)

    def decode(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Image of a latent by way of its nearest codes, and the commitment loss."""
        latents, commitment = self.bottleneck(h)
        return self.decoder(latents), commitment

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W, D) → reconstruction of that shape, commitment loss."""
        return self.decode(self.encoder(x))


class PlainDiscriminator(nn.Module):
    """``PatchDiscriminator(size)`` for slices (B, 1, H, W), ``size`` (H, W, 1), or volumes (B, 1, H, W, D)."""

    def __init__(self, size: tuple[int, int, int], channels: int = 64) -> None:
        super().__init__()
        with torch.device("meta"):  # for its shapes alone
            *hidden, logits = PatchDiscriminator(size, channels=channels).layers
        self.layers = nn.ModuleList()
        for layer in hidden:
            conv = _plain_conv(layer[0])
            norm = nn.GroupNorm(GROUPS, conv.out_channels) if len(self.layers) else nn.Identity()
            self.layers.append(nn.Sequential(conv, norm, nn.LeakyReLU(0.2)))
        self.layers.append(_plain_conv(logits))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps, the logits last."""
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


def _plain_conv(ours: Convolution) -> nn.Conv2d | nn.Conv3d:
    kind = nn.Conv2d if ours.rank == 2 else nn.Conv3d
    kernel, stride = ours.kernel_size[: ours.rank], ours.stride[: ours.rank]
    return kind(ours.in_channels, ours.out_channels, kernel, stride, ours.border)


class PlainStep:
    """One step of stage 1 as two passes, each of which runs the whole autoencoder, in training mode, on its own."""

    def __init__(
        self,
        autoencoder: PlainAutoencoder,
        slice_discriminator: PlainDiscriminator,
        volume_discriminator: PlainDiscriminator,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.autoencoder, self.dtype = autoencoder.train(), dtype
        self.discriminators = nn.ModuleList([slice_discriminator, volume_discriminator])
        self.optimizer = torch.optim.Adam(autoencoder.parameters(), lr=1e-4, betas=(0.5, 0.9))
        self.optimizer_d = torch.optim.Adam(self.discriminators.parameters(), lr=1e-4, betas=(0.5, 0.9))

    def __call__(self, images: Tensor) -> None:
        """Update autoencoder and discriminators on (B, 1, H, W, D)."""
        for loss_of, network, optimizer in (
            (self.generator_loss, self.autoencoder, self.optimizer),
            (self.discriminator_loss, self.discriminators, self.optimizer_d),
        ):
            with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                loss = loss_of(images)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

    def generator_loss(self, images: Tensor) -> Tensor:
        reconstruction, commitment = self.autoencoder(images)
        loss = 4 * F.l1_loss(reconstruction, images) + commitment
        for discriminator, real, fake in self._views(images, reconstruction):
            fake_maps = discriminator(fake)
            with torch.no_grad():
                real_maps = discriminator(real)
            matching = [F.l1_loss(a, b) for a, b in zip(fake_maps[:-1], real_maps[:-1], strict=True)]
            loss = loss - fake_maps[-1].mean() + 4 * torch.stack(matching).mean()
        return loss

    def discriminator_loss(self, images: Tensor) -> Tensor:
        loss = torch.zeros((), device=images.device)
        for discriminator, real, fake in self._views(images, self.autoencoder(images)[0].detach()):
            loss = loss + F.relu(1 - discriminator(real)[-1]).mean() + F.relu(1 + discriminator(fake)[-1]).mean()
        return loss

    def _views(self, images: Tensor, reconstruction: Tensor) -> list[tuple[nn.Module, Tensor, Tensor]]:
        """What each discriminator sees: a random slice of each volume, the same in both, and the volumes."""
        batch = torch.arange(len(images), device=images.device)
        index = torch.randint(images.shape[-1], (len(images),), device=images.device)
        slices = [volumes[batch, ..., index] for volumes in (images, reconstruction)]
        pairs = (slices, (images, reconstruction))
        return [(d, real, fake) for d, (real, fake) in zip(self.discriminators, pairs, strict=True)]
