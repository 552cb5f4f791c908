"""Halves: the left and the right breast by a mask or by the outline, whichever way the volume is stored."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from data_files import voxels, write_nifti
from monai.data import MetaTensor
from monai.transforms import Orientation

from medical_diffusion.data import CropHalfd, both_halves, build_datalist
from medical_diffusion.data.phantoms.breast_mri import breast_mri_phantom
from medical_diffusion.data.preprocessing.halves import breast_of_mask
from medical_diffusion.errors import UserError

SPACING = (2.0, 2.0, 4.0)
LEFT, RIGHT = 7.0, 9.0


def torso(shape: tuple[int, int, int] = (60, 40, 12)) -> tuple[np.ndarray, np.ndarray]:
    """A body at the back of a RAS+ volume with a breast on either side, and the mask of the breasts.

    The left breast holds ``LEFT`` and the right one ``RIGHT``; both lie off the volume's centre.
    """
    image = np.random.default_rng(0).uniform(0, 0.5, shape)
    mask = np.zeros(shape, np.uint8)
    image[6:50, 4:18] = 5.0
    mask[8:24, 18:28, 2:10] = 1
    mask[32:48, 18:28, 2:10] = 1
    image[8:24, 18:28, 2:10] = LEFT
    image[32:48, 18:28, 2:10] = RIGHT
    return image, mask


def as_volume(array: np.ndarray, axcodes: str = "RAS") -> MetaTensor:
    image = MetaTensor(torch.from_numpy(array).float()[None], affine=torch.diag(torch.tensor([*SPACING, 1.0])).double())
    return Orientation(axcodes=axcodes, labels=None)(image)


def half(side: str, axcodes: str = "RAS", masked: bool = True, margin: float = 0.0) -> MetaTensor:
    image, mask = (as_volume(array, axcodes) for array in torso())
    item = {"image": image, "side": side, **({"mask": mask} if masked else {})}
    result = CropHalfd("image", margin=margin)(item)
    assert "mask" not in result
    return Orientation(axcodes="RAS", labels=None)(result["image"])


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "ASR", "IPL"])
def test_a_half_is_the_box_of_the_mask_on_its_side(axcodes: str) -> None:
    for side, value, first in (("left", LEFT, 8), ("right", RIGHT, 32)):
        result = half(side, axcodes)
        assert result.shape == (1, 16, 10, 8)
        assert result.eq(value).all()
        assert np.allclose(result.affine[:3, 3], [first * 2.0, 18 * 2.0, 2 * 4.0])


def test_the_margin_is_in_millimetres_and_ends_with_the_volume() -> None:
    assert half("left", margin=4.0).shape == (1, 20, 14, 10)
    assert half("left", margin=1000.0).shape == (1, 60, 40, 12)


def test_only_the_labels_of_the_breast_count() -> None:
    image, mask = torso()
    mask[10:12, 20:22, 4:6] = 2
    mask[:, 4:18] = 3
    item = {"image": as_volume(image), "mask": as_volume(mask), "side": "right"}
    assert CropHalfd("image", margin=0)(item)["image"].eq(RIGHT).all()


@pytest.mark.parametrize("axcodes", ["RAS", "LPI", "SAL"])
def test_without_a_mask_the_outline_is_taken(axcodes: str) -> None:
    for side, value, other in (("left", LEFT, RIGHT), ("right", RIGHT, LEFT)):
        result = half(side, axcodes, masked=False)
        assert result.eq(value).sum() == 16 * 10 * 8, "the whole breast of its side"
        assert not result.eq(other).any()
        assert result.shape[2] < 16, "the back of the body is left out"


def test_specks_do_not_widen_the_outline() -> None:
    image, _ = torso()
    clean = CropHalfd("image", margin=0)({"image": as_volume(image), "side": "left"})["image"]
    image[0, 39, 0] = image[59, 38, 11] = 9.0
    assert CropHalfd("image", margin=0)({"image": as_volume(image), "side": "left"})["image"].shape == clean.shape


def test_masks_that_do_not_fit() -> None:
    image, mask = torso()
    crop = CropHalfd("image")
    with pytest.raises(UserError, match=r"must have the shape of its image.*\(59, 40, 12\).*\(60, 40, 12\)"):
        crop({"image": as_volume(image), "mask": as_volume(mask[1:]), "side": "left"})
    shifted = as_volume(mask)
    shifted.affine = shifted.affine + torch.tensor([[0, 0, 0, 3.0]] + [[0.0] * 4] * 3)
    with pytest.raises(UserError, match=r"must lie where its image lies.*3 mm"):
        crop({"image": as_volume(image), "mask": shifted, "side": "left"})
    with pytest.raises(UserError, match=r"must hold voxels of 1 or 2.*with 0, 255"):
        crop({"image": as_volume(image), "mask": as_volume(mask * 255), "side": "left"})
    one_plane = mask * (np.arange(60) == 20)[:, None, None]
    with pytest.raises(UserError, match=r"both sides of its midline.*one plane"):
        crop({"image": as_volume(image), "mask": as_volume(one_plane), "side": "left"})
    with pytest.raises(UserError, match="must be left or right"):
        crop({"image": as_volume(image), "side": "both"})
    with pytest.raises(UserError, match="where a volume varies"):
        crop({"image": as_volume(image * 0), "side": "left"})
    with pytest.raises(UserError, match="0 mm or more"):
        CropHalfd("image", margin=-1)


def one_breast(first: int, width: int, shape: tuple[int, int, int] = (60, 40, 12)) -> np.ndarray:
    """Half an ellipsoid from plane ``first`` on, as deep as it is wide, its flat side at the back."""
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    radius = width / 2
    centre = first + (width - 1) / 2
    round_ = ((x - centre) / radius) ** 2 + ((y - 8) / radius) ** 2 + ((z - 5.5) / 6) ** 2 <= 1
    return (round_ & (y >= 8)).astype(np.uint8)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "ASR"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mask_of_one_breast_is_not_cut_in_silence(axcodes: str, side: str, caplog: pytest.LogCaptureFixture) -> None:
    """On one side of the volume it is refused; where it fills the volume, which a box around both does, it is told."""
    image = as_volume(torso()[0], axcodes)

    def cut(mask: np.ndarray, side: str = side) -> MetaTensor:
        return CropHalfd("image", margin=0)({"image": image, "mask": as_volume(mask, axcodes), "side": side})["image"]

    for first, width in ((4, 24), (32, 26)):
        with pytest.raises(UserError, match=r"must hold both breasts.*one side of the volume.*--halves false"):
            cut(one_breast(first, width))
    assert not caplog.messages
    for mask in (one_breast(4, 52), np.ones_like(torso()[1])):
        cut(mask)
    told = [message for message in caplog.messages if "no gap between two breasts" in message]
    assert len(told) == (2 if side == "left" else 0), "once a volume"
    assert all("--halves false" in message for message in told)


def test_two_breasts_that_touch_are_two(caplog: pytest.LogCaptureFixture) -> None:
    """A bridge of skin over the breastbone, a breast much smaller than the other, and a volume off the centre."""
    both = one_breast(2, 26) | one_breast(32, 26)
    bridged = both.copy()
    bridged[10:50, 8:12] = 1
    smaller = one_breast(2, 30) | one_breast(44, 10)
    beside = one_breast(0, 14) | one_breast(15, 14)
    for mask in (both, bridged, smaller, beside):
        for side in ("left", "right"):
            CropHalfd("image")({"image": as_volume(torso()[0]), "mask": as_volume(mask), "side": side})
    for seed in range(4):
        for size in ((32, 16, 8), (64, 32, 16), (32, 16, 1)):
            phantom = breast_mri_phantom(seed, size)
            breast_of_mask(MetaTensor(torch.from_numpy(phantom.mask)[None], affine=phantom.affine), "left")
    assert not caplog.messages


def test_every_volume_becomes_two_items_of_one_part(tmp_path: Path) -> None:
    for n in range(4):
        write_nifti(tmp_path / "images" / f"p{n}.nii.gz", voxels(seed=n))
    write_nifti(tmp_path / "masks" / "p2.nii", np.ones((6, 7, 5), np.uint8))
    lists = build_datalist(tmp_path, validation_fraction=0.25, test_fraction=0.25)
    halves = both_halves(lists)
    for part in ("train", "validation", "test"):
        before, after = getattr(lists, part), getattr(halves, part)
        assert [(item["image"], item["side"]) for item in after] == [
            (item["image"], side) for item in before for side in ("left", "right")
        ]
    items = [*halves.train, *halves.validation, *halves.test]
    assert {item["subject"] for item in items if "mask" in item} == {"p2"}
    before = halves.fingerprint
    write_nifti(tmp_path / "masks" / "p1.nii", np.ones((6, 7, 5), np.uint8))
    assert both_halves(lists).fingerprint != before, "another mask is another cache"
    before = both_halves(lists).fingerprint
    redrawn = np.ones((6, 7, 5), np.uint8)
    redrawn[3] = 0
    write_nifti(tmp_path / "masks" / "p1.nii", redrawn)
    assert both_halves(lists).fingerprint != before, "a mask that was drawn again in as many bytes"
    named = {**lists.train[0], "mask": str(tmp_path / "masks" / "p1.nii")}
    lists.train[0] = named
    assert both_halves(lists).train[0]["mask"] == named["mask"]


def test_a_mask_without_its_image(tmp_path: Path) -> None:
    for n in range(2):
        write_nifti(tmp_path / "images" / f"p{n}.nii.gz", voxels(seed=n))
    write_nifti(tmp_path / "masks" / "p9.nii", np.ones((6, 7, 5), np.uint8))
    with pytest.raises(UserError, match=r"a mask must have its image.*p9.nii: no p9"):
        both_halves(build_datalist(tmp_path))


def test_the_affine_says_which_side_is_left() -> None:
    """nibabel's name of an axis is the end that its index grows to."""
    assert nibabel.aff2axcodes(np.diag([1.0, 1, 1, 1])) == ("R", "A", "S")
    flipped = half("left", "LAS")
    assert flipped.eq(LEFT).all()
