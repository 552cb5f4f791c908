"""The same bundle templates on images: depth 1, classes, PNG files, from phantoms and from own labelled images."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_runs import ROOT, run, workflow

from medical_diffusion.bundle.settings import stored_settings
from medical_diffusion.errors import find_user_error
from medical_diffusion.files import load_tensors
from medical_diffusion.pictures import read_png, write_png

BUNDLE = ROOT / "bundles" / "chexpert_ldm"
TINY_MODEL: dict[str, Any] = {
    "image_size": [16, 16, 1],
    "autoencoder_channels": 8,
    "unet_channels": 8,
    "channel_multipliers": [1, 2],
    "timesteps": 8,
}
TINY_MODEL_OF_STAGE_1 = {name: TINY_MODEL[name] for name in ("image_size", "autoencoder_channels")}
TINY_TRAINING: dict[str, Any] = {
    **TINY_MODEL,
    "num_phantoms": 10,
    "discriminator_channels": 8,
    "autoencoder_steps": 3,
    "diffusion_batch_size": 4,
    "diffusion_steps": 3,
    "validation_interval": 3,
    "num_previews": 2,
    "num_steps": 4,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished tiny run on labelled radiograph phantoms."""
    folder = tmp_path_factory.mktemp("trained_images")
    run("train", bundle=BUNDLE, **TINY_TRAINING, run_dir=str(folder))
    return folder


def _seed(item: dict[str, Any]) -> int:
    """Seed of a phantom; even ones are normal."""
    return int(Path(item["image"]).stem.rsplit("_", 1)[1])


def sidecars(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("sample_*.json"))]


def test_training_on_phantoms_knows_their_classes(trained: Path) -> None:
    stored = stored_settings(trained)
    assert stored["class_names"] == ["normal", "cardiomegaly"]
    flow = run("evaluate", bundle=BUNDLE, run_dir=str(trained), num_phantoms=10, device="cpu", **TINY_MODEL_OF_STAGE_1)
    items = flow.parser.get_parsed_content("data").validation
    assert all(stored["class_names"][i["class_label"]] == ("normal", "cardiomegaly")[_seed(i) % 2] for i in items)
    assert sum(stored["class_frequencies"]) == pytest.approx(1, abs=1e-5)
    assert stored["png_bits"] == 8
    assert "class_embedding.weight" in load_tensors(trained / "models" / "model.pt")["model"]
    assert "codebook" not in json.loads((trained / "reports" / "reconstruction.json").read_text(encoding="utf-8"))
    assert (trained / "preview.png").stat().st_size > 0


def test_a_class_is_asked_for_by_its_name(trained: Path, tmp_path: Path) -> None:
    options = {**TINY_MODEL, "run_dir": str(trained), "num_samples": 3, "num_steps": 4, "device": "cpu"}
    run("inference", bundle=BUNDLE, **options, label="cardiomegaly", guidance_scale=2, output_dir=str(tmp_path / "a"))
    assert [s["class_name"] for s in sidecars(tmp_path / "a")] == ["cardiomegaly"] * 3
    assert {s["guidance_scale"] for s in sidecars(tmp_path / "a")} == {2.0}
    image = read_png(tmp_path / "a" / "sample_0.png")
    assert image.shape == (16, 16) and image.dtype == np.uint8
    assert (tmp_path / "a" / "preview.png").is_file()
    measured = {"run_dir": str(trained), "num_phantoms": 10, "device": "cpu", "samples_dir": str(tmp_path / "a")}
    run("evaluate", bundle=BUNDLE, **measured, **TINY_MODEL_OF_STAGE_1)
    report = json.loads((trained / "reports" / "samples" / "report.json").read_text(encoding="utf-8"))
    assert report["generators"]["samples"]["images"] == 3
    assert "images of every class in every set" in report["utility"]["reason"]
    assert report["generators"]["samples"]["figures"]["high_frequency_ratio"]["value"] > 0

    run("inference", bundle=BUNDLE, **options, output_dir=str(tmp_path / "b"), num_previews=3)
    assert {s["class_name"] for s in sidecars(tmp_path / "b")} <= {"normal", "cardiomegaly"}
    run("inference", bundle=BUNDLE, **options, output_dir=str(tmp_path / "c"), batch_size=1)
    for seed in range(3):
        together, alone = (read_png(tmp_path / name / f"sample_{seed}.png").astype(int) for name in "bc")
        assert np.abs(together - alone).max() <= 1

    with pytest.raises(RuntimeError) as failed:
        run("inference", bundle=BUNDLE, **options, label="normal", output_dir=str(tmp_path / "a"))
    assert "made in the same way" in str(find_user_error(failed.value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "cardiomegalie"}, "--label must be one of normal, cardiomegaly"),
        ({"guidance_scale": -1}, "--guidance_scale must be at least 0"),
    ],
)
def test_what_inference_refuses(trained: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError) as failed:
        run("inference", bundle=BUNDLE, run_dir=str(trained), output_dir=str(tmp_path), device="cpu", **options)
    assert message in str(find_user_error(failed.value))


