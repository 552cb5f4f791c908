"""Radiograph phantoms: a projection of the chest whose class is the width of the heart, alike at every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_probe import unseen_auroc

from medical_diffusion.data.phantoms import PHANTOM_KINDS, chest_ct_phantom, radiograph_phantom
from medical_diffusion.data.phantoms.primitives import ellipsoid, rotation
from medical_diffusion.data.phantoms.projection import Rays
from medical_diffusion.data.phantoms.radiograph import MASK_LABELS, RATIOS
from medical_diffusion.data.phantoms.thorax import Thorax
from medical_diffusion.errors import UserError

COUNT = 160


@pytest.fixture(scope="module")
def phantoms():
    return [radiograph_phantom(seed, (32, 32, 1)) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def large():
    return [radiograph_phantom(seed, (128, 128, 1)) for seed in range(4)]


def silhouette(phantom, label: str) -> np.ndarray:
    return phantom.mask[..., 0] == MASK_LABELS[label]


def test_an_image_has_whole_grey_values_rows_down_and_columns_right():
    phantom = radiograph_phantom(1, (48, 37, 1))
    assert phantom.image.shape == phantom.mask.shape == (48, 37, 1)
    assert phantom.image.dtype == np.float32 and phantom.mask.dtype == np.uint8
    assert np.array_equal(phantom.image, np.rint(phantom.image))
    assert phantom.image.min() >= 0 and phantom.image.max() <= 255 and np.ptp(phantom.image) > 180
    up, left = -phantom.affine[2, 0], -phantom.affine[0, 1]
    assert up * 48 == pytest.approx(left * 37) == pytest.approx(phantom.facts["field_of_view_mm"], abs=0.1)


def test_a_seed_gives_the_same_image_whatever_was_drawn_before(phantoms):
    again = radiograph_phantom(7, (32, 32, 1))
    assert np.array_equal(again.image, phantoms[7].image)
    assert again.facts == phantoms[7].facts
    assert not np.array_equal(again.image, phantoms[9].image)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_small_image_is_the_average_of_a_finer_one(large, factor):
    size = 128 // factor
    for seed, fine in enumerate(large):
        small = radiograph_phantom(seed, (size, size, 1))
        averaged = fine.image[..., 0].reshape(size, factor, size, factor).mean((1, 3))
        assert np.abs(averaged - small.image[..., 0]).mean() < 1.5
        assert np.corrcoef(averaged.ravel(), small.image.ravel())[0, 1] > 0.998
        assert fine.facts == small.facts


def test_noise_is_small_and_there(large):
    for phantom in large:
        image = phantom.image[..., 0]
        second = image[1:-1, 2:] - 2 * image[1:-1, 1:-1] + image[1:-1, :-2]
        assert 0.3 < np.median(np.abs(second)) < 8


def test_lungs_are_dark_heart_and_spine_bright_and_the_heart_lies_on_the_right_of_the_image(large):
    for phantom in large:
        image = phantom.image[..., 0]
        heart, right, left = (silhouette(phantom, name) for name in ("heart", "right_lung", "left_lung"))
        assert image[right].mean() < 0.65 * image[heart].mean()
        assert image[left].mean() < 0.65 * image[heart].mean()
        middle = np.argwhere(right | left).mean(0)[1]
        assert np.argwhere(right)[:, 1].mean() < middle < np.argwhere(heart)[:, 1].mean()
        assert image[-6:, 50:78].mean() > 180, "below the diaphragm it is bright"
        upper = image[30:60]
        assert upper[:, 58:70].mean() > upper[:, 25:45].mean() + 80, "the spine is brighter than the lung"
        world = phantom.affine @ [0, *np.argwhere(heart).mean(0)[1:], 0, 1]
        assert world[0] < 0, "the heart lies on the patient's left, which is negative x"


def test_the_class_is_the_width_of_the_heart(phantoms):
    for name, (low, high) in RATIOS.items():
        ratios = [p.facts["heart_width_ratio"] for p in phantoms if p.facts["class_name"] == name]
        assert len(ratios) == COUNT // 2
        assert low - 1e-4 <= min(ratios) and max(ratios) <= high + 1e-4
        assert np.std(ratios) > 0.015, "with natural spread"
    assert RATIOS["cardiomegaly"][0] - RATIOS["normal"][1] > 0.05
    assert PHANTOM_KINDS["radiograph"].classes == tuple(RATIOS)


def test_the_heart_in_the_picture_is_as_wide_as_the_facts_say():
    for seed in range(6):
        phantom = radiograph_phantom(seed, (128, 128, 1))
        pixel = -phantom.affine[0, 1]
        width = silhouette(phantom, "heart").any(0).sum() * pixel
        lungs = np.flatnonzero((silhouette(phantom, "left_lung") | silhouette(phantom, "right_lung")).any(0))
        chest = (lungs[-1] - lungs[0] + 1) * pixel
        assert width / chest == pytest.approx(phantom.facts["heart_width_ratio"], rel=0.15)


def test_a_small_classifier_learns_the_class_from_the_picture(phantoms):
    images = torch.stack([torch.from_numpy(p.image[..., 0]) for p in phantoms])
    features = torch.nn.functional.avg_pool2d(images[:, None], 2).flatten(1) / 255
    features = (features - features[:120].mean(0)) / 0.2
    positive = torch.tensor([p.facts["class_name"] == "cardiomegaly" for p in phantoms])
    assert unseen_auroc(features, positive, 120) > 0.9


def test_the_lungs_are_those_of_the_ct_phantom():
    """The projected thickness of the lungs follows that of the drawn volume of the same chest."""
    seed = 3
    thorax = Thorax.draw(np.random.default_rng([seed, 0]))
    ct = chest_ct_phantom(seed, (64, 64, 64))
    air = (np.isin(ct.mask, [2, 3, 10, 11])).sum(1) * 5.0
    rays = Rays((64, 64), (320, 320), (0, 0), thorax.turn, thorax.shift)
    thickness = np.zeros((64, 64))
    for side in (-1, 1):
        corners = np.array(np.meshgrid(*zip(*thorax.lung_block(side), strict=True))).reshape(3, -1).T
        patch, inside, _ = rays.sampled(lambda p, side=side: thorax.lung(p, side, thorax.rib_cage(p)), corners)
        full = np.zeros(rays.shape, np.float32)
        full[patch] = inside.sum(0)
        thickness += rays.average(full)
    expected = air.T[::-1, ::-1]
    assert np.corrcoef(thickness.ravel(), expected.ravel())[0, 1] > 0.98
    assert thickness.sum() == pytest.approx(expected.sum(), rel=0.1)


def test_a_chest_with_a_given_heart_is_otherwise_the_chest_of_the_seed():
    for seed in range(20):
        drawn, given = Thorax.draw(np.random.default_rng(seed)), Thorax.draw(np.random.default_rng(seed), 0.62)
        assert given.heart_width_ratio == pytest.approx(0.62)
        assert given.body == drawn.body and given.apex == drawn.apex and given.lung_hu == drawn.lung_hu
        half = np.sqrt(np.square(given.heart_turn * given.heart_axes).sum(1))
        assert half[0] == pytest.approx(0.62 * given.cavity[0])
        assert half[1] <= 0.58 * given.cavity[1] + 1e-6, "a flat chest presses the heart flat"
        assert given.carina[2] > given.heart_centre[2]


@pytest.mark.parametrize("size", [(32, 32, 32), 32, (16, 16, 2)])
def test_another_depth_than_one_is_refused(size):
    with pytest.raises(UserError, match=r"image_size must end in 1.*Use \(\d+, \d+, 1\)"):
        radiograph_phantom(0, size)


@pytest.mark.parametrize("size", [(16, 16, 1), (17, 40, 1), (256, 256, 1)])
def test_any_size_is_drawn(size):
    assert radiograph_phantom(2, size).image.shape == size


TURN, SHIFT = rotation((4, -3, 6)), np.array([3.0, -5.0, 2.0])


@pytest.fixture
def rays() -> Rays:
    return Rays((40, 50), (120, 120), (4, -6), TURN, SHIFT)


def volume_of(rays: Rays, lengths: np.ndarray) -> float:
    return float(lengths.sum() * np.prod(rays.steps))


def test_rays_measure_the_volume_of_an_ellipsoid(rays):
    enter, leave = rays.ellipsoid((2, 0, 3), (30, 22, 15), rotation((10, 20, 30)))
    assert volume_of(rays, leave - enter) == pytest.approx(4 / 3 * np.pi * 30 * 22 * 15, rel=0.01)


def test_sampled_rays_measure_the_same_as_exact_ones(rays):
    centre, axes, turn = (2, 0, 3), (30, 22, 15), rotation((10, 20, 30))
    corners = np.array(np.meshgrid(*[(c - 34, c + 34) for c in centre])).reshape(3, -1).T
    patch, inside, _ = rays.sampled(lambda p: ellipsoid(p, centre, axes, turn), corners)
    enter, leave = rays.ellipsoid(centre, axes, turn)
    exact = leave - enter
    sampled = np.zeros(rays.shape, np.float32)
    sampled[patch] = inside.sum(0)
    assert volume_of(rays, sampled) == pytest.approx(volume_of(rays, exact), rel=0.03)
    inner = exact > 20
    assert np.abs(sampled - exact)[inner].max() < 4, "no contour lines"


@pytest.mark.parametrize(("radius", "ends"), [(8, ((-20, 0, -10), (20, 10, 10))), (0.4, ((-30, 5, 0), (25, -10, 20)))])
def test_rays_measure_the_volume_of_a_tube_of_any_width(rays, radius, ends):
    patch, chord = rays.tube(*ends, radius)
    length = np.linalg.norm(np.subtract(*ends))
    caps = 4 / 3 * np.pi * radius**3
    assert volume_of(rays, chord) == pytest.approx(np.pi * radius**2 * length + caps, rel=0.08)
    assert chord.shape == tuple(p.stop - p.start for p in patch)


def test_rays_measure_a_column_as_its_distance_says(rays):
    enter, leave = rays.column((0, 2), (35, 28, 30), 5)
    x, y, z = rays.at(0.5 * (enter + leave))
    hit = leave > enter + 1
    assert hit.any() and not hit.all()
    inside = np.abs(x / 35) ** 2.5 + np.abs((y - 2) / 28) ** 2.5 + (np.maximum(z - 5, 0) / 30) ** 2.5
    assert inside[hit].max() < 1.02
    x, y, z = rays.at(leave)
    front = np.abs(x / 35) ** 2.5 + np.abs((y - 2) / 28) ** 2.5 + (np.maximum(z - 5, 0) / 30) ** 2.5
    assert np.quantile(np.abs(front[hit] - 1), 0.95) < 0.05, "only tangents may stray"
