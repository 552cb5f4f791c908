"""The bundle end to end at a tiny size: train, skip, resume, sample, evaluate, override, from any folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import BUNDLE, ROOT, TINY_MODEL, TINY_TRAINING, as_arguments, command_line, run, workflow
from torch import Tensor, nn

from medical_diffusion.errors import find_user_error
from medical_diffusion.files import load_tensors
from medical_diffusion.training import StepTrainer


def weights(folder: Path, stage: str) -> dict[str, Tensor]:
    return load_tensors(folder / "models" / f"{stage}.pt")["model"]


def assert_same_weights(a: Path, b: Path) -> None:
    for stage in ("autoencoder", "model"):
        first, second = weights(a, stage), weights(b, stage)
        assert set(first) == set(second)
        for name, tensor in first.items():
            torch.testing.assert_close(tensor, second[name], rtol=0, atol=0, msg=f"{stage} {name}")


def test_training_writes_all_that_its_last_lines_name(trained: Path) -> None:
    for relative in ("models/autoencoder.pt", "models/model.pt", "preview.png", "reports/reconstruction.json"):
        assert (trained / relative).stat().st_size > 0, relative
    assert list((trained / "logs").rglob("events.out.tfevents*"))
    report = json.loads((trained / "reports" / "reconstruction.json").read_text(encoding="utf-8"))
    assert set(report["reconstruction"]) >= {"psnr", "mse", "ms_ssim", "high_frequency_ratio"}
    assert 0 < report["codebook"]["codes_used"] <= 1


def test_first_and_last_lines(tmp_path: Path) -> None:
    options = as_arguments({**TINY_TRAINING, "run_dir": tmp_path, "autoencoder_steps": 1, "diffusion_steps": 1})
    result = command_line("run", "--config_file", str(BUNDLE / "configs" / "train.json"), *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "6 procedural chest-CT phantoms of 16 x 16 x 16 voxels" in result.stdout
    assert "--dataset_dir DIR" in result.stdout
    last = result.stdout[result.stdout.index("Written:") :]
    for name in ("autoencoder.pt", "model.pt", "logs", "reconstruction.json", "preview.png"):
        assert str(tmp_path) in last and name in last
    for shown in ("loss=", "discriminator=", "step/s"):
        assert shown in result.stderr


def test_finished_and_unchanged_work_is_skipped(trained: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (trained / "models").glob("*.pt")}
    run("train", **TINY_TRAINING, run_dir=str(trained))
    assert {p: p.stat().st_mtime_ns for p in (trained / "models").glob("*.pt")} == before


@pytest.mark.parametrize(("stage", "step"), [("autoencoder", 3), ("model", 3)])
def test_killed_in_either_stage_and_rerun_gives_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
) -> None:
    original = StepTrainer._iteration

    def die(self: StepTrainer, engine: Any, batchdata: Any) -> Any:
        if self.checkpoint.stage == stage and engine.state.iteration == step:
            raise KeyboardInterrupt
        return original(self, engine, batchdata)

    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "_iteration", die)
        with pytest.raises(KeyboardInterrupt):
            run("train", **TINY_TRAINING, run_dir=str(tmp_path))
    run("train", **TINY_TRAINING, run_dir=str(tmp_path))
    assert_same_weights(trained, tmp_path)


def test_single_stage_configurations_give_the_same_weights(trained: Path, tmp_path: Path) -> None:
    options = {**TINY_TRAINING, "run_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as failure:
        run("train_diffusion", **options)
    assert "stage 2 needs a finished autoencoder" in str(find_user_error(failure.value))
    run("train_autoencoder", **options)
    run("train_diffusion", **options)
    assert_same_weights(trained, tmp_path)


def test_other_numbers_move_the_old_models_aside(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "models", tmp_path / "models")
    run("train", **{**TINY_TRAINING, "num_codes": 8}, run_dir=str(tmp_path))
    assert list((tmp_path / "models").glob("autoencoder_before_*"))
    assert load_tensors(tmp_path / "models" / "autoencoder.pt")["settings"]["num_codes"] == 8


def sample(folder: Path, output: Path, **options: Any) -> Path:
    options = {"num_samples": 3, "batch_size": 2, "device": "cpu", "seed": 5, **options}
    run("inference", run_dir=str(folder), output_dir=str(output), **options)
    return output


def read(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]


def test_samples_are_files_with_units_affine_and_provenance(trained: Path, tmp_path: Path) -> None:
    sample(trained, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.nii.gz")) == [f"sample_{s}.nii.gz" for s in (5, 6, 7)]
    image = nibabel.load(tmp_path / "sample_6.nii.gz")
    assert image.shape == (16, 16, 16)  # type: ignore[attr-defined]
    assert image.header.get_xyzt_units()[0] == "mm"  # type: ignore[attr-defined]
    np.testing.assert_allclose(image.header.get_zooms(), (20.0,) * 3)  # type: ignore[attr-defined]
    np.testing.assert_allclose(image.affine @ [7.5, 7.5, 7.5, 1], [0, 0, 0, 1], atol=1e-4)  # type: ignore
    values = read(tmp_path / "sample_6.nii.gz")
    assert values.dtype == np.int16 and values.min() >= -1000 and values.max() <= 1000
    sidecar = json.loads((tmp_path / "sample_6.json").read_text(encoding="utf-8"))
    assert sidecar["synthetic"] is True and sidecar["seed"] == 6 and sidecar["unit"] == "HU"
    assert sidecar["sampler"] == "dpmpp" and sidecar["num_steps"] == 8
    assert set(sidecar["weights_sha256"]) == {"autoencoder.pt", "model.pt"}
    assert set(sidecar["versions"]) >= {"medical_diffusion", "torch", "monai"}
    assert (tmp_path / "preview.png").is_file()


def test_a_seed_gives_the_same_volume_in_any_batch(trained: Path, tmp_path: Path) -> None:
    sample(trained, tmp_path / "one", batch_size=1)
    sample(trained, tmp_path / "four", batch_size=4, seed=4, num_samples=4)
    for seed in (5, 6, 7):
        one, four = (read(tmp_path / d / f"sample_{seed}.nii.gz") for d in ("one", "four"))
        np.testing.assert_allclose(one.astype(float), four.astype(float), atol=1)


def test_written_samples_are_skipped_and_missing_ones_drawn(trained: Path, tmp_path: Path) -> None:
    sample(trained, tmp_path)
    kept, missing = tmp_path / "sample_5.nii.gz", tmp_path / "sample_6.nii.gz"
    expected, stamp = read(missing), kept.stat().st_mtime_ns
    missing.unlink()
    sample(trained, tmp_path)
    assert kept.stat().st_mtime_ns == stamp
    np.testing.assert_allclose(read(missing).astype(float), expected.astype(float), atol=1)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_other_samplers(trained: Path, tmp_path: Path, sampler: str) -> None:
    sample(trained, tmp_path, sampler=sampler, num_steps=4, num_samples=1)
    assert json.loads((tmp_path / "sample_5.json").read_text(encoding="utf-8"))["num_steps"] == 4


def refused(config: str, **options: Any) -> str:
    with pytest.raises(RuntimeError) as failure:
        run(config, **options)
    error = find_user_error(failure.value)
    assert error is not None, failure.value
    return str(error)


def test_samples_made_in_another_way_are_not_mixed(trained: Path, tmp_path: Path) -> None:
    sample(trained, tmp_path)
    message = refused(
        "inference", run_dir=str(trained), output_dir=str(tmp_path), seed=5, num_samples=3, sampler="ddim", device="cpu"
    )
    assert "must have been made in the same way" in message and "another --output_dir" in message


def test_inference_refuses_what_does_not_fit(trained: Path, tmp_path: Path) -> None:
    common = {"run_dir": str(trained), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    assert "--image_size must be what the weights were trained with" in refused(
        "inference", **common, image_size=[32, 32, 32]
    )
    assert "a checkpoint must exist" in refused("inference", run_dir=str(tmp_path / "none"), device="cpu")
    assert "must fit the network" in refused(
        "inference", **common, **{"network_def#norm_groups": 4, "network_def#num_heads": 1}
    )
    assert "num_steps" in refused("inference", **common, num_steps=9).replace("steps must", "num_steps must")
    (tmp_path / "file").write_text("")
    assert "must be writable" in refused("inference", run_dir=str(trained), output_dir=str(tmp_path / "file"))
    shutil.copytree(trained / "models", tmp_path / "models")
    path = tmp_path / "models" / "model.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert "truncated or damaged" in refused("inference", run_dir=str(tmp_path))


def test_evaluation_repeats_the_training_report(trained: Path) -> None:
    path = trained / "reports" / "reconstruction.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    run("evaluate", run_dir=str(trained), device="cpu", num_phantoms=TINY_TRAINING["num_phantoms"])
    after = json.loads(path.read_text(encoding="utf-8"))
    assert after["reconstruction"]["mse"]["mean"] == pytest.approx(before["reconstruction"]["mse"]["mean"], rel=1e-5)


class OtherNetwork(nn.Module):
    """A user's own denoiser."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.layer = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor, timesteps: Tensor | int, class_labels: Tensor | None = None) -> Tensor:
        return self.layer(x)


