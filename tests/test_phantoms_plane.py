"""The plane of flat phantoms: areas are kept at any pixel size, noise is the same surface at every size."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion.data.phantoms.plane import Plane, image_plane
from medical_diffusion.errors import UserError


def plane_of(pixels: int, extent: float = 10.0, finest: float = 1.0) -> Plane:
    return Plane((pixels, pixels), extent / pixels, finest, (0, 0))


@pytest.mark.parametrize("pixels", [20, 100, 400])
@pytest.mark.parametrize("radius", [0.02, 0.2, 1.0])
def test_a_tube_covers_its_area_whatever_its_width(pixels, radius):
    plane = plane_of(pixels)
    start, end = (-3.0, -1.0), (2.0, 1.5)
    box, tube = plane.tube(start, end, (radius, radius))
    length = np.hypot(5, 2.5)
    caps = np.pi * max(radius, plane.step / 2) * radius
    assert tube.sum() * plane.step**2 == pytest.approx(2 * radius * length + caps, rel=0.05)
    assert tube.shape == tuple(b.stop - b.start for b in box)


def test_a_tube_tapers():
    plane = plane_of(200)
    _, tube = plane.tube((-4, 0), (4, 0), (1.0, 0.2))
    widths = tube.sum(0)[20:-20] * plane.step
    assert (np.diff(widths) < 1e-6).all() and widths[len(widths) // 2] == pytest.approx(1.2, rel=0.1)


def test_noise_has_deviation_one_and_is_the_same_surface_at_every_size():
    fine, coarse = (plane_of(n).noise(np.random.default_rng(3), 0.5, 10.0) for n in (240, 80))
    assert fine.std() == pytest.approx(1, abs=0.1) and abs(fine.mean()) < 0.1
    averaged = fine.reshape(80, 3, 80, 3).mean((1, 3))
    assert np.corrcoef(averaged.ravel(), coarse.ravel())[0, 1] > 0.99
    assert not plane_of(10).noise(np.random.default_rng(3), 0.5, 10.0).any(), "finer than the pixels"


def test_noise_of_a_large_cell_stays_smooth_beyond_its_extent():
    plane = Plane((4, 300), 0.1, 1.0, (0,))
    surface = plane.noise(np.random.default_rng(0), 1.0, 10.0)
    assert np.isfinite(surface).all() and np.abs(np.diff(surface, axis=1)).max() < 0.5
    assert np.ptp(surface[:, -60:], axis=1).max() == pytest.approx(0, abs=1e-5)


def test_large_pixels_are_drawn_finer_and_averaged():
    plane = plane_of(5, finest=0.5)
    assert plane.factor == 4 and plane.layers.shape == (20, 20, 2)
    disc = plane.coverage(np.hypot(plane.x, plane.y) - 3)
    plane.paint(disc, (1.0, 2.0), np.s_[:, :], label=7)
    picture = plane.average(plane.layers)
    assert picture.shape == (5, 5, 2)
    assert picture[..., 0].sum() * 4 == pytest.approx(np.pi * 9, rel=0.02)
    assert np.allclose(picture[..., 1], 2 * picture[..., 0])
    labels, share = plane.labels(), picture[..., 0]
    assert labels.shape == (5, 5) and (labels[share > 0.6] == 7).all() and (labels[share < 0.4] == 0).all()


def test_a_structure_outside_of_the_picture_changes_nothing():
    plane = plane_of(10)
    for centre in ((30.0, 0.0), (0.0, -30.0)):
        box, tube = plane.tube(centre, centre, (1, 1))
        plane.paint(tube, (1, 1), box, label=1)
    assert not plane.layers.any() and not plane.mask.any()


def test_the_affine_is_centred_with_rows_down_and_columns_to_the_patients_left():
    plane = Plane((6, 4), 2.0, 5.0, (0,))
    affine = plane.affine(unit=0.5)
    assert affine @ [2.5, 1.5, 0, 1] == pytest.approx([0, 0, 0, 1])
    assert affine @ [1, 0, 0, 0] == pytest.approx([0, 0, -1, 0])
    assert affine @ [0, 1, 0, 0] == pytest.approx([-1, 0, 0, 0])


def test_an_image_has_rows_columns_and_depth_one():
    assert image_plane((6, 4, 1), "drawing") == (6, 4)
    with pytest.raises(UserError, match=r"a drawing is an image: image_size must end in 1.*Use \(6, 4, 1\)"):
        image_plane((6, 4, 2), "drawing")
    with pytest.raises(UserError, match="image_size must be one or three positive whole numbers"):
        image_plane((6, 4), "drawing")
