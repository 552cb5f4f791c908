"""MRI phantoms of brain, breasts and knee: what all three keep, and the parts they share."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from medical_diffusion.data.phantoms import PHANTOM_KINDS
from medical_diffusion.data.phantoms.mri import WaveField, bias_field, magnitude_noise, noise_deviation
from medical_diffusion.data.phantoms.primitives import chain, segment_distance, smooth_min
from medical_diffusion.errors import UserError

SMALL = {"brain_mri": (32, 32, 32), "breast_mri": (64, 32, 16), "knee_mri": (32, 32, 16)}
CODES = {"brain_mri": "RAS", "breast_mri": "RAS", "knee_mri": "ASR"}
KINDS = tuple(SMALL)


@pytest.fixture(scope="module")
def phantoms():
    return {kind: [PHANTOM_KINDS[kind].generate(seed, SMALL[kind]) for seed in range(7)] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_phantom_whatever_was_drawn_before(kind, phantoms):
    again, first = PHANTOM_KINDS[kind].generate(5, SMALL[kind]), phantoms[kind][5]
    assert np.array_equal(again.image, first.image) and np.array_equal(again.mask, first.mask)
    assert again.facts == first.facts
    assert not np.array_equal(again.image, phantoms[kind][6].image)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_phantom_is_the_average_of_a_finer_one(kind):
    generate, size = PHANTOM_KINDS[kind].generate, SMALL[kind]
    for seed in (1, 2):
        coarse, fine = generate(seed, size), generate(seed, tuple(2 * n for n in size))
        blocks = [n for count in size for n in (count, 2)]
        halved = fine.image.reshape(blocks).mean((1, 3, 5))
        assert np.corrcoef(halved.ravel(), coarse.image.ravel())[0, 1] > 0.985
        body = coarse.mask > 0  # in air the noise itself is what is seen, and it depends on the size
        assert halved[body].mean() == pytest.approx(coarse.image[body].mean(), rel=0.02)
        assert {k: v for k, v in fine.facts.items() if k != "noise"} == {
            k: v for k, v in coarse.facts.items() if k != "noise"
        }


@pytest.mark.parametrize("kind", KINDS)
def test_every_label_occurs_and_the_signal_stays_in_its_range(kind, phantoms):
    for phantom in phantoms[kind]:
        assert set(np.unique(phantom.mask)) == set(PHANTOM_KINDS[kind].labels.values())
        assert phantom.image.min() >= 0 and 600 < phantom.image.max() < 1300
        air = phantom.image[phantom.mask == 0]
        assert np.median(air) < 40


@pytest.mark.parametrize("kind", KINDS)
def test_axes_run_as_the_affine_says_and_the_image_is_centred(kind):
    for size in (SMALL[kind], (17, 20, 9), (20, 16, 1), (1, 18, 18)):
        phantom = PHANTOM_KINDS[kind].generate(1, size)
        assert phantom.image.shape == phantom.mask.shape == size
        assert phantom.image.dtype == np.float32 and phantom.mask.dtype == np.uint8
        assert "".join(nibabel.aff2axcodes(phantom.affine)) == CODES[kind]
        assert np.linalg.det(phantom.affine[:3, :3]) > 0
        middle = nibabel.affines.apply_affine(phantom.affine, (np.array(size) - 1) / 2)
        thick = [CODES[kind][axis] for axis in range(3) if size[axis] > 1]
        world = {"R": 0, "A": 1, "S": 2}
        assert np.allclose([middle[world[code]] for code in thick], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_depth_one_is_the_slice_of_the_volume_at_that_place(kind):
    size = (*SMALL[kind][:2], 1)
    flat = PHANTOM_KINDS[kind].generate(2, size)
    full = PHANTOM_KINDS[kind].generate(2, (*size[:2], 40))
    place = nibabel.affines.apply_affine(np.linalg.inv(full.affine) @ flat.affine, (0, 0, 0))[2]
    assert 10 < place < 30
    nearest = full.image[..., round(place)]
    assert np.corrcoef(flat.image.ravel(), nearest.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_phantoms_vary(kind, phantoms):
    images = np.stack([p.image.ravel() for p in phantoms[kind]])
    correlation = np.corrcoef(images)[np.triu_indices(len(images), 1)]
    assert correlation.max() < 0.985 and correlation.min() > 0.4, "alike, but not the same"
    names = [name for name, value in phantoms[kind][0].facts.items() if isinstance(value, float) and name != "effusion"]
    for name in names:
        assert len({p.facts[name] for p in phantoms[kind]}) >= 6, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field_of_view", [(150, 150), (150, -1, 150), (150, 150, float("inf"))])
def test_a_bad_field_of_view_is_refused(kind, field_of_view):
    with pytest.raises(UserError, match="field_of_view must be three positive lengths"):
        PHANTOM_KINDS[kind].generate(0, SMALL[kind], field_of_view)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_size_is_refused(kind):
    with pytest.raises(UserError, match="image_size must be one or three positive whole numbers"):
        PHANTOM_KINDS[kind].generate(0, (32, 0, 32))


def test_a_wave_field_has_zero_mean_unit_variance_and_its_wavelength():
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*[np.linspace(0, 200, 40)] * 3, indexing="ij")
    values = np.stack([WaveField(rng, 25.0)(axes) for _ in range(4)])
    assert abs(values.mean()) < 0.05
    assert values.std() == pytest.approx(1, abs=0.1)
    line = [np.linspace(0, 5000, 20000), np.zeros(20000), np.zeros(20000)]
    crossings = np.mean([(np.diff(np.sign(WaveField(rng, 25.0, waves=200)(line))) != 0).sum() for _ in range(4)])
    assert crossings == pytest.approx(2 * 5000 / 25 / np.sqrt(3), rel=0.1), "Rice's formula for isotropic waves"


def test_the_distance_to_zero_is_that_to_the_nearest_change_of_sign():
    field = WaveField(np.random.default_rng(1), 40.0)
    t = np.linspace(0, 400, 4001)
    line = [t, 0.3 * t, 0 * t]
    value, distance = field(line), field.distance_to_zero(line)
    crossing = np.flatnonzero(np.diff(np.sign(value)))
    assert len(crossing) > 5
    assert distance[crossing].max() < 0.3
    near = np.minimum.reduce([np.abs(t - t[c]) for c in crossing]) * np.hypot(1, 0.3)
    assert (distance[near < 3] < near[near < 3] + 0.6).all(), "never farther than a crossing that is seen"


def test_a_bias_field_is_smooth_and_around_one():
    axes = np.meshgrid(*[np.linspace(-90, 90, 24)] * 3, indexing="ij")
    fields = [bias_field(axes, np.random.default_rng(seed), 0.1) for seed in range(20)]
    assert np.mean(fields) == pytest.approx(1, abs=0.05)
    assert 0.02 < np.mean([np.ptp(field) for field in fields]) < 0.6
    assert max(np.abs(np.diff(field, axis=axis)).max() for field in fields for axis in range(3)) < 0.03
    assert np.array_equal(bias_field(axes, np.random.default_rng(3), 0.1), fields[3])


def test_noise_is_rician_and_falls_with_the_size_of_the_voxel():
    rng = np.random.default_rng(0)
    air = magnitude_noise(np.zeros((40, 40, 40), np.float32), 20, rng)
    assert air.mean() == pytest.approx(20 * np.sqrt(np.pi / 2), rel=0.02), "Rayleigh in air"
    tissue = magnitude_noise(np.full((40, 40, 40), 600, np.float32), 20, rng)
    assert tissue.std() == pytest.approx(20, rel=0.03) and tissue.mean() == pytest.approx(600, rel=0.01)
    assert noise_deviation(10, np.array([4, 4, 4])) == pytest.approx(2 * noise_deviation(10, np.array([8, 8, 4])))
    assert noise_deviation(10, np.array([0.1, 0.1, 0.1])) == 30


def test_a_chain_is_the_union_of_its_segments_and_tapers():
    rng = np.random.default_rng(2)
    points = rng.uniform(-20, 40, (3, 500))
    nodes = [(0, 0, 0), (10, 0, 5), (10, 20, 5)]
    parts = [segment_distance(points, nodes[i], nodes[i + 1]) - 3 for i in range(2)]
    assert np.allclose(chain(points, nodes, 3), np.minimum(*parts))
    beside = np.array([[0.0, 5, 10], [8.0, 8, 8], [0.0, 0, 0]])
    assert np.allclose(chain(beside, [(0, 0, 0), (10, 0, 0)], (2, 6)), [6, 4, 2])
    with pytest.raises(ValueError, match="two nodes or more"):
        chain(points, nodes[:1], 3)


def test_a_smooth_union_fills_only_the_notch():
    a, b = np.meshgrid(np.linspace(-9, 9, 50), np.linspace(-9, 9, 50))
    union = smooth_min(a, b, 4)
    assert (union <= np.minimum(a, b) + 1e-12).all() and (union >= np.minimum(a, b) - 1 - 1e-12).all()
    apart = np.abs(a - b) > 4
    assert np.array_equal(union[apart], np.minimum(a, b)[apart])
