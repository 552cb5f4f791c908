"""Breast phantoms: one breast in each half, before the chest wall, of the density that the facts tell."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from medical_diffusion.data.phantoms.breast_mri import DENSITIES, MASK_LABELS, Chest, breast_mri_phantom


@pytest.fixture(scope="module")
def phantoms():
    return [breast_mri_phantom(seed, (64, 32, 16)) for seed in range(7)]


def centre_of(phantom, name: str) -> np.ndarray:
    """World coordinates (mm, RAS) of the middle of a label."""
    return nibabel.affines.apply_affine(phantom.affine, np.argwhere(phantom.mask == MASK_LABELS[name]).mean(0))


def mean_of(phantom, name: str) -> float:
    return float(phantom.image[phantom.mask == MASK_LABELS[name]].mean())


def test_each_half_of_the_image_holds_one_breast(phantoms):
    for phantom in phantoms:
        breasts = np.isin(phantom.mask, (MASK_LABELS["breast"], MASK_LABELS["fibroglandular"]))
        half = len(breasts) // 2
        share = breasts[:half].sum() / breasts.sum()
        assert 0.35 < share < 0.65
        columns = np.flatnonzero(breasts.any((1, 2)))
        assert columns.min() > 0 and columns.max() < len(breasts) - 1, "whole, not cut at the sides"
        assert breasts[half - 1 : half + 1].sum() < 0.02 * breasts.sum(), "apart at the midline"


def test_breasts_hang_before_the_chest_wall_and_lungs_lie_behind_it(phantoms):
    for phantom in phantoms:
        y = {name: centre_of(phantom, name)[1] for name in ("breast", "chest_wall", "lungs", "heart")}
        assert y["breast"] > y["chest_wall"] + 25 > y["chest_wall"] > y["lungs"]
        assert centre_of(phantom, "heart")[0] < 0, "the heart lies on the patient's left"


def test_fat_is_bright_gland_dark_and_lung_darkest():
    for seed in range(3):
        phantom = breast_mri_phantom(seed, (128, 64, 32))
        fat, gland, wall, lung = (
            mean_of(phantom, name) for name in ("breast", "fibroglandular", "chest_wall", "lungs")
        )
        assert fat > 1.5 * gland > 1.5 * 250
        assert fat > wall > 2 * lung


def test_the_density_is_the_share_of_the_breast_that_is_gland():
    drawn, measured = [], []
    for seed in range(7):
        phantom = breast_mri_phantom(seed, (128, 64, 32), (338, 169, 180))
        half = phantom.mask.shape[0] // 2
        low, high = DENSITIES[phantom.facts["density_category"]]
        for side, part in (("left", phantom.mask[:half]), ("right", phantom.mask[half:])):
            gland, fat = (part == MASK_LABELS["fibroglandular"]).sum(), (part == MASK_LABELS["breast"]).sum()
            drawn.append(phantom.facts["density"][side])
            measured.append(gland / (gland + fat))
            assert 0.8 * low < drawn[-1] < 1.2 * high
    assert np.corrcoef(drawn, measured)[0, 1] > 0.95
    assert np.abs(np.subtract(drawn, measured)).mean() < 0.06


def test_breasts_of_all_densities_occur():
    categories = [Chest.draw(np.random.default_rng([seed, 0])).category for seed in range(40)]
    assert set(categories) == set(DENSITIES)
