"""The bundle swin_unetr_pretrain end to end, tiny: phantoms, samples in a folder or drawn on the way, bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import BUNDLE as DIFFUSION_BUNDLE
from bundle_runs import ROOT, TINY_TRAINING, as_arguments, command_line, run, workflow
from data_files import write_nifti
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from PIL import Image
from torch import Tensor, nn

from medical_diffusion.bundle.describe import describe_bundle
from medical_diffusion.bundle.options import load_options
from medical_diffusion.bundle.pack import pack_bundle
from medical_diffusion.bundle.pretraining.data import inherited_defaults
from medical_diffusion.bundle.pretraining.messages import FINETUNING_SPLIT
from medical_diffusion.bundle.pretraining.source import HELD_OUT_SEED, DiffusionSource, FreshVolumes
from medical_diffusion.data.listing.exposure import seen_subjects
from medical_diffusion.errors import UserError, find_user_error
from medical_diffusion.files import load_tensors
from medical_diffusion.networks import SwinUNETR
from medical_diffusion.networks.transfer import transfer_weights
from medical_diffusion.training import StepTrainer

BUNDLE = ROOT / "bundles" / "swin_unetr_pretrain"
COMMON: dict[str, Any] = {"steps": 3, "batch_size": 2, "validation_interval": 2, "num_previews": 2, "device": "cpu"}
IMAGES: dict[str, Any] = {  # the 2D form is fast
    **COMMON,
    "phantom_kind": "radiograph",
    "image_size": [48, 32, 1],
    "intensity": "stored",
    "num_phantoms": 5,
    "checkpoint_interval": 0,
}


class Small(nn.Module):
    """In place of the 3D network where the network does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


VOLUMES: dict[str, Any] = {**COMMON, "num_workers": 0, "network_def": {"_target_": f"{__name__}.Small"}}


def pretrain(**options: Any) -> Any:
    return run("train", bundle=BUNDLE, **options)