class OtherVolumes(torch.utils.data.Dataset):
    """A user's own data set."""

    opened = 0

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        type(self).opened += 1
        return {"image": torch.full((1, 16, 16, 16), index / 10)}


def test_network_optimizer_and_dataset_are_replaced_by_override(tmp_path: Path) -> None:
    flow = run(
        "train",
        **TINY_TRAINING,
        run_dir=str(tmp_path),
        **{
            "network_def": {"_target_": f"{__name__}.OtherNetwork"},
            "train#optimizer#_target_": "torch.optim.SGD",
            "autoencoder#dataset": {"_target_": f"{__name__}.OtherVolumes", "count": 5},
        },
    )
    assert isinstance(flow.network_def, OtherNetwork)
    assert isinstance(flow.parser.get_parsed_content("train#optimizer"), torch.optim.SGD)
    assert OtherVolumes.opened > 0
    assert set(weights(tmp_path, "model")) == {"layer.weight", "layer.bias"}


@pytest.mark.parametrize(("config", "kind"), [("train", "train"), ("inference", "infer"), ("evaluate", "infer")])
def test_required_properties(trained: Path, config: str, kind: str) -> None:
    options = {"device": "cpu"} if kind == "infer" else TINY_TRAINING
    flow = workflow(config, kind=kind, run_dir=str(trained), **options)
    flow.initialize()
    assert flow.check_properties() == []


