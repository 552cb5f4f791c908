"""The bundles of the data sets: each reads its own phantoms, and what preprocessing learnt stays with the weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_runs import BUNDLE, ROOT, TINY_MODEL, TINY_TRAINING, run, workflow
from data_files import write_nifti

from medical_diffusion.bundle.settings import stored_settings
from medical_diffusion.data.phantoms import PHANTOM_KINDS, write_phantoms

SIZES: dict[str, list[int]] = {
    "adni_ldm": [16, 16, 16],
    "duke_ldm": [16, 16, 8],
    "mrnet_ldm": [16, 16, 8],
    "airogs_ldm": [16, 16, 1],
    "crcdx_ldm": [16, 16, 1],
}


@pytest.mark.parametrize("name", SIZES)
def test_a_bundle_reads_its_phantoms(name: str, tmp_path: Path) -> None:
    folder = ROOT / "bundles" / name
    options = {"image_size": SIZES[name], "num_phantoms": 4, "run_dir": str(tmp_path), "bundle_root": str(folder)}
    flow = workflow("train", bundle=folder, **options)
    data = flow.parser.get_parsed_content("data")
    data.prepare()
    kind = PHANTOM_KINDS[data.kind]
    halves = 2 if name == "duke_ldm" else 1
    assert len(data.train) + len(data.validation) == 4 * halves
    assert data.class_names == kind.classes and kind.planar == (SIZES[name][2] == 1)
    shape = (3 if kind.planar else 1, *SIZES[name])
    for item in data.train:
        image = data.transform(dict(item))["image"]
        assert image.shape == shape and image.min() >= -1 and image.max() <= 1
        assert float(image.std()) > 0.1
    assert (data.landmarks is not None) == (name == "mrnet_ldm")
    assert all(spacing > 0 for spacing in data.output_spacing)


def test_every_kind_of_phantom_has_a_title() -> None:
    from medical_diffusion.bundle.messages import PHANTOM_TITLES

    assert set(PHANTOM_TITLES) == set(PHANTOM_KINDS)


LEARNING: dict[str, Any] = {
    "halves": True,
    "histogram_standardization": True,
    "orientation": "ASR",
    "foreground_crop": 1,
    "intensity": "minmax",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run with every step of preprocessing that is off by default."""
    folder = tmp_path_factory.mktemp("sets")
    run("train", **TINY_TRAINING, **LEARNING, run_dir=str(folder / "run"))
    return folder / "run"


def test_landmarks_are_kept_with_the_weights(trained: Path) -> None:
    stored = stored_settings(trained)
    fitted = json.loads(next((trained / "cache").glob("landmarks_*.json")).read_text(encoding="utf-8"))
    assert stored["landmarks"] == fitted and len(fitted) > 9
    assert stored["orientation"] == "ASR" and stored["halves"] is True


def test_an_evaluation_elsewhere_takes_the_landmarks_of_training(trained: Path, tmp_path: Path) -> None:
    """A downloaded bundle brings new volumes to the scale that it was trained on."""
    other = write_phantoms("chest_ct", tmp_path, 4, (32, 16, 16), seed=50, progress=False)
    options = {"run_dir": str(trained), "dataset_dir": str(other), "device": "cpu"}
    flow = run("evaluate", **options)
    data = flow.parser.get_parsed_content("data")
    assert data.landmarks == stored_settings(trained)["landmarks"]
    assert len(list((trained / "cache").glob("landmarks_*.json"))) == 1, "nothing was fitted"


def test_the_landmarks_follow_the_training_split(trained: Path, tmp_path: Path) -> None:
    folder = BUNDLE
    options = {**TINY_MODEL, **LEARNING, "num_phantoms": 6, "run_dir": str(tmp_path), "bundle_root": str(folder)}
    first = workflow("train", **options).parser.get_parsed_content("data")
    assert first.landmarks == stored_settings(trained)["landmarks"]
    second = workflow("train", **options, validation_fraction=0.5).parser.get_parsed_content("data")
    second.prepare()
    assert second.landmarks != first.landmarks and second.key != first.key
    assert list((tmp_path / "cache").glob("landmarks_*.json")) == [second.landmarks_path], "the old ones are gone"


def test_samples_of_halves_say_how_they_lie(trained: Path, tmp_path: Path) -> None:
    options = {"run_dir": str(trained), "num_samples": 1, "sampler": "ddim", "num_steps": 2, "device": "cpu"}
    run("inference", **options, output_dir=str(tmp_path))
    sidecar = json.loads((tmp_path / "sample_0.json").read_text(encoding="utf-8"))
    assert sidecar["orientation"] == "ASR"


def test_padding_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(2):
        write_nifti(tmp_path / "d" / f"{n}.nii", np.random.default_rng(n).integers(1, 99, (20, 20, 6)).astype(np.int16))
    folder = ROOT / "bundles" / "mrnet_ldm"
    options = {"dataset_dir": str(tmp_path / "d"), "run_dir": str(tmp_path / "run"), "bundle_root": str(folder)}
    data = workflow("train", bundle=folder, **options).parser.get_parsed_content("data")
    with caplog.at_level(logging.WARNING):
        image = data.transform(dict(data.train[0]))["image"]
    assert image.shape == (1, 256, 256, 32) and "(0, 0, 32)" in caplog.text


@pytest.mark.parametrize(("name", "warned"), [("adni_ldm", False), ("mrnet_ldm", True)])
def test_a_manifest_of_another_bundle_is_told(
    name: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        write_nifti(tmp_path / "data" / f"00{number}_S_0295" / "visit" / "brain.nii")
    options = {"dataset_dir": str(tmp_path / "data"), "manifest": "adni", "run_dir": str(tmp_path / "run")}
    folder = ROOT / "bundles" / name
    flow = workflow("train", bundle=folder, bundle_root=str(folder), **options)
    with caplog.at_level(logging.WARNING):
        assert flow.parser.get_parsed_content("data").root == tmp_path / "data"
    assert ("Manifest adni is meant for adni_ldm, of brain_mri; this one is of knee_mri" in caplog.text) == warned