def refused(**options: Any) -> str:
    with pytest.raises((RuntimeError, UserError)) as failure:
        pretrain(**options)
    error = find_user_error(failure.value)
    assert error is not None, failure.value
    return str(error)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run on radiograph phantoms."""
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain(**IMAGES, run_dir=str(folder))
    return folder


def test_training_writes_what_its_last_lines_name(trained: Path) -> None:
    for relative in ("models/model.pt", "preview.png", "reports/pretraining.json"):
        assert (trained / relative).stat().st_size > 0, relative
    assert list((trained / "logs").rglob("events.out.tfevents*"))
    report = json.loads((trained / "reports" / "pretraining.json").read_text(encoding="utf-8"))
    assert report["objective"] == "masked" and report["mask_ratio"] == 0.7
    assert 0 < report["hidden_error"] < 2 and 0 < report["mean_fill_error"] < 2


def test_weights_load_into_a_plain_network_and_into_ours_with_other_classes(trained: Path) -> None:
    weights = load_tensors(trained / "models" / "model.pt")["model"]
    MonaiSwinUNETR(1, 1, feature_size=12, window_size=4, spatial_dims=2).load_state_dict(weights, strict=True)
    report = transfer_weights(SwinUNETR((64, 64, 1), 1, 3, 12, window_size=4), trained / "models" / "model.pt")
    assert report.share == 1.0 and len(report.new_head) == 2


def test_killed_and_rerun_gives_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StepTrainer._iteration

    def die(self: StepTrainer, engine: Any, batchdata: Any) -> Any:
        if engine.state.iteration == 3:
            raise KeyboardInterrupt
        return original(self, engine, batchdata)

    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "_iteration", die)
        with pytest.raises(KeyboardInterrupt):
            pretrain(**IMAGES, run_dir=str(tmp_path))
    assert load_tensors(tmp_path / "models" / "model_last.pt")["step"] == 2
    pretrain(**IMAGES, run_dir=str(tmp_path))
    first, second = (load_tensors(folder / "models" / "model.pt")["model"] for folder in (trained, tmp_path))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0)


def test_other_numbers_move_the_old_weights_aside_and_more_steps_do_not(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    pretrain(**{**IMAGES, "steps": 4}, run_dir=str(tmp_path / "run"))
    assert load_tensors(tmp_path / "run" / "models" / "model.pt")["step"] == 4
    assert not list((tmp_path / "run" / "models").glob("model_before_*"))
    pretrain(**IMAGES, run_dir=str(tmp_path / "run"), objective="paper")
    assert list((tmp_path / "run" / "models").glob("model_before_*"))
    assert load_tensors(tmp_path / "run" / "models" / "model.pt")["settings"]["objective"] == "paper"


def test_first_and_last_lines_on_the_command_line(tmp_path: Path) -> None:
    options = {**IMAGES, "steps": 1, "run_dir": tmp_path}
    result = command_line("run", "--config_file", str(BUNDLE / "configs" / "train.json"), *as_arguments(options))
    assert result.returncode == 0, result.stderr[-2000:]
    assert "pre-training on 5 procedural chest-radiograph phantoms of 48 x 32 x 1 voxels" in result.stdout
    last = result.stdout[result.stdout.index("Written:") :]
    for name in ("model.pt", "logs", "pretraining.json", "preview.png"):
        assert f"{tmp_path}/" in last and name in last
    assert "masked=" in result.stderr


def test_inference_draws_the_picture_with_the_settings_of_training(trained: Path, tmp_path: Path) -> None:
    options = {"phantom_kind": "radiograph", "device": "cpu", "num_previews": 1}
    run("inference", bundle=BUNDLE, run_dir=str(trained), output_dir=str(tmp_path), **options)
    assert np.asarray(Image.open(tmp_path / "pretext.png")).ndim == 3


@pytest.mark.parametrize(("config", "kind"), [("train", "train"), ("inference", "infer")])
def test_required_properties(trained: Path, config: str, kind: str) -> None:
    options = IMAGES if kind == "train" else {"device": "cpu", "phantom_kind": "radiograph"}
    flow = workflow(config, bundle=BUNDLE, kind=kind, run_dir=str(trained), **options)
    flow.initialize()
    assert flow.check_properties() == []


def test_verify_net_in_out_describe_and_pack(tmp_path: Path) -> None:
    result = command_line(
        "verify_net_in_out",
        "--net_id", "network_def",
        "--meta_file", str(BUNDLE / "configs" / "metadata.json"),
        "--config_file", str(BUNDLE / "configs" / "train.json"),
        "--device", "cpu",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    text = describe_bundle(BUNDLE)
    assert "--source_bundle none" in text and "Pre-training" in text and "autoencoder" not in text
    assert pack_bundle(BUNDLE, tmp_path, with_weights=False).is_file()


def test_every_option_is_read() -> None:
    folder = ROOT / "medical_diffusion" / "bundle"
    text = "".join(p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.suffix in (".py", ".json"))
    for name in load_options(BUNDLE):
        assert f"settings.{name}" in text or f"s.{name}" in text, name


def write_samples(folder: Path, size: tuple[int, int, int] = (16, 12, 8), count: int = 4) -> Path:
    """As inference.json of a CT bundle writes them."""
    rng = np.random.default_rng(0)
    for seed in range(count):
        write_nifti(folder / f"sample_{seed}.nii.gz", rng.normal(0, 300, size).astype(np.int16))
        sidecar = {"synthetic": True, "seed": seed, "intensity": "window", "window": [-1000, 1000]}
        (folder / f"sample_{seed}.json").write_text(json.dumps(sidecar))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "preview.png")
    return folder


def test_a_folder_of_samples_brings_its_size_and_window(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    folder = write_samples(tmp_path / "samples")
    expected = {"image_size": [16, 12, 8], "intensity": "window", "window": [-1000, 1000]}
    assert inherited_defaults(str(folder), None, None) == expected
    assert inherited_defaults(None, None, None) == {}
    flow = pretrain(**VOLUMES, dataset_dir=str(folder), run_dir=str(tmp_path / "run"))
    settings = load_tensors(tmp_path / "run" / "models" / "model.pt")["settings"]
    assert settings["image_size"] == [16, 12, 8] and settings["profile"] == "paper"
    data = flow.parser.get_parsed_content("data")
    assert len(data.train) + len(data.validation) == 4
    assert data.training_set[0, 0]["image"].abs().max() < 1.0


def test_weights_say_by_hashes_whom_they_were_trained_on(trained: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for n in range(6):
        write_nifti(tmp_path / "set" / "images" / f"p{n}.nii.gz", generator.random((12, 12, 12), np.float32))
    options = {**VOLUMES, "image_size": [8, 8, 8], "dataset_dir": str(tmp_path / "set"), "test_fraction": 0}
    flow = workflow("train", bundle=BUNDLE, **options, run_dir=str(tmp_path / "run"))
    flow.initialize()
    data = flow.parser.get_parsed_content("data")
    marks = data.stored_settings()["trained_on"]
    assert len(data.train) == 5 and len(seen_subjects(data.train, marks)) == 5
    assert seen_subjects(data.validation, marks) == []
    stored = load_tensors(trained / "models" / "model.pt")["settings"]
    assert stored["trained_on"] == [], "phantoms are nobody"


def initialised(said: pytest.LogCaptureFixture, **options: Any) -> Any:
    """The data of a run that was only initialised."""
    said.clear()
    flow = workflow("train", bundle=BUNDLE, **VOLUMES, image_size=[8, 8, 8], **options)
    flow.initialize()
    return flow.parser.get_parsed_content("data")


def test_subjects_are_held_out_by_name_and_their_absence_is_told(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    generator = np.random.default_rng(0)
    for n in range(12):
        write_nifti(tmp_path / "set" / f"p{n}.nii.gz", generator.random((8, 8, 8), np.float32))
    options = {"dataset_dir": str(tmp_path / "set"), "run_dir": str(tmp_path / "run")}
    whole = initialised(said, **options)
    warning = "can not be test subjects of a fine-tuning"
    assert said.text.count(warning) == 1 and FINETUNING_SPLIT in said.text
    given = load_options(ROOT / "bundles" / "swin_unetr_finetune")
    split = [f"--{name} {given[name].defaults['paper']}" for name in ("validation_fraction", "test_fraction")]
    assert " ".join(split) == FINETUNING_SPLIT
    assert not whole.lists.test
    first, kept = whole.lists.validation[0]["subject"], whole.lists.train[0]["subject"]
    ids = tmp_path / "ids.txt"
    ids.write_text(f"{first}\n\n{kept}\nnobody\n", encoding="utf-8-sig")  # as Windows writes it
    left = initialised(said, **options, held_out=str(ids))
    found = {item["subject"] for item in [*left.train, *left.validation]}
    assert len(found) == 10 and not found & {first, kept} and left.validation, "another one validates"
    assert warning not in said.text and "1 of 3 ids name no subject here: nobody" in said.text
    assert left.fingerprint() != whole.fingerprint() and left.cache_dir != whole.cache_dir
    initialised(said, **options, test_fraction=0.2)
    assert warning not in said.text
    ids.write_text("nobody\n", encoding="utf-8")
    for file, message in ((ids, "must name subjects of this data set"), (tmp_path, "must be a text file")):
        assert message in refused(**VOLUMES, **options, held_out=str(file))


def test_a_misspelt_kind_of_phantoms_is_told(tmp_path: Path) -> None:
    assert "phantom kind must be a known one" in refused(
        **IMAGES | {"phantom_kind": "radiogaph"}, run_dir=str(tmp_path)
    )


def test_a_preview_beside_image_samples_is_no_sample(tmp_path: Path) -> None:
    for seed in range(3):
        values = np.random.default_rng(seed).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"sample_{seed}.png")
        (tmp_path / f"sample_{seed}.json").write_text(json.dumps({"synthetic": True, "seed": seed}))
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "preview.png")
    flow = workflow(
        "train", bundle=BUNDLE, dataset_dir=str(tmp_path), bundle_root=str(BUNDLE), run_dir=str(tmp_path / "r")
    )
    data = flow.parser.get_parsed_content("data")
    assert data.settings.image_size == [16, 16, 1] and data.settings.intensity == "stored"
    names = sorted(Path(item["image"]).name for item in [*data.train, *data.validation])
    assert names == ["sample_0.png", "sample_1.png", "sample_2.png"]


def test_crops_are_a_function_of_the_place_and_small_volumes_are_padded(tmp_path: Path) -> None:
    for n, size in enumerate([(20, 24, 12), (10, 24, 12)]):
        write_nifti(tmp_path / f"v{n}.nii.gz", np.random.default_rng(n).normal(0, 1, size).astype(np.float32))
    options = {**VOLUMES, "image_size": [16, 12, 8], "dataset_dir": str(tmp_path), "bundle_root": str(BUNDLE)}
    flow = workflow("train", bundle=BUNDLE, **options, run_dir=str(tmp_path / "run"), validation_fraction=0.4)
    data = flow.parser.get_parsed_content("data")
    data.prepare()
    crops = [data.training_set[0, place]["image"] for place in range(6)]
    assert all(crop.shape == (1, 16, 12, 8) for crop in crops)
    assert len({float(crop.sum()) for crop in crops}) > 1
    torch.testing.assert_close(data.training_set[0, 3]["image"], crops[3], rtol=0, atol=0)
    torch.testing.assert_close(data.validation_set[0]["image"], data.validation_set[0]["image"], rtol=0, atol=0)


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a diffusion bundle, trained for a moment."""
    folder = tmp_path_factory.mktemp("diffusion")
    run("train", **{**TINY_TRAINING, "autoencoder_steps": 2, "diffusion_steps": 2}, run_dir=str(folder))
    return folder


