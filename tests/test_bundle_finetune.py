"""The fine-tuning bundle end to end at a tiny size: train, resume, segment on the original grid, evaluate, pack."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import ROOT, as_arguments, run, workflow
from data_files import oblique_affine, write_nifti
from monai.bundle import verify_metadata
from monai.networks.nets import SwinUNETR
from PIL import Image
from test_data_docs import commands
from torch import Tensor

from medical_diffusion.bundle.pack import pack_bundle
from medical_diffusion.bundle.segmentation.pretrained import warn_of_other_volumes
from medical_diffusion.data import build_labelled_list
from medical_diffusion.data.listing.exposure import training_marks
from medical_diffusion.errors import find_user_error
from medical_diffusion.files import load_tensors
from medical_diffusion.training import StepTrainer

BUNDLE = ROOT / "bundles" / "swin_unetr_finetune"
IMAGES = {"image_size": [32, 32, 1], "window_size": 4, "feature_size": 12, "device": "cpu"}
TINY: dict[str, Any] = {
    **IMAGES,
    "batch_size": 1,
    "steps": 3,
    "validation_interval": 2,
    "checkpoint_interval": 0,
    "num_workers": 0,
    "seed": 3,
    "intensity": "percentile",
}
SHAPE = (36, 40, 1)


def write_set(folder: Path, count: int = 10) -> Path:
    """Images of depth 1 with a bright square: they take the path of volumes, in a fraction of the time."""
    for n in range(count):
        generator = np.random.default_rng(n)
        label = np.zeros(SHAPE, dtype=np.uint8)
        row, column = generator.integers(4, 20, 2)
        label[row : row + 10, column : column + 12] = 1
        image = (generator.normal(size=SHAPE) * 0.2 + label).astype(np.float32)
        write_nifti(folder / "images" / f"case_{n}.nii.gz", image)
        write_nifti(folder / "labels" / f"case_{n}.nii.gz", label)
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="session")
def trained(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished tiny run."""
    folder = tmp_path_factory.mktemp("finetuned")
    run("train", BUNDLE, **TINY, dataset_dir=str(labelled), run_dir=str(folder))
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_tensors(folder / "models" / "model.pt")["model"]


def assert_same_weights(a: Path, b: Path) -> None:
    for name, tensor in weights(a).items():
        torch.testing.assert_close(tensor, weights(b)[name], rtol=0, atol=0, msg=name)


def failure_of(config: str, **options: Any) -> str:
    with pytest.raises(RuntimeError) as failure:
        run(config, BUNDLE, **options)
    return str(find_user_error(failure.value))


def test_the_weights_load_into_monai(trained: Path) -> None:
    plain = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2, window_size=4)
    plain.load_state_dict(weights(trained), strict=True)


def test_killed_and_rerun_gives_the_same_weights(
    trained: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StepTrainer._iteration

    def die(self: StepTrainer, engine: Any, batchdata: Any) -> Any:
        if engine.state.iteration == 3:
            raise KeyboardInterrupt
        return original(self, engine, batchdata)

    options = {**TINY, "dataset_dir": str(labelled), "run_dir": str(tmp_path)}
    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "_iteration", die)
        with pytest.raises(KeyboardInterrupt):
            run("train", BUNDLE, **options)
    run("train", BUNDLE, **options)
    assert_same_weights(trained, tmp_path)


def test_evaluation_writes_figures_with_intervals_and_overlays(trained: Path, labelled: Path) -> None:
    run("evaluate", BUNDLE, run_dir=str(trained), dataset_dir=str(labelled), device="cpu")
    reports = trained / "reports"
    report = json.loads((reports / "segmentation.json").read_text(encoding="utf-8"))
    assert (report["split"], report["subjects"], report["training_subjects"]) == ("test", 2, 7)
    assert set(report["classes"]) == {"class_1"} and report["mean_dice"]["n"] == 2
    assert set(report["classes"]["class_1"]) == {"dice", "hausdorff95_mm", "surface_distance_mm"}
    assert not {case["subject"] for case in report["cases"]} & set(report["training_ids"])
    assert report["data"] == load_tensors(trained / "models" / "model.pt")["settings"]["data"]
    with (reports / "segmentation.csv").open() as file:
        rows = list(csv.DictReader(file))
    for case, row in zip(report["cases"], rows, strict=True):
        assert float(row["dice"]) == pytest.approx(case["dice"]["class_1"], rel=1e-4)
        assert (reports / case["overlay"]).is_file()
    assert (reports / "overlay.png").is_file()


