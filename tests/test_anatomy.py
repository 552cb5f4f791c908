"""The anatomy check accepts phantoms and real chests, and rejects what a failed generator makes."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from medical_diffusion.data.phantoms import MASK_LABELS, chest_ct_phantom
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.anatomy import chest_anatomy

TEST_DATA = Path(
    os.environ.get("MEDICAL_DIFFUSION_TEST_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data")
)
CT_CHEST = sorted((TEST_DATA / "ct_chest" / "images").glob("*.nii.gz"))


def check(image: np.ndarray, spacing=None):
    return chest_anatomy(image, spacing or 320 / np.array(image.shape))


@pytest.fixture(scope="module")
def phantoms():
    return {size: [chest_ct_phantom(seed, size) for seed in range(count)] for size, count in ((32, 30), (64, 6))}


@pytest.mark.parametrize("size", [32, 64])
def test_phantoms_are_complete(phantoms, size):
    found = [check(phantom.image) for phantom in phantoms[size]]
    assert [seed for seed, anatomy in enumerate(found) if not anatomy.complete] == []


def filled(phantom, *labels: str) -> np.ndarray:
    """The phantom with some structures replaced by muscle."""
    structure = np.isin(phantom.mask, [MASK_LABELS[label] for label in labels])
    image = phantom.image.copy()
    image[structure] = 40
    return image


def without_heart(phantom) -> np.ndarray:
    heart = ndimage.binary_dilation(phantom.mask == MASK_LABELS["heart"])
    keep = np.isin(phantom.mask, [MASK_LABELS["spine"], MASK_LABELS["liver"]])
    return np.where(heart & ~keep, -850, phantom.image)


def without_spine(phantom) -> np.ndarray:
    spine = ndimage.binary_dilation(phantom.mask == MASK_LABELS["spine"])
    return np.where(spine & (phantom.image > 60), 40, phantom.image)


def mosaic(phantom) -> np.ndarray:
    """Cubes of a quarter of each axis in random places."""
    n = phantom.image.shape[0] // 4
    cubes = phantom.image.reshape(4, n, 4, n, 4, n).transpose(0, 2, 4, 1, 3, 5).reshape(64, n, n, n)
    cubes = np.random.default_rng(int(phantom.facts["noise_hu"] * 100)).permutation(cubes)
    return cubes.reshape(4, 4, 4, n, n, n).transpose(0, 3, 1, 4, 2, 5).reshape(phantom.image.shape)


def grey_blur(phantom) -> np.ndarray:
    n = phantom.image.shape[0] // 16
    small = phantom.image.reshape(n, 16, n, 16, n, 16).mean((1, 3, 5))
    return ndimage.zoom(small, 16, order=1, mode="nearest", grid_mode=True)


CORRUPTIONS = {
    "mosaic": (mosaic, None),
    "grey blur": (grey_blur, None),
    "left lung filled": (lambda phantom: filled(phantom, "left_lung"), "left_lung"),
    "right lung filled": (lambda phantom: filled(phantom, "right_lung"), "right_lung"),
    "heart gone": (without_heart, "heart"),
    "spine gone": (without_spine, "spine"),
    "mirrored": (lambda phantom: phantom.image[::-1], "heart"),
    "front to back": (lambda phantom: phantom.image[:, ::-1], "spine"),
    "upside down": (lambda phantom: phantom.image[:, :, ::-1], None),
}


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupted_phantoms_are_rejected(phantoms, size, name):
    corrupt, organ = CORRUPTIONS[name]
    found = [check(corrupt(phantom)) for phantom in phantoms[size][:8]]
    assert [seed for seed, anatomy in enumerate(found) if anatomy.complete] == []
    if organ:
        assert not any(getattr(anatomy, organ) for anatomy in found)


@pytest.mark.parametrize("value", [-1000, -850, 0, 40, 500])
def test_a_constant_is_rejected(value):
    anatomy = check(np.full((32, 32, 32), value, np.float32))
    assert not (anatomy.complete)
    assert not (anatomy.left_lung)
    assert not (anatomy.right_lung)
    assert not (anatomy.heart)


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_rejected(seed):
    rng = np.random.default_rng(seed)
    assert not check(rng.uniform(-1000, 1000, (32, 32, 32))).complete
    assert not check(rng.normal(-300, 400, (32, 32, 32))).complete


@pytest.mark.parametrize("size", [(64, 64, 1), (64, 48, 24), (40, 44, 33)])
def test_single_slices_and_anisotropic_volumes_are_read(size):
    for seed in range(3):
        phantom = chest_ct_phantom(seed, size)
        spacing = tuple(np.diag(phantom.affine)[:3])
        assert check(phantom.image, spacing).complete
        assert not check(phantom.image[::-1], spacing).complete


def test_small_errors_of_a_generator_are_tolerated(phantoms):
    rng = np.random.default_rng(0)
    found = []
    for phantom in phantoms[32][:16]:
        soft = ndimage.gaussian_filter(phantom.image, 0.5) + rng.normal(0, 25, phantom.image.shape)
        found.append(check(soft).complete)
    assert np.mean(found) >= 0.9


@pytest.mark.skipif(not CT_CHEST, reason=f"no chest CT in {TEST_DATA}")
@pytest.mark.parametrize("path", CT_CHEST, ids=lambda path: path.name[:12])
@pytest.mark.parametrize("voxel_mm", [10, 5])
def test_real_chests_are_complete_and_their_mirror_images_are_not(path, voxel_mm):
    nifti = nibabel.as_closest_canonical(nibabel.load(path))
    volume = np.asarray(nifti.dataobj, np.float32)
    spacing = np.array(nifti.header.get_zooms()[:3])
    start = [max(0, (n - round(320 / s)) // 2) for n, s in zip(volume.shape, spacing, strict=True)]
    crop = volume[tuple(slice(a, n - a) for a, n in zip(start, volume.shape, strict=True))]
    coarse = ndimage.zoom(ndimage.gaussian_filter(crop, voxel_mm / spacing / 2.4), spacing / voxel_mm, order=1)
    assert check(coarse, (voxel_mm,) * 3).complete
    assert not check(coarse[::-1], (voxel_mm,) * 3).complete


def test_bad_input_is_refused():
    with pytest.raises(UserError, match=r"one finite volume \(H, W, D\).*shape \(4, 4\)"):
        chest_anatomy(np.zeros((4, 4)), (1, 1, 1))
    with pytest.raises(UserError, match="one finite volume"):
        chest_anatomy(np.full((4, 4, 4), np.nan), (1, 1, 1))
    with pytest.raises(UserError, match="spacing must be three positive lengths"):
        chest_anatomy(np.zeros((4, 4, 4)), (1, 0, 1))