def test_samples_drawn_on_the_way_are_those_that_inference_writes(diffusion: Path, tmp_path: Path) -> None:
    options = {"sampler": "dpmpp", "num_steps": 2, "device": "cpu", "seed": 5, "num_samples": 2}
    run("inference", run_dir=str(diffusion), output_dir=str(tmp_path), **options)
    source = DiffusionSource(DIFFUSION_BUNDLE, diffusion, "cpu", "dpmpp", 2)
    torch.manual_seed(3)
    volumes = source.draw([6, 5])
    after = torch.rand(())
    torch.manual_seed(3)
    assert after == torch.rand(()), "drawing leaves the generator of the training alone"
    for volume, seed in zip(volumes, (6, 5), strict=True):
        written = np.asarray(nibabel.load(tmp_path / f"sample_{seed}.nii.gz").dataobj)  # type: ignore[attr-defined]
        np.testing.assert_allclose(volume[0].numpy() * 1000, written, atol=1.5)


def test_seeds_are_fresh_on_every_step_and_process_and_repeated_as_asked() -> None:
    fresh = FreshVolumes(None, (8, 8, 8), first_seed=100, batch=4, repeats=2)  # type: ignore[arg-type]
    steps = [[fresh.seed_of(place) for place in range(4 * step, 4 * step + 4)] for step in range(4)]
    assert steps[0] == steps[1] == [100, 101, 102, 103] and steps[2] == steps[3] == [104, 105, 106, 107]
    assert max(max(s) for s in steps) < HELD_OUT_SEED