def test_a_folder_is_segmented_on_its_own_grid_and_what_is_written_is_skipped(trained: Path, tmp_path: Path) -> None:
    affine = oblique_affine()
    for name, shape in (("a", (41, 33, 1)), ("sub/b", (20, 50, 1))):
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", np.random.default_rng(0).normal(size=shape), affine)
    output = tmp_path / "out"
    options = {"run_dir": str(trained), "output_dir": str(output), "device": "cpu"}
    run("inference", BUNDLE, **options, dataset_dir=str(tmp_path / "in"))
    for name in ("a", "sub/b"):
        image, found = (nibabel.load(folder / f"{name}.nii.gz") for folder in (tmp_path / "in", output))
        assert found.shape == image.shape
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
        assert found.get_data_dtype() == np.uint8 and set(np.unique(found.dataobj)) <= {0, 1}
    assert (output / "preview.png").is_file()
    before = (output / "a.nii.gz").stat().st_mtime_ns
    (output / "sub" / "b.nii.gz").unlink()
    run("inference", BUNDLE, **options, dataset_dir=str(tmp_path / "in"))
    assert (output / "a.nii.gz").stat().st_mtime_ns == before and (output / "sub" / "b.nii.gz").is_file()
    listing = json.loads((output / "segmentations.json").read_text(encoding="utf-8"))
    (output / "segmentations.json").write_text(json.dumps({**listing, "weights_sha256": "other"}))
    message = failure_of("inference", **options, dataset_dir=str(tmp_path / "in"))
    assert "must have been made with the same weights and classes" in message


def test_the_remedy_for_colour_images_works(trained: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 44, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "colour.png")
    options = {"run_dir": str(trained), "dataset_dir": str(tmp_path / "in"), "device": "cpu"}
    options["output_dir"] = str(tmp_path / "out")
    assert "--convert_channels true to convert each by its luma" in failure_of("inference", **options)
    run("inference", BUNDLE, **options, convert_channels=True)
    assert np.asarray(Image.open(tmp_path / "out" / "colour.png")).shape == (40, 44)


def test_one_constant_image_does_not_cost_the_others(trained: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "a.nii.gz", np.ones((40, 40, 1)))
    write_nifti(tmp_path / "in" / "b.nii.gz", np.random.default_rng(0).normal(size=(40, 40, 1)))
    options = {"run_dir": str(trained), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    message = failure_of("inference", **options, dataset_dir=str(tmp_path / "in"))
    assert "needs a volume that varies" in message and "a.nii.gz" in message
    assert (tmp_path / "out" / "b.nii.gz").is_file() and not (tmp_path / "out" / "a.nii.gz").exists()


def test_volumes_come_back_to_an_anisotropic_turned_grid_through_resampling(tmp_path: Path) -> None:
    """Without training: random weights of the 3D form, resampled to another spacing and back; one file."""
    folder = tmp_path / "set"
    affine = oblique_affine((0.7, 0.9, 2.5))
    for n in range(3):
        label = np.zeros((26, 24, 9), dtype=np.uint8)
        label[5:20, 5:18, 2:7] = 1
        write_nifti(
            folder / "images" / f"c{n}.nii.gz", np.random.default_rng(n).normal(size=label.shape) + label, affine
        )
        write_nifti(folder / "labels" / f"c{n}.nii.gz", label, affine)
    options = {**TINY, "image_size": [16, 16, 16], "spacing": [1.2, 1.2, 1.4], "steps": 1, "validation_interval": 1}
    run("train", BUNDLE, **options, dataset_dir=str(folder), run_dir=str(tmp_path / "run"))
    file = folder / "images" / "c1.nii.gz"
    run("inference", BUNDLE, run_dir=str(tmp_path / "run"), dataset_dir=str(file), device="cpu")
    found = nibabel.load(tmp_path / "run" / "segmentations" / "c1.nii.gz")
    assert found.shape == (26, 24, 9)
    np.testing.assert_allclose(found.affine, nibabel.load(file).affine, atol=1e-5)


def test_pretrained_weights_are_reported_and_refused_below_the_share(
    trained: Path, labelled: Path, tmp_path: Path
) -> None:
    options = {**TINY, "steps": 1, "dataset_dir": str(labelled), "run_dir": str(tmp_path / "run")}
    del options["window_size"], options["feature_size"]
    run("train", BUNDLE, **options, pretrained=str(trained / "models" / "model.pt"))
    report = json.loads((tmp_path / "run" / "reports" / "transfer.json").read_text(encoding="utf-8"))
    assert report["share"] == 1.0 and report["new_head"], "width and windows follow the file; the head starts afresh"
    torch.save({"model": {"out.conv.conv.weight": torch.zeros(2, 12, 1, 1)}}, tmp_path / "other.pt")
    message = failure_of("train", **options, pretrained=str(tmp_path / "other.pt"))
    assert "of the parameters must come from the pre-trained weights" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_fraction": 0}, "must leave a volume to train on"),
        ({"label_fraction": 101}, "at most 100"),
        ({"flips": "leftright"}, "must name anatomical axes"),
        ({"classes": "[a, b, c]", "label_fraction": 50}, None),
        ({"image_size": [4, 4, 1]}, "at least 8 voxels"),
        ({"pretrained": "nowhere.pt"}, "a checkpoint must exist"),
    ],
)
def test_bad_options_fail_before_training(
    labelled: Path, tmp_path: Path, options: dict[str, Any], message: str | None
) -> None:
    flow = workflow("train", bundle=BUNDLE, **{**TINY, **options}, dataset_dir=str(labelled), run_dir=str(tmp_path))
    if message is None:
        flow.initialize()
        assert len(flow.parser.get_parsed_content("data").train) == 4
        return
    with pytest.raises(RuntimeError) as failure:
        flow.initialize()
    assert message in str(find_user_error(failure.value))
    assert not (tmp_path / "models").exists()


