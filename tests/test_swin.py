"""Swin UNETR: MONAI's numbers and weights where a size fits, padding and cropping where it does not, images too."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR

from medical_diffusion.errors import UserError
from medical_diffusion.networks import SwinUNETR
from medical_diffusion.networks.swin import padded_size


@pytest.mark.parametrize(("image_size", "dims"), [((64, 32, 32), 3), ((64, 32, 1), 2)])
def test_weights_and_numbers_are_monais(image_size: tuple[int, int, int], dims: int) -> None:
    ours = SwinUNETR(image_size, in_channels=2, out_channels=3, feature_size=12).eval()
    theirs = MonaiSwinUNETR(2, 3, feature_size=12, spatial_dims=dims).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 2, *image_size)
    with torch.no_grad():
        expected = theirs(x) if dims == 3 else theirs(x[..., 0])[..., None]
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)  # sums in another order


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((32, 48, 32), (32, 64, 32)),
        ((32, 32, 32), (64, 32, 32)),
        ((20, 31, 9), (32, 64, 32)),
        ((65, 64, 33), (96, 64, 64)),
        ((96, 96, 96), (96, 96, 96)),
        ((32, 30), (64, 32)),
    ],
)
def test_padding_is_the_least_that_the_network_takes(size: tuple[int, ...], target: tuple[int, ...]) -> None:
    assert padded_size(size) == target


@pytest.mark.parametrize("size", [(20, 33, 9), (33, 17, 1)])
def test_odd_sizes_come_back_whole_and_train(size: tuple[int, int, int]) -> None:
    network = SwinUNETR(size, in_channels=1, out_channels=2, feature_size=12)
    x = torch.randn(1, 1, *size)
    y = network(x)
    assert y.shape == (1, 2, *size)
    y.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_cropped_result_stands_where_the_padded_one_does() -> None:
    """A volume that repeats its border outwards, given whole, has the same result inside."""
    network = SwinUNETR((64, 32, 1), feature_size=12).eval()
    inner = torch.randn(1, 1, 60, 32, 1)
    whole = torch.cat([inner[:, :, :1]] * 2 + [inner] + [inner[:, :, -1:]] * 2, dim=2)
    with torch.no_grad():
        torch.testing.assert_close(network(inner), network(whole)[:, :, 2:62])


def test_size_too_small_or_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"at least 8 voxels along each axis.*\(32, 32, 4\).*depth 1"):
        SwinUNETR((32, 32, 4))
    with pytest.raises(UserError, match=r"feature_size must be a multiple of 12.*16"):
        SwinUNETR((32, 32, 32), feature_size=16)
    images, volumes = SwinUNETR((32, 32, 1), feature_size=12), SwinUNETR((32, 32, 32), feature_size=12)
    with pytest.raises(UserError, match=r"images \(depth 1\) takes images.*depth 8"):
        images(torch.zeros(1, 1, 32, 32, 8))
    with pytest.raises(UserError, match=r"takes more than one slice.*image_size \(H, W, 1\)"):
        volumes(torch.zeros(1, 1, 32, 32, 1))
    with pytest.raises(UserError, match="at least 8 voxels"):
        volumes(torch.zeros(1, 1, 32, 32, 7))