@pytest.mark.parametrize("start", ["root", "bundle", "copy"])
def test_exact_commands_from_any_folder(tmp_path: Path, start: str) -> None:
    bundle = BUNDLE
    if start == "copy":
        bundle = tmp_path / "elsewhere" / "lidc_ldm"
        shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("models", "data", "cache", "logs"))
    cwd = {"root": ROOT, "bundle": BUNDLE, "copy": tmp_path}[start]
    config = {"root": "bundles/lidc_ldm/configs/train.json", "bundle": "configs/train.json"}.get(
        start, str(bundle / "configs" / "train.json")
    )
    options = {**TINY_TRAINING, "autoencoder_steps": 1, "diffusion_steps": 1}
    if start != "copy":
        options["run_dir"] = tmp_path
    result = command_line("run", "--config_file", config, *as_arguments(options), cwd=cwd)
    assert result.returncode == 0, result.stderr[-2000:]
    assert ((bundle if start == "copy" else tmp_path) / "models" / "model.pt").is_file()


def test_error_on_the_command_line_is_one_message_with_status_one(tmp_path: Path) -> None:
    result = command_line(
        "run", "--config_file", str(BUNDLE / "configs" / "train.json"), "--dataset_dir", str(tmp_path / "missing")
    )
    assert result.returncode == 1
    assert "error: dataset_dir must be an existing folder" in result.stderr
    assert "Traceback" not in result.stderr


def test_verify_net_in_out(tmp_path: Path) -> None:
    result = command_line(
        "verify_net_in_out",
        "--net_id", "network_def",
        "--meta_file", str(BUNDLE / "configs" / "metadata.json"),
        "--config_file", str(BUNDLE / "configs" / "train.json"),
        "--extra_forward_args", "{'timesteps': 3}",
        "--device", "cpu",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]


def test_tiny_model_fits_its_options() -> None:
    assert set(TINY_MODEL) <= set(TINY_TRAINING)
