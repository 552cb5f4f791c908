"""Fundus phantoms: one disc, whose cup is as high as the facts say and decides the class; alike at every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_probe import unseen_auroc
from scipy import ndimage

from medical_diffusion.data.phantoms import PHANTOM_KINDS
from medical_diffusion.data.phantoms.fundus import MASK_LABELS, RATIOS, fundus_phantom
from medical_diffusion.data.phantoms.retina_vessels import AVASCULAR_RADIUS, draw_vessels
from medical_diffusion.errors import UserError

COUNT, TRAINED = 80, 56


@pytest.fixture(scope="module")
def phantoms():
    return [fundus_phantom(seed, (64, 64, 1)) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def large():
    return [fundus_phantom(seed, (256, 256, 1)) for seed in range(4)]


def region(phantom, *labels: str) -> np.ndarray:
    return np.isin(phantom.mask[..., 0], [MASK_LABELS[label] for label in labels])


def colours(phantom, *labels: str) -> np.ndarray:
    return phantom.image[:, :, 0][region(phantom, *labels)].mean(0)


def test_an_image_is_rgb_in_whole_values(phantoms):
    for phantom in phantoms[:8]:
        assert phantom.image.shape == (64, 64, 1, 3) and phantom.image.dtype == np.float32
        assert phantom.mask.shape == (64, 64, 1) and phantom.mask.dtype == np.uint8
        assert np.array_equal(phantom.image, np.rint(phantom.image))
        assert phantom.image.min() >= 0 and phantom.image.max() <= 255


def test_a_seed_gives_the_same_image_whatever_was_drawn_before(phantoms):
    again = fundus_phantom(7, (64, 64, 1))
    assert np.array_equal(again.image, phantoms[7].image) and np.array_equal(again.mask, phantoms[7].mask)
    assert again.facts == phantoms[7].facts
    assert not np.array_equal(again.image, phantoms[9].image)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_small_image_is_the_average_of_a_finer_one(large, factor):
    size = 256 // factor
    for seed, fine in enumerate(large):
        small = fundus_phantom(seed, (size, size, 1))
        averaged = fine.image.reshape(size, factor, size, factor, 3).mean((1, 3))
        assert np.abs(averaged - small.image[:, :, 0]).mean() < 3
        assert np.corrcoef(averaged.ravel(), small.image.ravel())[0, 1] > 0.995
        assert fine.facts == small.facts


@pytest.mark.parametrize("size", [(33, 47, 1), (96, 80, 1), (16, 16, 1), (512, 512, 1)])
def test_the_round_field_fills_the_shorter_side_of_any_size_on_black(size):
    phantom = fundus_phantom(2, size)
    assert phantom.image.shape == (*size, 3) and phantom.mask.shape == size
    outside = region(phantom, "background")
    field = ~outside
    assert field.any(0).sum() == pytest.approx(min(size[:2]), abs=1)
    assert field.any(1).sum() == pytest.approx(min(size[:2]), abs=1)
    assert field.sum() == pytest.approx(np.pi / 4 * min(size[:2]) ** 2, rel=0.05)
    assert np.median(phantom.image[:, :, 0][outside]) == 0
    pixel = np.linalg.norm(phantom.affine[:, 0])
    assert pixel * min(size[:2]) == pytest.approx(phantom.facts["field_mm"], abs=1e-3)


def test_there_is_exactly_one_disc_with_one_cup_where_the_facts_say(phantoms):
    for phantom in phantoms:
        disc, cup = region(phantom, "disc", "cup"), region(phantom, "cup")
        assert ndimage.label(disc)[1] == ndimage.label(cup)[1] == 1
        pixel = np.linalg.norm(phantom.affine[:, 0])
        row, column = np.argwhere(disc).mean(0) - 31.5
        assert (column * pixel, row * pixel) == pytest.approx(phantom.facts["disc_centre_mm"], abs=pixel)


def test_the_rim_closes_around_the_cup(large):
    for phantom in large:
        rim, disc = region(phantom, "disc"), region(phantom, "disc", "cup")
        assert np.array_equal(ndimage.binary_fill_holes(rim), disc)


def test_the_class_is_the_height_of_the_cup_by_that_of_the_disc(phantoms):
    for name, (low, high) in RATIOS.items():
        ratios = [p.facts["cup_to_disc_ratio"] for p in phantoms if p.facts["class_name"] == name]
        assert len(ratios) == COUNT // 2
        assert low - 1e-4 <= min(ratios) and max(ratios) <= high + 1e-4
        assert np.std(ratios) > 0.04, "with natural spread"
    assert RATIOS["glaucoma"][0] - RATIOS["no glaucoma"][1] > 0.1
    assert PHANTOM_KINDS["fundus"].classes == tuple(RATIOS)


def test_the_cup_in_the_picture_is_as_high_as_the_facts_say(large):
    for phantom in large:
        disc, cup = (region(phantom, *names).any(1).sum() for names in (("disc", "cup"), ("cup",)))
        assert cup / disc == pytest.approx(phantom.facts["cup_to_disc_ratio"], abs=0.05)
        pixel = np.linalg.norm(phantom.affine[:, 0])
        assert disc * pixel == pytest.approx(phantom.facts["disc_height_mm"], abs=2 * pixel)


def test_the_temple_is_on_the_left_of_a_right_eye(phantoms):
    assert {phantom.facts["eye"] for phantom in phantoms} == {"left", "right"}
    for phantom in phantoms:
        macula = np.argwhere(region(phantom, "macula")).mean(0)[1]
        disc = np.argwhere(region(phantom, "disc", "cup")).mean(0)[1]
        assert (macula < disc) == (phantom.facts["eye"] == "right")
        facts = phantom.facts
        away = abs(facts["fovea_mm"][0] - facts["disc_centre_mm"][0]) / facts["disc_height_mm"]
        assert away == pytest.approx(2.5, abs=0.25)


def test_the_eye_does_not_tell_the_class(phantoms):
    right = np.array([p.facts["eye"] == "right" for p in phantoms])
    glaucoma = np.array([p.facts["class_name"] == "glaucoma" for p in phantoms])
    assert abs(np.corrcoef(right, glaucoma)[0, 1]) < 0.3


def test_colours_are_those_of_a_retina(large):
    for phantom in large:
        field, macula, vessels, disc, cup = (colours(phantom, n) for n in ("field", "macula", "vessels", "disc", "cup"))
        assert field[0] > 1.5 * field[1] > 2 * field[2], "orange to red"
        assert macula[1] < field[1], "the macula is dark"
        assert vessels[1] < 0.8 * field[1], "blood takes green light"
        assert cup[1] > disc[1] > field[1] and cup[2] > disc[2], "the cup is paler than the rim"


def test_vessels_are_many_leave_the_disc_and_keep_off_the_fovea(large):
    for phantom in large:
        facts, pixel = phantom.facts, np.linalg.norm(phantom.affine[:, 0])
        rows, columns = np.nonzero(region(phantom, "vessels"))
        assert 0.03 < len(rows) / (phantom.mask > 0).sum() < 0.2
        fovea, disc = np.array(facts["fovea_mm"]), np.array(facts["disc_centre_mm"])
        places = np.stack([columns - 127.5, rows - 127.5], axis=-1) * pixel
        from_fovea, from_disc = (np.linalg.norm(places - p, axis=1) / facts["disc_height_mm"] for p in (fovea, disc))
        assert from_fovea.min() > 0.3
        assert (from_disc < 0.6).any()
        assert (places[:, 1] < disc[1] - 1).any() and (places[:, 1] > disc[1] + 1).any(), "above and below"


def test_no_path_of_any_eye_enters_the_avascular_zone_and_veins_are_wider():
    for seed in range(20):
        fovea = np.array([2.5, -0.25])
        vessels = draw_vessels(np.random.default_rng(seed), fovea, 0.5)
        assert {vessel.vein for vessel in vessels} == {False, True}
        assert min(np.linalg.norm(v.points - fovea, axis=1).min() for v in vessels) > AVASCULAR_RADIUS
        vein, artery = (max(v.radii[0] for v in vessels if v.vein is kind) for kind in (True, False))
        assert vein > artery
        assert all((np.diff(v.radii) <= 0).all() for v in vessels), "thinner on the way"


def test_light_and_colour_vary(phantoms):
    field = np.array([colours(p, "field") for p in phantoms])
    assert (field.std(0) > (12, 7, 4)).all()


def test_a_small_classifier_learns_the_class_from_the_picture(phantoms):
    """Logistic regression on the picture around the disc, which is found as its brightest spot."""
    images = torch.stack([torch.from_numpy(p.image[:, :, 0]).permute(2, 0, 1) for p in phantoms]) / 255
    smooth = torch.nn.functional.avg_pool2d(images[:, 1:2], 9, stride=1, padding=4).flatten(1)
    crops = []
    for image, place in zip(images, smooth.argmax(1).tolist(), strict=True):
        row, column = (min(max(i, 10), 53) for i in divmod(place, 64))
        crops.append(image[:, row - 10 : row + 10, column - 10 : column + 10])
    features = torch.nn.functional.avg_pool2d(torch.stack(crops), 2).flatten(1)
    features = (features - features[:TRAINED].mean(0)) / 0.2
    positive = torch.tensor([p.facts["class_name"] == "glaucoma" for p in phantoms])
    assert unseen_auroc(features, positive, TRAINED) > 0.9


@pytest.mark.parametrize("size", [(32, 32, 32), 32, (16, 16, 2)])
def test_another_depth_than_one_is_refused(size):
    with pytest.raises(
        UserError, match=r"fundus photograph is an image: image_size must end in 1.*Use \(\d+, \d+, 1\)"
    ):
        fundus_phantom(0, size)