def own_images(folder: Path, colours: int = 1, bits: int = 8) -> Path:
    """Twelve images of two classes, four patients each, in a folder per class, with a CSV beside them."""
    rng = np.random.default_rng(0)
    rows = ["file,diagnosis,patient"]
    for n in range(12):
        name = ("healthy", "ill")[n % 2]
        shape = (16, 16) if colours == 1 else (16, 16, 3)
        image = rng.integers(0, 2**bits, shape, dtype=np.uint16).astype(np.uint8 if bits == 8 else np.uint16)
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_png(folder / name / f"{n}.png", image)
        rows.append(f"{name}/{n}.png,{name},p{n // 3}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize(
    ("colours", "bits", "source"),
    [(1, 16, {"class_folders": True}), (3, 8, {"datalist": "labels.csv"})],
)
def test_own_images_are_sampled_as_they_were(tmp_path: Path, colours: int, bits: int, source: dict[str, Any]) -> None:
    data = own_images(tmp_path / "data", colours, bits)
    source = {k: str(data / v) if k == "datalist" else v for k, v in source.items()}
    common = {"run_dir": str(tmp_path / "run"), "device": "cpu"}
    training = {**TINY_TRAINING, **common, "dataset_dir": str(data), "channels": colours, **source, "num_workers": 0}
    training |= {"compression": [4, 4, 1], "latent_channels": 4, "test_fraction": 0, "prediction_type": "sample"}
    run("train", bundle=BUNDLE, **training)
    run("inference", bundle=BUNDLE, **common, label="ill", num_samples=1, num_steps=2, output_dir=str(tmp_path / "out"))
    image = read_png(tmp_path / "out" / "sample_0.png")
    assert image.shape == ((16, 16) if colours == 1 else (16, 16, 3))
    assert image.dtype == (np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 3}, "convert_channels"),
        ({"datalist": "labels.csv", "classes": "[healthy, sick]"}, "ill"),
        ({"datalist": "nothing.csv"}, "nothing.csv"),
        ({"datalist": "labels.csv", "label_column": "diagnose"}, "diagnosis"),
    ],
)
def test_own_images_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    data = own_images(tmp_path / "data")
    if "datalist" in options:
        options = {**options, "datalist": str(data / options["datalist"])}
    flow = workflow(
        "train", bundle=BUNDLE, dataset_dir=str(data), run_dir=str(tmp_path / "run"), **options, **TINY_MODEL
    )
    with pytest.raises(RuntimeError) as failed:
        flow.initialize()
    assert message in str(find_user_error(failed.value))
    assert not (tmp_path / "run" / "models").exists()


def test_volumes_of_a_labelled_list_are_conditional_too(tmp_path: Path) -> None:
    """Labels are nothing of depth 1: the chest-CT bundle takes a list with classes."""
    from bundle_runs import BUNDLE as LIDC
    from bundle_runs import TINY_TRAINING as TINY_VOLUMES

    from medical_diffusion.data.phantoms import write_phantoms

    folder = write_phantoms("chest_ct", tmp_path, 6, 16, progress=False)
    files = sorted((folder / "images").glob("*.nii.gz"))
    rows = [f"images/{file.name},{'small' if n % 2 else 'large'}" for n, file in enumerate(files)]
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    options = {**TINY_VOLUMES, "run_dir": str(tmp_path / "run"), "num_workers": 0, "spacing": None, "crop_size": None}
    run("train", bundle=LIDC, **options, dataset_dir=str(folder), datalist=str(folder / "labels.csv"), test_fraction=0)
    out = tmp_path / "out"
    run("inference", bundle=LIDC, run_dir=str(tmp_path / "run"), label="large", guidance_scale=2, num_samples=1,
        sampler="ddim", num_steps=2, output_dir=str(out), device="cpu")  # fmt: skip
    assert sidecars(out)[0]["class_name"] == "large"
    assert (out / "sample_0.nii.gz").is_file()


