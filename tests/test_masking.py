"""Masks for pre-training: exact shares, whole blocks, depth 1, and a filling with the statistics of what is visible."""

from __future__ import annotations

import pytest
import torch

from medical_diffusion.errors import UserError
from medical_diffusion.training.masking import block_size, hide, random_block_mask


@pytest.mark.parametrize(
    ("size", "asked", "block"),
    [
        ((64, 64, 64), 16, (16, 16, 16)),
        ((96, 96, 32), 16, (16, 16, 8)),
        ((64, 48, 1), 16, (16, 12, 1)),
        ((32, 48, 32), (4, 8, 8), (4, 8, 8)),
        ((9, 20, 33), 16, (2, 5, 8)),
    ],
)
def test_blocks_fit_every_axis(size: tuple[int, ...], asked: int, block: tuple[int, ...]) -> None:
    assert block_size(size, asked) == block


@pytest.mark.parametrize("size", [(32, 48, 32), (33, 20, 9), (40, 24, 1)])
@pytest.mark.parametrize("ratio", [0.25, 0.6, 0.75])
def test_every_volume_has_the_same_number_of_whole_hidden_blocks(size: tuple[int, int, int], ratio: float) -> None:
    block = block_size(size, 8)
    mask = random_block_mask(5, size, block, ratio)
    assert mask.shape == (5, 1, *size) and mask.dtype == torch.bool
    corners = mask[:, 0, :: block[0], :: block[1], :: block[2]]
    hidden = corners.flatten(1).sum(1)
    assert (hidden == round(ratio * corners[0].numel())).all()
    for axis, step in enumerate(block, start=1):
        corners = corners.repeat_interleave(step, dim=axis).narrow(axis, 0, size[axis - 1])
    assert torch.equal(corners, mask[:, 0]), "a block is hidden or visible as a whole"
    if all(n % b == 0 for n, b in zip(size, block, strict=True)):
        share = round(ratio * mask[0].numel() / (block[0] * block[1] * block[2]))
        assert (mask.flatten(1).sum(1) == share * block[0] * block[1] * block[2]).all()


def test_masks_differ_between_volumes_and_every_block_is_as_likely() -> None:
    masks = random_block_mask(4000, (8, 8, 1), (2, 2, 1), 0.5)
    assert not torch.equal(masks[0], masks[1])
    torch.testing.assert_close(masks.float().mean(0), torch.full((1, 8, 8, 1), 0.5), atol=0.05, rtol=0)
    first, second = (
        random_block_mask(3, (8, 8, 8), (2, 2, 2), 0.5, generator=torch.Generator().manual_seed(s)) for s in (1, 1)
    )
    assert torch.equal(first, second)


def test_extreme_ratios_leave_something_to_see_and_something_to_find() -> None:
    for ratio in (0.001, 0.999):
        share = random_block_mask(2, (8, 8, 8), (4, 4, 4), ratio).float().mean((1, 2, 3, 4))
        assert ((share > 0) & (share < 1)).all()
    for ratio in (0.0, 1.0, 1.5):
        with pytest.raises(UserError, match="mask_ratio must lie between 0 and 1"):
            random_block_mask(1, (8, 8, 8), (4, 4, 4), ratio)


def test_an_image_without_room_for_two_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"at least two blocks.*\(1, 1, 1\).*larger volumes"):
        block_size((1, 1, 1), 16)
    with pytest.raises(UserError, match="mask_block must be one or three positive whole numbers"):
        block_size((8, 8, 8), 0)


@pytest.mark.parametrize("size", [(32, 32, 32), (64, 64, 1)])
def test_noise_has_the_statistics_of_the_visible_voxels_and_leaves_them_alone(size: tuple[int, int, int]) -> None:
    images = torch.stack([torch.randn(1, *size) * 0.1 + 0.5, torch.randn(1, *size) * 0.4 - 0.5])
    mask = random_block_mask(2, size, block_size(size, 8), 0.7)
    hidden = hide(images, mask)
    assert torch.equal(hidden[~mask], images[~mask])
    for n in range(2):
        drawn, seen = hidden[n][mask[n]], images[n][~mask[n]]
        assert drawn.mean().item() == pytest.approx(seen.mean().item(), abs=0.03)
        assert drawn.std().item() == pytest.approx(seen.std().item(), rel=0.06)
        assert abs(torch.corrcoef(torch.stack([drawn, images[n][mask[n]]]))[0, 1]) < 0.1, "nothing shines through"
    filled = hide(images, mask, "mean")
    assert filled[0][mask[0]].std() < 1e-6 and filled[0][mask[0]][0].item() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(UserError, match="mask_fill must be one of noise, mean"):
        hide(images, mask, "zero")
