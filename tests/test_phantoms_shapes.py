"""Geometric primitives, the control without data: contract, variety, forms, any size."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from medical_diffusion.__main__ import main
from medical_diffusion.data.listing.discovery import find_volumes
from medical_diffusion.data.phantoms import PHANTOM_KINDS
from medical_diffusion.data.phantoms.shapes import (
    FEWEST,
    FIELD_OF_VIEW_MM,
    MASK_LABELS,
    MOST,
    SOLIDS,
    Solid,
    shapes_phantom,
)
from medical_diffusion.errors import UserError

SIZE = (32, 32, 32)


@pytest.fixture(scope="module")
def phantoms():
    return [shapes_phantom(seed, SIZE) for seed in range(12)]


def test_a_seed_gives_the_same_scene_whatever_was_drawn_before(phantoms):
    again = shapes_phantom(7, SIZE)
    assert np.array_equal(again.image, phantoms[7].image) and np.array_equal(again.mask, phantoms[7].mask)
    assert again.facts == phantoms[7].facts


def test_scenes_differ_in_everything(phantoms):
    """Unlike the other kinds: there is no anatomy that two of them share."""
    images = np.stack([p.image.ravel() for p in phantoms])
    correlation = np.corrcoef(images)[np.triu_indices(len(images), 1)]
    assert abs(correlation.mean()) < 0.1 and np.abs(correlation).max() < 0.5
    assert len({p.facts["background"] for p in phantoms}) == len(phantoms)


def test_every_scene_holds_all_forms_and_much_background(phantoms):
    for phantom in phantoms:
        assert set(np.unique(phantom.mask)) == set(MASK_LABELS.values())
        assert 0.15 < (phantom.mask > 0).mean() < 0.85
        assert FEWEST <= sum(phantom.facts[name] for name in ("ellipsoids", "boxes", "cylinders")) <= MOST
        assert phantom.image.min() >= 0 and phantom.image.max() < 1600
        assert phantom.image.std() > 50, "there is something to reconstruct"


def test_facts_and_scene_do_not_depend_on_the_size():
    coarse, fine = shapes_phantom(3, SIZE), shapes_phantom(3, (64, 64, 64))
    assert {k: v for k, v in coarse.facts.items() if k != "noise"} == {
        k: v for k, v in fine.facts.items() if k != "noise"
    }
    halved = fine.image.reshape(32, 2, 32, 2, 32, 2).mean((1, 3, 5))
    assert np.corrcoef(halved.ravel(), coarse.image.ravel())[0, 1] > 0.985


@pytest.mark.parametrize("size", [(40, 32, 1), (17, 20, 9), (1, 32, 32), (24, 24, 6)])
def test_any_size_is_centred_on_the_field_of_view(size):
    phantom = shapes_phantom(1, size)
    assert phantom.image.shape == phantom.mask.shape == size
    assert phantom.image.dtype == np.float32 and phantom.mask.dtype == np.uint8
    assert np.isfinite(phantom.image).all()
    middle = nibabel.affines.apply_affine(phantom.affine, (np.array(size) - 1) / 2)
    extent = np.diag(phantom.affine)[:3] * size
    for axis in range(3):
        if size[axis] > 1:
            assert middle[axis] == pytest.approx(0) and extent[axis] == pytest.approx(FIELD_OF_VIEW_MM[axis])


def test_depth_one_is_the_middle_slice():
    """The slice lies between two voxels of an even depth; an odd one has it as a voxel of nearly its thickness."""
    flat, full = shapes_phantom(2, (48, 48, 1)), shapes_phantom(2, (48, 48, 33))
    assert flat.affine[2, 3] == pytest.approx(full.affine[2, 3] + 16 * full.affine[2, 2])
    assert np.corrcoef(flat.image.ravel(), full.image[..., 16].ravel())[0, 1] > 0.97
    assert (flat.mask > 0).mean() > 0.1


def test_distances_are_those_of_the_forms():
    generator = np.random.default_rng(4)
    points = generator.uniform(-60, 60, (3, 4000)).astype(np.float32)
    for _ in range(12):
        solid = Solid.draw(generator)
        local = solid.turn.T @ (points - solid.centre[:, None])
        scaled = np.abs(local) / solid.axes[:, None]
        inside = {
            "ellipsoid": np.square(scaled).sum(0) < 1,
            "box": (scaled < 1).all(0),
            "cylinder": (np.hypot(local[0], local[1]) < solid.axes[0]) & (scaled[2] < 1),
        }[solid.form]
        distance = solid.distance(list(points))
        clear = np.abs(distance) > 1e-3
        assert np.array_equal(distance[clear] < 0, inside[clear])
        assert np.linalg.norm(local[:, inside], axis=0).max(initial=0) <= solid.reach


def test_all_forms_are_drawn_and_about_half_are_hollow():
    generator = np.random.default_rng(0)
    solids = [Solid.draw(generator) for _ in range(200)]
    assert {s.form for s in solids} == set(SOLIDS)
    assert 70 < sum(s.wall is not None for s in solids) < 130
    assert all(0 < s.wall < s.axes.min() for s in solids if s.wall is not None)
    assert np.allclose([s.turn.T @ s.turn for s in solids], np.eye(3))


def test_the_command_writes_unlabelled_volumes_that_are_found_as_such(tmp_path, capsys):
    assert (
        main(["data", "phantoms", "shapes", "--output", str(tmp_path), "--count", "3", "--size", "16", "16", "8"]) == 0
    )
    folder = tmp_path / "shapes_16x16x8_n3_s0"
    assert capsys.readouterr().out.splitlines() == [str(folder)]
    assert not (folder / "labels.csv").exists() and not PHANTOM_KINDS["shapes"].classes
    assert [v.path.name for v in find_volumes(folder)] == [f"shapes_{n:05d}.nii.gz" for n in range(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((32, 0, 32),), "image_size must be one or three positive whole numbers"),
        ((SIZE, (160, -1, 160)), "field_of_view must be three positive lengths"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        shapes_phantom(0, *arguments)