def test_an_external_autoencoder_is_evaluated_on_the_same_images(trained: Path, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra 'diffusers'")
    network = diffusers.AutoencoderKL(in_channels=3, out_channels=3, block_out_channels=(8,), norm_num_groups=4)
    network.save_pretrained(tmp_path / "vae")
    before = (trained / "reports" / "reconstruction.json").read_text(encoding="utf-8")
    options = {**TINY_MODEL_OF_STAGE_1, "run_dir": str(trained), "num_phantoms": 10, "device": "cpu"}
    run("evaluate", bundle=BUNDLE, **options, external_autoencoder=str(tmp_path / "vae"))
    report = json.loads((trained / "reports" / "reconstruction_external.json").read_text(encoding="utf-8"))
    assert report["autoencoder"] == str(tmp_path / "vae")
    assert set(report["reconstruction"]) >= {"psnr", "mse", "ms_ssim"} and "codebook" not in report
    assert (trained / "reports" / "reconstruction.json").read_text(encoding="utf-8") == before

    with pytest.raises(RuntimeError) as failed:
        run("evaluate", bundle=BUNDLE, **options, external_autoencoder=str(tmp_path / "nothing"))
    assert "nothing" in str(find_user_error(failed.value))


def test_an_evaluation_on_another_split_says_so(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("medical_diffusion"), "propagate", True)
    data = own_images(tmp_path / "data")
    common = {"run_dir": str(tmp_path / "run"), "device": "cpu", "dataset_dir": str(data)}
    training = {**TINY_TRAINING, **common, "num_workers": 0, "test_fraction": 0}
    run("train", bundle=BUNDLE, **training, datalist=str(data / "labels.csv"))
    for options, warned in (({"datalist": str(data / "labels.csv")}, False), ({}, True)):
        caplog.clear()
        flow = workflow("evaluate", bundle=BUNDLE, kind="infer", **common, **options)
        flow.initialize()
        logging.getLogger("medical_diffusion").propagate = True
        flow.parser.get_parsed_content("initialize")
        assert ("not the split of training" in caplog.text) is warned


def test_a_class_can_not_be_called_none(tmp_path: Path) -> None:
    data = own_images(tmp_path / "data")
    (data / "ill").rename(data / "None")
    with pytest.raises(RuntimeError) as failed:
        run("train", bundle=BUNDLE, **TINY_TRAINING, run_dir=str(tmp_path / "run"), dataset_dir=str(data),
            class_folders=True)  # fmt: skip
    assert "a class needs a name other than none" in str(find_user_error(failed.value))


def test_twelve_bits_in_sixteen_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(4):
        image = np.random.default_rng(n).integers(0, 4096, (16, 16), dtype=np.uint16)
        write_png(tmp_path / "data" / f"{n}.png", image)
    flow = workflow(
        "train", bundle=BUNDLE, **TINY_TRAINING, run_dir=str(tmp_path / "run"), dataset_dir=str(tmp_path / "data"),
        test_fraction=0,
    )  # fmt: skip
    flow.initialize()
    assert flow.parser.get_parsed_content("data").is_dark


def test_other_classes_keep_the_autoencoder(tmp_path: Path) -> None:
    data = own_images(tmp_path / "data")
    options = {**TINY_TRAINING, "run_dir": str(tmp_path / "run"), "dataset_dir": str(data), "num_workers": 0}
    options |= {"test_fraction": 0, "datalist": str(data / "labels.csv")}
    run("train", bundle=BUNDLE, **options)
    models = tmp_path / "run" / "models"
    before = {name: (models / name).read_bytes() for name in ("autoencoder.pt", "model.pt")}
    run("train", bundle=BUNDLE, **options, classes="[ill, healthy]")
    assert (models / "autoencoder.pt").read_bytes() == before["autoencoder.pt"]
    assert (models / "model.pt").read_bytes() != before["model.pt"]
    assert stored_settings(tmp_path / "run")["class_names"] == ["ill", "healthy"]
