"""Histology phantoms: two stains, ordered glands or sheets of tumour, the same tissue at every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_probe import unseen_auroc
from scipy import ndimage

from medical_diffusion.data.phantoms import PHANTOM_KINDS
from medical_diffusion.data.phantoms.histology import CLASSES, STAINS, histology_phantom
from medical_diffusion.data.phantoms.tissue import FIELD_UM, MASK_LABELS
from medical_diffusion.errors import UserError

COUNT, TRAINED = 100, 70


@pytest.fixture(scope="module")
def phantoms():
    return [histology_phantom(seed, (64, 64, 1)) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def large():
    return [histology_phantom(seed, (256, 256, 1)) for seed in range(6)]


def region(phantom, *labels: str) -> np.ndarray:
    return np.isin(phantom.mask[..., 0], [MASK_LABELS[label] for label in labels])


def optical_density(phantom, where: np.ndarray) -> np.ndarray:
    """(pixels, 3) of the pixels, against the brightest light that comes through."""
    light = phantom.image[:, :, 0][where]
    return -np.log10(np.maximum(light, 1) / phantom.image.max((0, 1, 2)))


def by_class(phantoms, fact: str) -> tuple[np.ndarray, np.ndarray]:
    stable, instable = (np.array([p.facts[fact] for p in phantoms if p.facts["class_name"] == c]) for c in CLASSES)
    return stable, instable


def test_an_image_is_rgb_in_whole_values(phantoms):
    for phantom in phantoms[:8]:
        assert phantom.image.shape == (64, 64, 1, 3) and phantom.image.dtype == np.float32
        assert phantom.mask.shape == (64, 64, 1) and phantom.mask.dtype == np.uint8
        assert np.array_equal(phantom.image, np.rint(phantom.image))
        assert phantom.image.min() >= 0 and phantom.image.max() <= 255


def test_a_seed_gives_the_same_image_whatever_was_drawn_before(phantoms):
    for seed in (6, 7):
        again = histology_phantom(seed, (64, 64, 1))
        assert np.array_equal(again.image, phantoms[seed].image) and np.array_equal(again.mask, phantoms[seed].mask)
        assert again.facts == phantoms[seed].facts
    assert not np.array_equal(phantoms[7].image, phantoms[9].image)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_small_image_is_the_average_of_a_finer_one(large, factor):
    size = 256 // factor
    for seed, fine in enumerate(large):
        small = histology_phantom(seed, (size, size, 1))
        averaged = fine.image.reshape(size, factor, size, factor, 3).mean((1, 3))
        assert np.abs(averaged - small.image[:, :, 0]).mean() < 6
        assert np.corrcoef(averaged.ravel(), small.image.ravel())[0, 1] > 0.97
        assert fine.facts == small.facts


@pytest.mark.parametrize("size", [(33, 47, 1), (96, 80, 1), (16, 16, 1), (512, 512, 1)])
def test_any_size_is_drawn_and_its_longer_side_spans_the_field(size):
    for seed in (0, 1):
        phantom = histology_phantom(seed, size)
        assert phantom.image.shape == (*size, 3) and phantom.mask.shape == size
        pixel_mm = np.linalg.norm(phantom.affine[:, 0])
        assert pixel_mm * max(size) == pytest.approx(FIELD_UM / 1000)
        area = pixel_mm**2 * size[0] * size[1]
        assert phantom.facts["nuclei_per_mm2"] == pytest.approx(phantom.facts["nuclei"] / area, abs=1)


def test_a_wide_image_shows_the_middle_of_the_square_one():
    for seed in (0, 1):
        square, wide = histology_phantom(seed, (128, 128, 1)), histology_phantom(seed, (64, 128, 1))
        assert np.abs(square.image[32:96] - wide.image).mean() < 6
        assert wide.facts["nuclei"] < square.facts["nuclei"]


def test_instable_tissue_has_more_rounder_larger_nuclei_and_lymphocytes(phantoms):
    assert PHANTOM_KINDS["histology"].classes == CLASSES
    stable, instable = by_class(phantoms, "nuclei_per_mm2")
    assert len(stable) == len(instable) == COUNT // 2
    assert instable.mean() > 1.2 * stable.mean() and stable.std() > 300 < instable.std()
    stable, instable = by_class(phantoms, "nucleus_area_um2")
    assert instable.min() > 1.3 * stable.max()
    stable, instable = by_class(phantoms, "lymphocytes")
    assert instable.mean() > 3 * stable.mean()


def test_nuclei_in_the_mask_are_as_many_and_large_as_the_facts_say(large):
    """Their area, since nuclei that touch are one region; and round in sheets, long in glands."""
    slimness: dict[str, list[float]] = {name: [] for name in CLASSES}
    for phantom in large:
        facts, pixel = phantom.facts, FIELD_UM / 256
        others = facts["nuclei"] - facts["lymphocytes"]
        drawn = region(phantom, "nucleus").sum() * pixel**2
        assert drawn == pytest.approx(others * facts["nucleus_area_um2"], rel=0.15)
        parts, count = ndimage.label(region(phantom, "nucleus"))
        assert count < 1.1 * others
        for index in range(1, count + 1):
            place = np.argwhere(parts == index)
            if len(place) * pixel**2 > 0.6 * facts["nucleus_area_um2"] and place.min() > 0 and place.max() < 255:
                small, big = np.linalg.eigvalsh(np.cov(place.T))
                slimness[facts["class_name"]].append(np.sqrt(small / big))
    assert np.median(slimness["instable"]) > np.median(slimness["stable"]) + 0.15


def test_lymphocytes_in_the_mask_are_those_of_the_facts(large):
    for phantom in large[1::2]:
        count = ndimage.label(region(phantom, "lymphocyte"))[1]
        assert count == pytest.approx(phantom.facts["lymphocytes"], rel=0.25)


def test_glands_surround_lumina_in_stable_tissue_only(phantoms, large):
    for phantom in phantoms[::2]:
        assert region(phantom, "lumen").mean() > 0.005 and not region(phantom, "mucin").any()
    for phantom in phantoms[1::2]:
        assert not region(phantom, "lumen").any() and region(phantom, "epithelium", "nucleus").mean() > 0.5
    assert any(region(phantom, "mucin").any() for phantom in phantoms[1::2])
    for phantom in large[::2]:
        lumen = region(phantom, "lumen")
        around = ndimage.binary_dilation(lumen, iterations=4) & ~lumen
        assert (phantom.mask[..., 0][around] == MASK_LABELS["epithelium"]).mean() > 0.9


def test_nuclei_are_blue_stroma_is_pink_lumina_are_clear(large):
    for phantom in large:
        nucleus, stroma = (optical_density(phantom, region(phantom, n)).mean(0) for n in ("nucleus", "stroma"))
        assert nucleus.sum() > 1.5 * stroma.sum()
        assert nucleus[0] > nucleus[2], "haematoxylin takes red light, and lets blue through"
        assert stroma[1] > 2 * stroma[0], "eosin takes green light"
        if phantom.facts["class_name"] == "stable":
            assert optical_density(phantom, region(phantom, "lumen")).mean() < 0.08
        else:
            lymphocyte = optical_density(phantom, region(phantom, "lymphocyte")).mean(0)
            assert lymphocyte[0] > 1.5 * nucleus[0], "small dark ones among large pale ones"


def test_colours_are_mixtures_of_two_stains(large):
    """Optical densities lie in the plane of the two stain vectors, each of which lies between the published ones."""
    for phantom in large:
        density = optical_density(phantom, np.ones((256, 256), bool))
        third = np.linalg.svd(density.T @ density)[0][:, 2]
        off = density @ third
        assert np.sqrt(np.mean(off**2)) < 0.06 * np.sqrt(np.mean(np.sum(density**2, axis=1)))
        for pair in STAINS.transpose(1, 0, 2):
            assert np.prod(pair @ third) < 0.01, "on either side of the plane, or close to it"


def test_stains_vary(phantoms):
    stroma = np.array([optical_density(p, region(p, "stroma")).mean(0) for p in phantoms])
    assert (stroma.std(0) > 0.1 * stroma.mean(0)).all()


def test_a_small_classifier_learns_the_class_from_the_picture(phantoms):
    """Logistic regression on means and deviations of colour in a coarse grid, one weight for all places."""
    images = torch.stack([torch.from_numpy(p.image[:, :, 0]).permute(2, 0, 1) for p in phantoms]) / 255
    coarse = torch.nn.functional.avg_pool2d(images, 4)
    features = torch.cat([s.flatten(2).std(2) for s in (images, coarse)] + [images.flatten(2).mean(2)], dim=1)
    features = (features - features[:TRAINED].mean(0)) / features[:TRAINED].std(0)
    positive = torch.tensor([p.facts["class_name"] == "instable" for p in phantoms])
    assert unseen_auroc(features, positive, TRAINED) > 0.9


@pytest.mark.parametrize("size", [(32, 32, 32), 32, (16, 16, 2)])
def test_another_depth_than_one_is_refused(size):
    with pytest.raises(UserError, match=r"histological section is an image: image_size must end in 1.*Use \(\d+"):
        histology_phantom(0, size)
