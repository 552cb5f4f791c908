"""Brain phantoms: a folded cortex around white matter, fluid in the middle, nothing outside."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, distance_transform_edt

from medical_diffusion.data.phantoms.brain_mri import MASK_LABELS, brain_mri_phantom


@pytest.fixture(scope="module")
def phantoms():
    return [brain_mri_phantom(seed, (32, 32, 32)) for seed in range(16)]


def centre_of(phantom, name: str) -> np.ndarray:
    """World coordinates (mm, RAS) of the middle of a label."""
    return nibabel.affines.apply_affine(phantom.affine, np.argwhere(phantom.mask == MASK_LABELS[name]).mean(0))


def mean_of(phantom, name: str) -> float:
    return float(phantom.image[phantom.mask == MASK_LABELS[name]].mean())


def test_the_brain_has_the_order_of_intensities_of_a_t1_weighted_image():
    for seed in range(3):
        phantom = brain_mri_phantom(seed, (64, 64, 64))
        fluid, grey, deep, white = (
            mean_of(phantom, name) for name in ("ventricles", "grey_matter", "deep_grey_matter", "white_matter")
        )
        assert fluid + 150 < grey < white - 120
        assert grey < deep < white
        assert (phantom.image[phantom.mask == 0] == 0).mean() > 0.95, "no skull, no noise beside the brain"


def test_the_parts_of_the_brain_lie_in_their_places(phantoms):
    for phantom in phantoms:
        white, ventricles, cerebellum, stem = (
            centre_of(phantom, name) for name in ("white_matter", "ventricles", "cerebellum", "brainstem")
        )
        assert cerebellum[2] < white[2] - 25 and cerebellum[1] < white[1] - 20, "below and behind"
        assert stem[2] < white[2] - 25 and stem[1] > cerebellum[1] + 10, "the stem lies before the cerebellum"
        assert np.abs(ventricles - white).max() < 25, "in the middle"
        voxels = np.argwhere(phantom.mask == MASK_LABELS["ventricles"])
        x = nibabel.affines.apply_affine(phantom.affine, voxels)[:, 0] - white[0]
        assert (x < -4).any() and (x > 4).any(), "on both sides"


def test_the_cortex_is_a_folded_shell_around_the_white_matter():
    for seed in range(3):
        phantom = brain_mri_phantom(seed, (64, 64, 64))
        inside = distance_transform_edt(phantom.mask > 0)
        grey, white = (phantom.mask == MASK_LABELS[name] for name in ("grey_matter", "white_matter"))
        assert inside[grey].mean() < 0.7 * inside[white].mean()
        assert 0.5 < grey.sum() / white.sum() < 2.5
        outside = binary_dilation(phantom.mask == 0) & (phantom.mask > 0)
        boundary = binary_dilation(white) & grey
        assert boundary.sum() > 1.15 * outside.sum(), "folds give white matter more surface than the hull has"
        sulci = phantom.mask == MASK_LABELS["sulcal_fluid"]
        assert inside[sulci].max() * phantom.affine[0, 0] > 10, "sulci reach deep"


def test_atrophy_widens_ventricles_and_sulci(phantoms):
    atrophy, ventricles, sulci = [], [], []
    for phantom in phantoms:
        atrophy.append(phantom.facts["atrophy"])
        ventricles.append((phantom.mask == MASK_LABELS["ventricles"]).sum() / (phantom.mask > 0).sum())
        sulci.append((phantom.mask == MASK_LABELS["sulcal_fluid"]).sum() / (phantom.mask > 0).sum())
    assert np.ptp(atrophy) > 0.5
    assert np.corrcoef(atrophy, ventricles)[0, 1] > 0.85
    assert np.corrcoef(atrophy, sulci)[0, 1] > 0.6
