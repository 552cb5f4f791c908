"""The pre-training step: what it learns from, what it leaves alone, and that it resumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from torch import Tensor, nn

from medical_diffusion.errors import UserError
from medical_diffusion.networks import SwinUNETR
from medical_diffusion.training import PretrainStep, pretext_objective

SIZE = (16, 12, 8)


class Neighbours(nn.Module):
    """A small network with a wide view."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(1, 8, 5, padding=2), nn.SiLU(), nn.Conv3d(8, 8, 5, padding=2), nn.SiLU(), nn.Conv3d(8, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def volumes(count: int = 4, size: Sequence[int] = SIZE, seed: int = 0) -> Tensor:
    """Smooth volumes (count, 1, H, W, D): what is hidden can be told from what is seen."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(count, 1, *(1 + n // 8 for n in size), generator=generator)
    return torch.nn.functional.interpolate(small, size=tuple(size), mode="trilinear").tanh()


def make_step(lr: float = 1e-2, size: Sequence[int] = SIZE, **options: Any) -> PretrainStep:
    torch.manual_seed(0)
    network = Neighbours()
    return PretrainStep(network, size, torch.optim.AdamW(network.parameters(), lr=lr), mask_block=4, **options)


@pytest.mark.parametrize("objective", ["masked", "paper"])
@pytest.mark.parametrize("size", [SIZE, (16, 20, 1)])
def test_hidden_voxels_are_learnt_better_than_their_mean(objective: str, size: tuple[int, int, int]) -> None:
    step = make_step(size=size, objective=pretext_objective(objective, mask_ratio=0.3))
    images = volumes(size=size)
    before = step.validate(images, 1)
    for n in range(40):
        torch.manual_seed(n)
        step(images, n)
    after = step.validate(images, 1)
    assert after["loss"] < 0.8 * before["loss"]
    assert after["hidden_error"] < 0.95 * after["mean_fill_error"]
    assert after["mean_fill_error"] == before["mean_fill_error"]


def test_only_hidden_voxels_count_in_the_default_objective() -> None:
    step = make_step()
    images = volumes()
    hidden, mask = step.draw(images, 3)
    answer = torch.where(mask, images, images + 5.0)
    assert float(step.hidden_error(answer, images, mask).sum()) == 0.0
    answer = torch.where(mask, images + 0.5, images)
    torch.testing.assert_close(step.hidden_error(answer, images, mask), torch.full((4,), 0.5))
    assert torch.equal(hidden[~mask], images[~mask])


def test_contrast_of_a_volume_does_not_change_its_weight() -> None:
    """An answer whose error scales with the volume has one loss at any contrast."""
    step = make_step()
    step.reconstruct = lambda hidden: torch.zeros_like(hidden)  # type: ignore[method-assign]
    images = volumes(1)
    _, mask = step.draw(images, 0)
    losses = [float(step.terms(images, images * scale, mask)["masked_loss"]) for scale in (1.0, 0.3)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    empty = torch.full_like(images, -1.0)
    assert torch.isfinite(step.terms(empty, empty, mask)["masked_loss"])


def test_flips_turn_image_and_mask_alike() -> None:
    """A network that returns what it sees has no error outside the mask, however the volume is flipped."""
    step = make_step(flip_axes=(0, 1, 2), mask_fill="mean", lr=0.0)
    step.inferer = lambda inputs, network: inputs + 0 * network(inputs)  # type: ignore[assignment]
    images = volumes()
    visible = []
    step.loss_function = lambda answer, target: (
        visible.append((answer == target).float().mean()) or (answer - target).abs()
    )  # type: ignore
    for n in range(4):
        torch.manual_seed(n)
        step(images, n)
    assert all(
        float(share) == pytest.approx(1 - float(step.draw(images, 0)[1].float().mean()), abs=0.02) for share in visible
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_gives_the_gradient_of_the_whole_batch(parts: int) -> None:
    grads = []
    for count in (1, parts):
        step = make_step(accumulation=count, max_gradient_norm=1e9)
        torch.manual_seed(5)
        output = step(volumes(), 0)
        grads.append((float(output["gradient_norm"]), float(output["loss"])))
    assert grads[0] == pytest.approx(grads[1], rel=1e-5)


def test_state_is_all_that_resuming_needs() -> None:
    def train(step: PretrainStep, steps: range) -> None:
        for n in steps:
            torch.manual_seed(n)
            step(volumes(), n)

    whole, first, second = make_step(), make_step(), make_step()
    train(whole, range(4))
    train(first, range(2))
    second.load_state_dict(first.state_dict())
    train(second, range(2, 4))
    for name, value in whole.weights().items():
        torch.testing.assert_close(value, second.weights()[name], rtol=0, atol=0)


def test_weights_are_those_of_a_plain_network_and_masks_and_noise_of_validation_are_fixed() -> None:
    size = (64, 32, 1)
    network = SwinUNETR(size, feature_size=12)
    step = PretrainStep(network, size, torch.optim.AdamW(network.parameters()))
    step(volumes(1, size), 0)
    MonaiSwinUNETR(1, 1, feature_size=12, spatial_dims=2).load_state_dict(step.weights(), strict=True)
    images = volumes(2, size, seed=1)
    assert step.validate(images, 7) == step.validate(images, 7) != step.validate(images, 8)


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"objective must be a known one.*masks.*Did you mean masked"):
        pretext_objective("masks")
    with pytest.raises(UserError, match=r"shares add up to at most 1.*0\.3 and 0\.9"):
        pretext_objective("masked", warmup=0.3)
    with pytest.raises(UserError, match="mask_ratio must lie between 0 and 1"):
        make_step(objective=pretext_objective("masked", mask_ratio=1.0))(volumes(), 0)
    with pytest.raises(UserError, match="at least two blocks"):
        PretrainStep(Neighbours(), (1, 1, 1))
    with pytest.raises(UserError, match="amp must be one of"):
        make_step(amp="half")


def test_bfloat16_is_close_to_float32() -> None:
    losses = []
    for amp in ("none", "bfloat16"):
        torch.manual_seed(5)
        losses.append(float(make_step(amp=amp)(volumes(), 0)["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
