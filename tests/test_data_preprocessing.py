"""Preprocessing: intensities go there and back, crops keep the place, a resize keeps place and brightness."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from data_files import oblique_affine
from monai.data import MetaTensor

from medical_diffusion.data import (
    CenterCropOrPadd,
    CropToForegroundd,
    HistogramStandardized,
    IntensityScaling,
    ResizeVolumed,
    ScaleToModelRanged,
    fit_landmarks,
    resize_volume,
)
from medical_diffusion.errors import UserError


def blob(
    size: tuple[int, int, int], affine: np.ndarray, centre: tuple[float, float, float], width: float
) -> MetaTensor:
    """Gaussian of a physical centre and width (mm), sampled on a grid."""
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    values = np.exp(-((places - np.asarray(centre)) ** 2).sum(-1) / (2 * width**2))
    return MetaTensor(torch.from_numpy(values).float()[None], affine=torch.from_numpy(affine))


def centre_of_mass(image: MetaTensor) -> np.ndarray:
    values = image[0].numpy().astype(float)
    index = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), -1)
    mean = (index * values[..., None]).sum((0, 1, 2)) / values.sum()
    affine = image.affine.numpy()
    return affine[:3, :3] @ mean + affine[:3, 3]


def test_window_goes_to_model_range_and_back_to_hounsfield_units() -> None:
    scaling = IntensityScaling("window", -1000, 400)
    volume = torch.tensor([-3000.0, -1000, -300, 400, 3000])
    scaled = scaling.to_model_range(volume)
    assert torch.allclose(scaled, torch.tensor([-1.0, -1, 0, 1, 1]))
    assert torch.allclose(scaling.to_physical(scaled), volume.clamp(-1000, 400), atol=1e-3)
    assert torch.allclose(scaling.to_physical(torch.tensor([-1.5, 1.5])), torch.tensor([-1000.0, 400]))
    assert scaling.is_physical


def test_per_volume_modes_return_to_a_relative_scale() -> None:
    volume = torch.arange(1001.0).reshape(1, 7, 11, 13)
    minmax = IntensityScaling("minmax")
    assert torch.allclose(minmax.to_model_range(volume), volume / 500 - 1, atol=1e-6)
    assert torch.allclose(minmax.to_physical(minmax.to_model_range(volume)), volume / 1000, atol=1e-6)
    robust = IntensityScaling("percentile", 10, 90)
    outlier = volume.clone()
    outlier[0, 0, 0, 0] = 1e6
    assert torch.allclose(robust.to_model_range(volume)[..., 5], robust.to_model_range(outlier)[..., 5], atol=1e-2)
    assert robust.to_model_range(outlier).abs().max() == 1
    assert not minmax.is_physical
    assert not robust.is_physical


@pytest.mark.parametrize(
    "scaling",
    [IntensityScaling("window", -1000, 1000), IntensityScaling("minmax"), IntensityScaling("percentile", 1, 99)],
)
def test_scaling_survives_a_dictionary_and_the_transform_takes_either(scaling: IntensityScaling) -> None:
    assert IntensityScaling.from_dict(scaling.to_dict()) == scaling
    image = blob((6, 7, 5), oblique_affine(), (0, 0, 0), 50)
    one = ScaleToModelRanged("image", scaling)({"image": image})["image"]
    other = ScaleToModelRanged("image", scaling.to_dict())({"image": image})["image"]
    assert torch.equal(one, other)
    assert torch.equal(one.affine, image.affine)
    assert one.min() >= -1
    assert one.max() <= 1


def test_bad_scalings() -> None:
    with pytest.raises(UserError, match=r"known mode.*windw.*Did you mean window"):
        IntensityScaling("windw")
    with pytest.raises(UserError, match=r"window needs lower < upper"):
        IntensityScaling("window", 5, 5)
    with pytest.raises(UserError, match=r"window needs lower < upper"):
        IntensityScaling("window")
    with pytest.raises(UserError, match=r"percentiles must lie in \[0, 100\]"):
        IntensityScaling("percentile", -1, 99)
    constant = MetaTensor(torch.ones(1, 2, 2, 2), meta={"filename_or_obj": "flat.nii.gz"})
    with pytest.raises(UserError, match=r"minmax needs a volume that varies.*flat.nii.gz"):
        IntensityScaling("minmax").to_model_range(constant)


@pytest.mark.parametrize("size", [(4, 9, 5), (6, 7, 1), (3, 3, 3), 8])
def test_crop_or_pad_keeps_the_anatomy_in_place(size: int | tuple[int, int, int]) -> None:
    image = blob((6, 7, 5), np.diag([1.0, 2, 3, 1]), (3, 6, 6), 1.0) * 2 - 1
    result = CenterCropOrPadd("image", size)({"image": image})["image"]
    assert result.shape[1:] == ((size,) * 3 if isinstance(size, int) else size)
    peak = np.unravel_index(int(result.argmax()), result.shape)[1:]
    before = np.unravel_index(int(image.argmax()), image.shape)[1:]
    assert np.allclose(result.affine.numpy() @ (*peak, 1), image.affine.numpy() @ (*before, 1))


def test_padding_value_and_saying_so_once(caplog: pytest.LogCaptureFixture) -> None:
    image = MetaTensor(torch.full((1, 2, 2, 2), 5.0), meta={"filename_or_obj": "small.nii.gz"})
    crop = CenterCropOrPadd("image", (4, 2, 2))
    with caplog.at_level(logging.WARNING):
        results = [crop({"image": image})["image"] for _ in range(3)]
    assert caplog.text.count("padded") == 1
    assert "small.nii.gz" in caplog.text
    assert results[0][0, 0].eq(-1).all()
    assert results[0][0, 1].eq(5).all()
    lowest = CenterCropOrPadd("image", (4, 2, 2), padding_value="minimum")({"image": image})["image"]
    assert lowest.eq(5).all()
    with pytest.raises(UserError, match=r"a number or 'minimum'"):
        CenterCropOrPadd("image", 4, padding_value="edge")


@pytest.mark.parametrize(("size", "said"), [((8, 8, 0), True), ((8, 5, 4), False), (4, False)])
def test_a_crop_that_is_mostly_padding_comes_with_a_remedy(
    size: Any, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    CenterCropOrPadd("image", size)({"image": MetaTensor(torch.rand(1, 3, 4, 4))})
    assert ("Only 19 % of that crop would be image" in caplog.text and "--crop_size none" in caplog.text) == said


def test_no_padding_is_not_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    CenterCropOrPadd("image", 2)({"image": MetaTensor(torch.rand(1, 3, 3, 3))})
    assert "padded" not in caplog.text


@pytest.mark.parametrize("size", [(16, 16, 16), (15, 40, 9), (64, 20, 25), (32, 27, 6)])
def test_resize_keeps_place_extent_and_brightness(size: tuple[int, int, int]) -> None:
    affine = oblique_affine((1.0, 1.2, 1.5))
    shape = (32, 27, 25)
    centre = affine[:3, :3] @ (np.asarray(shape) / 2 - 0.5) + affine[:3, 3]
    image = blob(shape, affine, tuple(centre), 4.0)
    result = ResizeVolumed("image", size)({"image": image})["image"]
    assert result.shape == (1, *size)
    assert result.dtype == torch.float32
    extent = np.linalg.norm(result.affine[:3, :3].numpy(), axis=0) * size
    assert np.allclose(extent, np.array([1.0, 1.2, 1.5]) * shape, atol=1e-6)
    assert np.allclose(centre_of_mass(result), centre, atol=0.02)
    assert abs(float(result.mean() / image.mean()) - 1) < 0.02
    # The grid's outer corner stays where it was.
    corner = np.array([-0.5, -0.5, -0.5, 1])
    assert np.allclose(result.affine.numpy() @ corner, affine @ corner)


def test_resize_off_centre_blob_stays_in_place() -> None:
    affine = np.diag([0.8, 1.1, 2.0, 1.0])
    image = blob((40, 36, 30), affine, (12.0, 22.0, 33.0), 3.0)
    for size in ((20, 20, 20), (60, 25, 31)):
        assert np.allclose(centre_of_mass(resize_volume(image, size)), (12.0, 22.0, 33.0), atol=0.05)


def test_resize_of_a_planar_image_works_in_the_plane() -> None:
    plane = torch.rand(1, 12, 10, 1)
    result = resize_volume(plane, (6, 20, 1))
    assert result.shape == (1, 6, 20, 1)
    deep = resize_volume(plane.expand(-1, -1, -1, 4), (6, 20, 4))
    assert torch.allclose(deep, result.expand_as(deep))


def test_resize_does_not_alias() -> None:
    """The finest checkerboard averages out when the grid is halved; plain linear sampling would keep stripes."""
    i, j, k = torch.meshgrid(*(torch.arange(n) for n in (33, 32, 31)), indexing="ij")
    board = ((i + j + k) % 2).float()[None]
    small = resize_volume(board, (11, 10, 10))
    assert (small[:, 1:-1, 1:-1, 1:-1] - 0.5).abs().max() < 0.02


def test_resize_to_the_same_size_and_of_a_constant_change_nothing() -> None:
    image = MetaTensor(torch.rand(2, 5, 6, 7), affine=torch.from_numpy(oblique_affine()))
    same = resize_volume(image, (5, 6, 7))
    assert torch.equal(same, image)
    assert torch.allclose(same.affine, image.affine)
    assert torch.allclose(resize_volume(torch.full((1, 5, 6, 7), 3.0), (9, 2, 1)), torch.tensor(3.0))


def test_resize_axes_agree() -> None:
    """The depth axis is filtered as the others are."""
    image = torch.rand(1, 12, 10, 9)
    turned = resize_volume(image.permute(0, 3, 1, 2), (4, 20, 7)).permute(0, 2, 3, 1)
    assert torch.allclose(resize_volume(image, (20, 7, 4)), turned, atol=1e-6)


@pytest.mark.parametrize("affine", [np.diag([1.0, 2, 3, 1]), oblique_affine()])
def test_foreground_crop_keeps_the_foreground_in_place(affine: np.ndarray) -> None:
    voxels = torch.zeros(1, 12, 10, 8)
    voxels[0, 3:7, 4:9, 5:7] = torch.rand(4, 5, 2) + 1
    image = MetaTensor(voxels, affine=torch.from_numpy(affine))
    bare = CropToForegroundd("image")({"image": image})["image"]
    assert bare.shape == (1, 4, 5, 2)
    assert bare.min() > 0
    wide = CropToForegroundd("image", margin=2)({"image": image})["image"]
    assert wide.shape == (1, 8, 8, 5), "the margin ends where the volume ends"
    assert np.allclose(centre_of_mass(wide), centre_of_mass(image))
    brighter = CropToForegroundd("image", background=5)
    with pytest.raises(UserError, match=r"needs voxels above 5.*foreground_crop none"):
        brighter({"image": image})


def test_bad_foreground_crops() -> None:
    empty = MetaTensor(torch.zeros(1, 3, 3, 3), meta={"filename_or_obj": "air.nii.gz"})
    with pytest.raises(UserError, match=r"needs voxels above 0.*air.nii.gz with 0 to 0"):
        CropToForegroundd("image")({"image": empty})
    with pytest.raises(UserError, match="whole number of voxels"):
        CropToForegroundd("image", margin=-1)


def scanner(seed: int, gain: float, offset: float) -> torch.Tensor:
    """One anatomy under the gain and offset of a scanner: dark air, then two tissues."""
    generator = torch.Generator().manual_seed(seed)
    tissue = torch.rand(1, 12, 12, 12, generator=generator) * 40
    tissue[:, :, :, :6] += 100
    tissue[:, :, :4] += 60
    return tissue * gain + offset


def test_histogram_standardisation_undoes_the_scanner() -> None:
    landmarks = fit_landmarks([scanner(n, 1.0 + n, 30.0 * n) for n in range(4)], progress=False)
    assert landmarks == sorted(landmarks)
    assert landmarks[0] == pytest.approx(0, abs=1e-6) and landmarks[-1] == pytest.approx(100)
    step = HistogramStandardized("image", landmarks)
    one, other = (step({"image": scanner(9, gain, offset)})["image"] for gain, offset in ((1, 0), (7, -200)))
    assert torch.allclose(one, other, atol=1e-2)
    top = torch.quantile(one[one > one.mean()], 0.99)
    assert float(top) == pytest.approx(100, abs=1)


def test_histogram_standardisation_keeps_the_place_and_the_order() -> None:
    image = MetaTensor(scanner(0, 2, 5), affine=torch.from_numpy(oblique_affine()), meta={"filename_or_obj": "a.nii"})
    result = HistogramStandardized("image", fit_landmarks([image], progress=False))({"image": image})["image"]
    assert torch.equal(result.affine, image.affine) and result.meta["filename_or_obj"] == "a.nii"
    brightness = image.flatten().argsort()
    assert result.flatten()[brightness].diff().min() > -1e-3


def test_landmarks_are_the_mean_over_volumes_and_have_few_digits() -> None:
    volumes = [scanner(n, 1.0 + n, n) for n in range(3)]
    together = fit_landmarks(volumes, progress=False)
    alone = [fit_landmarks([volume], progress=False) for volume in volumes]
    assert np.allclose(together, np.mean(alone, axis=0), atol=1e-4)
    assert fit_landmarks(volumes, progress=False) == together


def test_steps_travel_to_worker_processes() -> None:
    image = MetaTensor(scanner(0, 1, -20))
    for step in (CropToForegroundd("image", 1, 100), HistogramStandardized("image", fit_landmarks([image], False))):
        copy = pickle.loads(pickle.dumps(step))
        assert torch.equal(copy({"image": image})["image"], step({"image": image})["image"])


def test_bad_histogram_standardisation() -> None:
    with pytest.raises(UserError, match=r"needs landmarks.*fit_landmarks"):
        HistogramStandardized("image")({"image": torch.rand(1, 4, 4, 4)})
    with pytest.raises(UserError, match="at least one training volume"):
        fit_landmarks([], progress=False)
    flat = MetaTensor(torch.ones(1, 3, 3, 3), meta={"filename_or_obj": "flat.nii"})
    with pytest.raises(UserError, match=r"volumes that vary.*flat.nii"):
        fit_landmarks([flat], progress=False)
    two = torch.zeros(1, 3, 3, 3)
    two[0, 0] = 1
    with pytest.raises(UserError, match="many values above their mean"):
        fit_landmarks([two], progress=False)


def test_a_crop_of_0_leaves_an_axis_whole() -> None:
    image = MetaTensor(torch.rand(1, 5, 6, 7))
    assert CenterCropOrPadd("image", (0, 0, 3))({"image": image})["image"].shape == (1, 5, 6, 3)
    with pytest.raises(UserError, match="0 for a whole axis"):
        CenterCropOrPadd("image", (1, -1, 2))