def pretrained(path: Path, trained: Path, **settings: Any) -> str:
    """Weights that say this of their pre-training."""
    torch.save({"model": weights(trained), "settings": {"feature_size": 12, "window_size": 4, **settings}}, path)
    return str(path)


def initialised(said: pytest.LogCaptureFixture, **options: Any) -> str:
    """What initialising a fine-tuning says; the network is that of the pre-trained weights."""
    said.clear()
    tiny = {name: value for name, value in TINY.items() if name not in ("feature_size", "window_size")}
    workflow("train", bundle=BUNDLE, **tiny, **options).initialize()
    return said.text


def test_test_subjects_that_pretraining_saw_are_told_or_refused(
    trained: Path, labelled: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    lists = build_labelled_list(labelled, planar=True)
    options = {"dataset_dir": str(labelled), "run_dir": str(tmp_path / "run")}
    seen = pretrained(tmp_path / "seen.pt", trained, trained_on=training_marks(lists.train + lists.test))
    (first, *_) = lists.subjects("test")
    text = initialised(said, **options, pretrained=seen)
    assert "2 test subjects were trained on" in text and first in text and "--test_fraction 0.2" in text
    assert all(subject in text for subject in lists.subjects("train")[:3]), "whose labels are used"
    held_out = tmp_path / "run" / "reports" / "held_out.txt"
    assert f"--held_out {held_out}" in text
    ids = held_out.read_text(encoding="utf-8").split()
    assert ids == [*lists.subjects("test"), *lists.subjects("validation")]
    with pytest.raises(RuntimeError) as failure:
        initialised(said, **options, pretrained=seen, test_check="refuse")
    assert "must be new to the pre-trained weights" in str(find_user_error(failure.value))
    marks = training_marks(lists.test)
    sampled = pretrained(tmp_path / "sampled.pt", trained, trained_on=marks, through_samples=True)
    text = initialised(said, **options, pretrained=sampled)
    assert "2 test subjects were trained on by the diffusion model behind its samples" in text
    assert "Train that model without the subjects in" in text and "--held_out" not in text
    new = pretrained(tmp_path / "new.pt", trained, trained_on=training_marks(lists.train))
    assert "new to the" not in initialised(said, **options, pretrained=new, test_check="refuse")


def test_exposure_goes_through_a_chain_of_trainings_into_the_report(
    trained: Path, labelled: Path, tmp_path: Path
) -> None:
    lists = build_labelled_list(labelled, planar=True)
    marks = training_marks(lists.test[:1])
    seen = pretrained(tmp_path / "seen.pt", trained, trained_on=marks)
    options = {**TINY, "dataset_dir": str(labelled), "run_dir": str(tmp_path / "run"), "device": "cpu"}
    run("train", BUNDLE, **{**options, "steps": 1, "validation_interval": 1}, pretrained=seen)
    stored = load_tensors(tmp_path / "run" / "models" / "model.pt")["settings"]["trained_on"]
    assert set(stored) == {*marks, *training_marks(lists.train)}
    run("evaluate", BUNDLE, dataset_dir=str(labelled), run_dir=str(tmp_path / "run"), device="cpu")
    report = json.loads((tmp_path / "run" / "reports" / "segmentation.json").read_text(encoding="utf-8"))
    assert report["seen_subjects"] == [lists.test[0]["subject"]]


def test_a_misspelt_kind_of_phantoms_is_told(tmp_path: Path) -> None:
    message = failure_of("train", **TINY, phantom_kind="chestct", run_dir=str(tmp_path))
    assert "phantom kind must be a known one" in message


def test_a_comparison_needs_a_test_part(labelled: Path, tmp_path: Path) -> None:
    options = {**TINY, "dataset_dir": str(labelled), "run_dir": str(tmp_path), "test_fraction": 0}
    assert "a comparison needs a test part" in failure_of("train", **options, test_check="refuse")


def test_another_look_of_the_volumes_of_pretraining_is_told(
    trained: Path, labelled: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    options = {"dataset_dir": str(labelled), "run_dir": str(tmp_path / "run")}
    window = pretrained(tmp_path / "ct.pt", trained, intensity="window", window=[-1000.0, 1000.0])
    text = initialised(said, **options, pretrained=window)
    assert "by window [-1000.0, 1000.0], this run by the values of each volume" in text
    assert '--intensity window --window "[-1000.0, 1000.0]"' in text
    relative = pretrained(tmp_path / "mri.pt", trained, intensity="window", window=[0.0, 1.0])
    assert "intensities" not in initialised(said, **options, pretrained=relative)


def test_another_voxel_size_of_pretraining_is_told(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    turned = np.array([[0, 0, 2.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # axes A, S, R of 1, 1, 2 mm
    image = write_nifti(tmp_path / "a.nii.gz", np.zeros((8, 8, 8), np.float32), affine=turned)
    stored = {"intensity": "percentile", "output_spacing": [1.0, 1.0, 1.0], "image_size": [32, 32, 32]}
    path = tmp_path / "pre.pt"
    torch.save({"model": {}, "settings": stored}, path)
    values = {"intensity": "percentile", "window": None}
    run_settings = SimpleNamespace(
        dataset_dir="x", pretrained=str(path), planar=False, spacing=None, orientation="RAS", values=values
    )
    data: Any = SimpleNamespace(lists=SimpleNamespace(train=[{"image": str(image)}]))
    warn_of_other_volumes(run_settings, data)  # type: ignore[arg-type]
    assert 'voxels of 1 x 1 x 1 mm, this run of 2 x 1 x 1 mm. Pass --spacing "[1.0, 1.0, 1.0]"' in said.text
    said.clear()
    run_settings.spacing = [1.0, 1.0, 1.1]
    warn_of_other_volumes(run_settings, data)  # type: ignore[arg-type]
    assert said.text == ""


@pytest.mark.parametrize("intensity", ["percentile", "window"])
def test_a_constant_volume_is_told_before_training(intensity: str, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    for n in (4, 7):
        write_nifti(folder / "images" / f"case_{n}.nii.gz", np.ones(SHAPE, dtype=np.float32))
    options = {**TINY, "dataset_dir": str(folder), "run_dir": str(tmp_path / "run"), "num_workers": 2}
    message = failure_of("train", **{**options, "intensity": intensity}, test_fraction=0)
    assert "case_4" in message and "case_7" in message and re.search("must vary|volume that varies", message)


def truncate(image: Path, label: Path) -> Path:
    image.write_bytes(image.read_bytes()[:-2000])
    return image


def hide_a_hole(image: Path, label: Path) -> Path:
    values = np.random.default_rng(0).normal(size=SHAPE)
    values[3, 3] = np.nan
    return write_nifti(image, values)


def reshape_label(image: Path, label: Path) -> Path:
    return write_nifti(label, np.ones((20, 20, 1), dtype=np.uint8))


def add_a_value(image: Path, label: Path) -> Path:
    values = np.ones(SHAPE, dtype=np.uint8)
    values[0, 0] = 7
    return write_nifti(label, values)


@pytest.mark.parametrize("damage", [truncate, hide_a_hole, reshape_label, add_a_value])
def test_a_bad_test_volume_is_told_before_training(damage: Callable[[Path, Path], Path], tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    tested = build_labelled_list(folder, planar=True).test[0]
    broken = damage(Path(tested["image"]), Path(tested["label"]))
    options = {**TINY, "dataset_dir": str(folder), "run_dir": str(tmp_path / "run"), "classes": "[square]"}
    with pytest.raises(RuntimeError) as failure:
        workflow("train", bundle=BUNDLE, **options).initialize()
    assert str(broken) in str(find_user_error(failure.value))


def test_of_test_volumes_nothing_is_kept_but_that_they_passed(trained: Path) -> None:
    marks = list((trained / "cache").glob("labelled_*/test/*.pt"))
    assert len(marks) == 2 and all(load_tensors(mark) == {} for mark in marks)


def test_metadata_and_properties_and_packing(trained: Path, labelled: Path, tmp_path: Path, repository: Path) -> None:
    schema = repository / "tests" / "schemas" / "monai_bundle_metadata.json"
    verify_metadata(str(BUNDLE / "configs" / "metadata.json"), filepath=str(schema))
    options = {"run_dir": str(trained), "dataset_dir": str(labelled), "device": "cpu"}
    for config, kind in (("train", "train"), ("inference", "infer")):
        more = {**TINY} if config == "train" else {"output_dir": str(tmp_path / "out")}
        flow = workflow(config, bundle=BUNDLE, kind=kind, **{**more, **options})
        flow.initialize()
        assert flow.check_properties() == []
    archive = pack_bundle(BUNDLE, tmp_path, run_dir=trained)
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / BUNDLE.name / "models" / "model.pt").is_file()
    assert not list((tmp_path / "unpacked").rglob("model_*.pt"))


def test_two_processes_learn_one_network(labelled: Path, tmp_path: Path) -> None:
    configs = [str(BUNDLE / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    options = {**TINY, "steps": 4, "patience": 1, "dataset_dir": labelled, "run_dir": tmp_path}
    del options["device"]
    hook = {
        "imports": ["$import medical_diffusion.bundle as bundle", "$import rank_dump"],
        "finalize": [f"$rank_dump.dump({str(tmp_path)!r}, @network_def, @network_def)", "$bundle.end()"],
    }
    (tmp_path / "hook.json").write_text(json.dumps(hook))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "monai.bundle", "run", "--config_file", str([*configs, str(tmp_path / "hook.json")]),
        *as_arguments(options),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True)["network"] for r in (0, 1))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=0, msg=name)
    assert (tmp_path / "models" / "model.pt").is_file()


def test_every_command_of_the_page_has_options_that_exist(repository: Path) -> None:
    found = commands((repository / "docs" / "segmentation.md").read_text(encoding="utf-8"))
    configs = []
    for words in found:
        assert words[:4] == ["python", "-m", "monai.bundle", "run"]
        config = repository / words[words.index("--config_file") + 1]
        options = {word.removeprefix("--") for word in words if word.startswith("--")} - {"config_file"}
        assert options <= set(json.loads(config.read_text(encoding="utf-8")))
        configs.append(f"{config.parents[1].name}/{config.stem}")
    expected = ["swin_unetr_pretrain/train", *(f"swin_unetr_finetune/{c}" for c in ("train", "evaluate", "inference"))]
    assert configs[:4] == expected
    page = (repository / "docs" / "segmentation.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`--(\w+)", page)) | set(re.findall(r" --(\w+) ", page))
    known = {"config_file"}
    for bundle in (BUNDLE, repository / "bundles" / "swin_unetr_pretrain"):
        known |= set(json.loads((bundle / "configs" / "options.json").read_text(encoding="utf-8")))
    assert named <= known