def test_pretraining_on_samples_drawn_on_the_way(diffusion: Path, tmp_path: Path) -> None:
    source = {"source_bundle": str(DIFFUSION_BUNDLE), "source_run_dir": str(diffusion), "source_steps": 2}
    pretrain(**VOLUMES, **source, source_repeats=2, run_dir=str(tmp_path))
    content = load_tensors(tmp_path / "models" / "model.pt")
    assert content["step"] == 3 and content["settings"]["image_size"] == TINY_TRAINING["image_size"]
    stored = load_tensors(diffusion / "models" / "model.pt")["settings"]
    for name in ("intensity", "window"):
        assert content["settings"][name] == stored[name], "samples come as the diffusion model's volumes were mapped"
    assert (tmp_path / "preview.png").is_file()
    assert "from --dataset_dir or from --source_bundle" in refused(**VOLUMES, **source, dataset_dir=str(tmp_path))


def test_weights_from_samples_know_whom_the_diffusion_model_saw(
    diffusion: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    for n in range(12):
        values = np.random.default_rng(n).normal(0, 300, (16, 16, 16)).astype(np.int16)
        write_nifti(tmp_path / "set" / f"p{n}.nii.gz", values)
    options = {**TINY_TRAINING, "autoencoder_steps": 1, "diffusion_steps": 1, "num_workers": 0, "spacing": [1, 1, 1]}
    flow = run("train", **options, dataset_dir=str(tmp_path / "set"), run_dir=str(tmp_path / "ldm"))
    lists = flow.parser.get_parsed_content("data").lists
    source = {"source_bundle": str(DIFFUSION_BUNDLE), "source_steps": 1}
    unknown = "do not say whom their diffusion model was trained on"
    data = initialised(said, **source, source_run_dir=str(tmp_path / "ldm"), run_dir=str(tmp_path / "run"))
    stored = data.stored_settings()
    seen = seen_subjects([*lists.train, *lists.validation], stored["trained_on"])
    assert seen == sorted(item["subject"] for item in lists.train) and lists.validation
    assert stored["through_samples"] and unknown not in said.text
    weights = tmp_path / "ldm" / "models" / "model.pt"
    content = load_tensors(weights)
    del content["settings"]["trained_on"]
    torch.save(content, weights)
    data = initialised(said, **source, source_run_dir=str(tmp_path / "ldm"), run_dir=str(tmp_path / "old"))
    assert data.stored_settings()["trained_on"] == [] and unknown in said.text
    (tmp_path / "samples").mkdir()
    initialised(said, dataset_dir=str(write_samples(tmp_path / "samples")), run_dir=str(tmp_path / "folder"))
    assert unknown in said.text
    phantoms = initialised(said, **source, source_run_dir=str(diffusion), run_dir=str(tmp_path / "nobody"))
    assert phantoms.stored_settings()["trained_on"] == [] and unknown not in said.text


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    common = {**VOLUMES, "run_dir": str(tmp_path / "run")}
    assert "must be the folder of a diffusion bundle" in refused(**common, source_bundle=str(tmp_path))
    (tmp_path / "empty").mkdir()
    message = refused(**common, source_bundle=str(DIFFUSION_BUNDLE), source_run_dir=str(tmp_path / "empty"))
    assert "must hold the weights of a trained diffusion model" in message


def test_bad_volumes_are_refused_before_any_work(tmp_path: Path) -> None:
    common = {**VOLUMES, "run_dir": str(tmp_path / "run"), "image_size": [16, 12, 8]}
    (tmp_path / "empty").mkdir()
    assert "dataset_dir must not be empty" in refused(**common, dataset_dir=str(tmp_path / "empty"))
    (tmp_path / "sidecars").mkdir()
    (tmp_path / "sidecars" / "sample_0.json").write_text("{}")
    assert "must hold readable images" in refused(**common, dataset_dir=str(tmp_path / "sidecars"))
    folder = write_samples(tmp_path / "damaged")
    for content in ('{"half', "[]"):
        (folder / "sample_0.json").write_text(content)
        assert "the JSON beside a sample must be the one that inference wrote" in refused(
            **common, dataset_dir=str(folder)
        )
    (tmp_path / "constant").mkdir()
    folder = write_samples(tmp_path / "constant")
    for seed in (1, 2):
        write_nifti(folder / f"sample_{seed}.nii.gz", np.full((16, 12, 8), 7, np.int16))
    for intensity in ("window", "minmax", "percentile"):
        message = refused(**common, dataset_dir=str(folder), intensity=intensity)
        assert "var" in message and "sample_1" in message and "sample_2" in message
    assert not (tmp_path / "run" / "models").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": [4, 32, 32]}, "at least 8 voxels along each axis"),
        ({"feature_size": 16}, "feature_size must be a multiple of 12"),
        ({"mask_ratio": 1}, "--mask_ratio must be at most 0.99"),
        ({"objective": "inpaint"}, "--objective must be one of masked, paper"),
        ({"learning_rate_warmup": 0.5}, "shares add up to at most 1"),
        ({"stepps": 3}, "Did you mean steps"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    assert message in refused(**{**COMMON, "num_phantoms": 3, "run_dir": str(tmp_path), **options})


def test_two_processes_end_with_equal_networks(tmp_path: Path) -> None:
    configs = [str(BUNDLE / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    hook = {
        "imports": ["$import medical_diffusion.bundle as bundle", "$import rank_dump"],
        "finalize": [f"$rank_dump.dump({str(tmp_path)!r}, @network_def, @network_def)", "$bundle.end()"],
    }
    (tmp_path / "hook.json").write_text(json.dumps(hook))
    options = {name: value for name, value in IMAGES.items() if name != "device"} | {"run_dir": tmp_path}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "monai.bundle",
        "run", "--config_file", str([*configs, str(tmp_path / "hook.json")]), *as_arguments(options),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[:6000]
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True)["network"] for r in (0, 1))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=0, msg=name)
