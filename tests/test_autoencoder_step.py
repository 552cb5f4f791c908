"""VQ-GAN step: learns, matches a naive implementation, gates the discriminators, resumes."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError
from medical_diffusion.losses import (
    SpectralLoss,
    StructuralLoss,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from medical_diffusion.networks import Autoencoder, GaussianBottleneck, PatchDiscriminator, VectorQuantizer
from medical_diffusion.training.allocator import keep_freed_memory
from medical_diffusion.training.autoencoder_step import AutoencoderStep

SIZE = (16, 16, 8)
NAMES = {
    "loss", "pixel_loss", "structural_loss", "spectral_loss", "perceptual_loss", "bottleneck_loss", "adversarial_loss",
    "feature_matching_loss", "discriminator_loss", "codes_used", "perplexity", "gradient_norm",
}  # fmt: skip


def make_step(
    size: tuple[int, int, int] = SIZE,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    lr: float = 1e-3,
    autoencoder: Autoencoder | None = None,
    **options: object,
) -> AutoencoderStep:
    if autoencoder is None:
        autoencoder = Autoencoder(size, channels=8, bottleneck=VectorQuantizer(64, 8, init_batches=1))
    slice_d = PatchDiscriminator((*size[:2], 1), channels=8)
    volume_d = PatchDiscriminator(size, channels=8) if size[-1] > 1 else None
    discriminators = [*slice_d.parameters(), *(volume_d.parameters() if volume_d else ())]
    return AutoencoderStep(
        autoencoder,
        optimizer(autoencoder.parameters(), lr=lr),
        slice_discriminator=slice_d,
        volume_discriminator=volume_d,
        discriminator_optimizer=optimizer(discriminators, lr=lr),
        **{"discriminator_start": 0, "discriminator_warmup": 0, **options},  # type: ignore[arg-type]
    )


def medfusion(size: tuple[int, int, int] = SIZE, **options: object) -> Autoencoder:
    """Gaussian bottleneck and deep supervision."""
    return Autoencoder(
        size, channels=8, bottleneck=GaussianBottleneck(8), latent_normalization="standardize",
        architecture="medfusion", deep_supervision=True, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def blobs(number: int = 8, size: tuple[int, int, int] = SIZE) -> Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij"))
    centres = torch.rand(number, 3, 1, 1, 1) - 0.5
    return 2 * torch.exp(-8 * (grid - centres).square().sum(1, keepdim=True)) - 1


@pytest.mark.parametrize("size", [SIZE, (16, 16, 1)])
@pytest.mark.parametrize("amp", ["none", "bfloat16"])
def test_the_loss_decreases(size: tuple[int, int, int], amp: str) -> None:
    step, images = make_step(size, discriminator_start=20, discriminator_warmup=5, amp=amp), blobs(size=size)
    history = []
    for number in range(30):
        torch.manual_seed(number)
        result = step(images[number % 4 :: 4], number)
        assert set(result) == NAMES
        assert all(value.dim() == 0 and not value.requires_grad and value.isfinite() for value in result.values())
        history.append(result["pixel_loss"].item())
    assert sum(history[-5:]) < 0.7 * sum(history[:5])
    assert result["discriminator_loss"] > 0
    assert result["feature_matching_loss"] > 0


@pytest.mark.parametrize(("size", "amp"), [(SIZE, "none"), ((16, 16, 1), "bfloat16")])
def test_the_loss_decreases_at_both_resolutions(size: tuple[int, int, int], amp: str) -> None:
    step = make_step(size, autoencoder=medfusion(size), structural_loss=StructuralLoss("ssim"), amp=amp,
                     discriminator_start=20, discriminator_warmup=5)  # fmt: skip
    images, history = blobs(size=size), []

    def half_error() -> float:
        with torch.no_grad():
            half = step.autoencoder.eval().reconstruct(images)[0][1]
        return nn.functional.l1_loss(half, nn.functional.interpolate(images, half.shape[2:], mode="area")).item()

    before = half_error()
    for number in range(30):
        torch.manual_seed(number)
        result = step(images[number % 4 :: 4], number, torch.zeros(2, dtype=torch.long))
        assert set(result) == NAMES - {"codes_used", "perplexity"} | {"kl"}
        assert all(value.dim() == 0 and not value.requires_grad and value.isfinite() for value in result.values())
        history.append(result["pixel_loss"].item())
    assert sum(history[-5:]) < 0.7 * sum(history[:5])
    assert half_error() < 0.7 * before
    assert result["kl"] > 0 and result["bottleneck_loss"] > 0


def test_every_reconstruction_term_is_the_mean_over_the_resolutions() -> None:
    """Gradients by a naive loss; the slice of the half resolution is the one that holds the full resolution's."""
    step = make_step(autoencoder=medfusion(), optimizer=torch.optim.SGD, lr=1.0, max_gradient_norm=1e9,
                     discriminator_start=9, structural_loss=nn.functional.mse_loss, structural_weight=0.5,
                     spectral_loss=nn.functional.huber_loss, spectral_weight=2.0,
                     perceptual_loss=nn.functional.smooth_l1_loss, perceptual_weight=3.0)  # fmt: skip
    images, autoencoder = blobs(3), copy.deepcopy(step.autoencoder)
    parameters = list(step.autoencoder.parameters())
    before = [p.detach().clone() for p in parameters]
    torch.manual_seed(7)
    result = step(images, 0)

    torch.manual_seed(7)
    reconstructions, bottleneck = autoencoder.reconstruct(images)
    index = torch.randint(SIZE[-1], (len(images),))
    means = images.unflatten(2, (-1, 2)).mean(3).unflatten(3, (-1, 2)).mean(4).unflatten(4, (-1, 2)).mean(5)
    loss = bottleneck.loss
    for r, target, slices in zip(reconstructions, (images, means), (index, index // 2), strict=True):
        assert r.shape == target.shape
        real, fake = (torch.stack([v[..., i : i + 1] for v, i in zip(t, slices, strict=True)]) for t in (target, r))
        terms = (4 * (r - target).abs().mean() + 0.5 * nn.functional.mse_loss(r, target)
                 + 2 * nn.functional.huber_loss(r, target) + 3 * nn.functional.smooth_l1_loss(fake, real))  # fmt: skip
        loss = loss + terms / 2
    torch.testing.assert_close(result["loss"], loss.detach())
    wanted = torch.autograd.grad(loss, list(autoencoder.parameters()))
    for got, want in zip(gradients_of(parameters, before), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)


def gradients_of(parameters: list[nn.Parameter], before: list[Tensor]) -> list[Tensor]:
    """What SGD at rate 1 subtracted."""
    return [b - p.detach() for p, b in zip(parameters, before, strict=True)]


def test_one_step_equals_a_naive_one_with_two_forward_passes() -> None:
    """Unclipped gradients of every parameter, read off from plain SGD at rate 1."""
    torch.manual_seed(1)
    step = make_step(optimizer=torch.optim.SGD, lr=1.0, max_gradient_norm=1e9, discriminator_warmup=2,
                     adversarial_limit=None, structural_loss=nn.functional.mse_loss, structural_weight=0.5,
                     spectral_loss=nn.functional.huber_loss, spectral_weight=2.0,
                     perceptual_loss=nn.functional.smooth_l1_loss, perceptual_weight=3.0)  # fmt: skip
    images = blobs(3)
    networks = [step.autoencoder, *step.discriminators.values()]
    autoencoder, slice_d, volume_d = copies = copy.deepcopy(networks)
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]

    torch.manual_seed(7)
    result = step(images, 0)

    torch.manual_seed(7)
    (reconstruction,), bottleneck = autoencoder.reconstruct(images)
    index = torch.randint(SIZE[-1], (len(images),))
    real_slices, fake_slices = (
        torch.stack([volume[..., i : i + 1] for volume, i in zip(volumes, index, strict=True)])
        for volumes in (images, reconstruction)
    )
    pairs = [(slice_d, real_slices, fake_slices), (volume_d, images, reconstruction)]
    loss = 4 * (reconstruction - images).abs().mean() + bottleneck.loss
    loss = loss + 0.5 * nn.functional.mse_loss(reconstruction, images)
    loss = loss + 2 * nn.functional.huber_loss(reconstruction, images)
    loss = loss + 3 * nn.functional.smooth_l1_loss(fake_slices, real_slices)
    for discriminator, real, fake in pairs:
        fake_maps = discriminator(fake)
        loss = loss + 0.5 * hinge_generator_loss(fake_maps[-1])
        loss = loss + 0.5 * 4 * feature_matching_loss(discriminator(real)[:-1], fake_maps[:-1])
    wanted = [torch.autograd.grad(loss, list(autoencoder.parameters()))]
    for discriminator, real, fake in pairs:
        hinge = hinge_discriminator_loss(discriminator(real)[-1], discriminator(fake.detach())[-1])
        wanted.append(torch.autograd.grad(hinge, list(discriminator.parameters())))

    torch.testing.assert_close(result["loss"], loss.detach())
    norm = torch.stack([g.norm() for g in wanted[0]]).norm()
    torch.testing.assert_close(result["gradient_norm"], norm)
    for network, start, gradients in zip(networks, before, wanted, strict=True):
        assert len(copies) == len(networks)
        for got, want in zip(gradients_of(list(network.parameters()), start), gradients, strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)
    assert torch.equal(step.autoencoder.bottleneck.codebook, autoencoder.bottleneck.codebook)


def test_discriminators_are_not_touched_before_their_start() -> None:
    step, images = make_step(discriminator_start=3), blobs(2)
    calls: list[nn.Module] = []
    for discriminator in step.discriminators.values():
        discriminator.register_forward_hook(lambda module, inputs, output: calls.append(module))
    before = copy.deepcopy({name: d.state_dict() for name, d in step.discriminators.items()})
    for number in range(3):
        result = step(images, number)
        assert result["discriminator_loss"] == result["adversarial_loss"] == result["feature_matching_loss"] == 0
    assert not calls
    for name, discriminator in step.discriminators.items():
        assert all(torch.equal(value, before[name][key]) for key, value in discriminator.state_dict().items())
    step(images, 3)
    assert len(calls) == 4  # each discriminator once on the images and once on the reconstruction
    for name, discriminator in step.discriminators.items():
        assert not all(torch.equal(value, before[name][key]) for key, value in discriminator.state_dict().items())


def test_the_adversarial_terms_rise_to_their_weight() -> None:
    step = make_step(discriminator_start=10, discriminator_warmup=4)
    assert [step.adversarial_ramp(n) for n in (0, 9, 10, 11, 13, 14, 99)] == [0, 0, 0.25, 0.5, 1, 1, 1]


def test_the_spectral_term_rises_after_the_sign_is_settled() -> None:
    step = make_step(spectral_loss=SpectralLoss(), spectral_weight=1.0, spectral_warmup=9)
    assert [step.spectral_ramp(n) for n in (0, 4, 9, 100)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    image = torch.randn(1, 1, *SIZE)
    assert SpectralLoss()(-image, image).item() == pytest.approx(0, abs=1e-6)  # why: it can not tell a negative
    terms = step(image, 0)
    expected = 4 * terms["pixel_loss"] + 0.1 * terms["spectral_loss"] + terms["bottleneck_loss"]
    adversarial = terms["adversarial_loss"] + 4 * terms["feature_matching_loss"]
    torch.testing.assert_close(terms["loss"], expected + adversarial)


def test_a_discriminator_is_held_to_its_limit() -> None:
    """The autoencoder's update at a limit of 0 is that without discriminators; without a limit it is another."""
    images, updated = blobs(2), {}
    for name, options in {"off": {"discriminator_start": 9}, "zero": {"adversarial_limit": 0.0},
                          "free": {"adversarial_limit": None}}.items():  # fmt: skip
        torch.manual_seed(3)
        step = make_step(optimizer=torch.optim.SGD, lr=1.0, **options)  # type: ignore[arg-type]
        step(images, 0)
        updated[name] = torch.cat([p.detach().flatten() for p in step.autoencoder.parameters()])
    torch.testing.assert_close(updated["zero"], updated["off"])
    assert not torch.allclose(updated["free"], updated["off"])


def test_gradients_are_clipped_for_each_side_on_its_own() -> None:
    step, images = make_step(optimizer=torch.optim.SGD, lr=1.0, max_gradient_norm=0.01), blobs(2)
    sides = [list(step.autoencoder.parameters()), [p for d in step.discriminators.values() for p in d.parameters()]]
    before = [[p.detach().clone() for p in side] for side in sides]
    result = step(images, 0)
    assert result["gradient_norm"] > 0.01
    for side, start in zip(sides, before, strict=True):
        norm = torch.stack([g.norm() for g in gradients_of(side, start)]).norm().item()
        assert norm == pytest.approx(0.01, rel=1e-2)


def test_resuming_reaches_the_same_weights() -> None:
    images = blobs(4)

    def train(step: AutoencoderStep, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)
            step(images, number)

    step = make_step(discriminator_start=2, discriminator_warmup=4)
    train(step, range(4))
    state = copy.deepcopy(step.state_dict())
    train(step, range(4, 8))
    other = make_step(discriminator_start=2, discriminator_warmup=4)
    other.load_state_dict(state)
    train(other, range(4, 8))
    for part in ("autoencoder", "slice_discriminator", "volume_discriminator"):
        mine, theirs = step.state_dict()[part], other.state_dict()[part]
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items()), part


def test_a_loss_that_is_not_finite_is_returned() -> None:
    result = make_step(discriminator_start=9)(torch.full((1, 1, *SIZE), torch.inf), 0)
    assert not result["loss"].isfinite()


def test_it_trains_without_discriminators() -> None:
    autoencoder = Autoencoder(SIZE, channels=8, bottleneck=VectorQuantizer(64, 8))
    step = AutoencoderStep(autoencoder, torch.optim.Adam(autoencoder.parameters()), discriminator_start=0)
    assert step(blobs(2), 0)["adversarial_loss"] == 0
    assert set(step.state_dict()) == {"autoencoder", "optimizer", "scaler"}


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")


def test_errors() -> None:
    with pytest.raises(UserError, match="spectral_warmup must not be negative"):
        make_step(spectral_warmup=-1)
    with pytest.raises(UserError, match="amp must be one of none, bfloat16, float16"):
        make_step(amp="half")
    with pytest.raises(UserError, match="must not be negative"):
        make_step(discriminator_start=-1)
    with pytest.raises(UserError, match="max_gradient_norm must be positive"):
        make_step(max_gradient_norm=0)
    autoencoder = Autoencoder(SIZE, channels=8, bottleneck=VectorQuantizer(64, 8))
    optimizer = torch.optim.Adam(autoencoder.parameters())
    with pytest.raises(UserError, match="discriminators need a discriminator_optimizer"):
        AutoencoderStep(autoencoder, optimizer, slice_discriminator=PatchDiscriminator((16, 16, 1)))
    bare = AutoencoderStep(autoencoder, optimizer)
    with pytest.raises(UserError, match="state of an autoencoder step must hold autoencoder, optimizer, scaler"):
        bare.load_state_dict(make_step().state_dict())
