"""Options: every form in which the command line hands over a value, bounds, unknown names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_runs import BUNDLE, TINY_TRAINING, run, workflow

from medical_diffusion.bundle import Defaults, Settings, select_device
from medical_diffusion.bundle.context import reject_unknown_overrides
from medical_diffusion.bundle.describe import describe_bundle
from medical_diffusion.bundle.options import coerce, load_options
from medical_diffusion.bundle.render import bundle_names, render_bundle
from medical_diffusion.errors import UserError, find_user_error

OPTIONS = load_options(BUNDLE)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("image_size", [64, 64, 64], [64, 64, 64]),
        ("image_size", "[64,64,32]", [64, 64, 32]),
        ("image_size", (64, 64, 1), [64, 64, 1]),
        ("image_size", 64, [64, 64, 64]),
        ("spacing", "none", None),
        ("spacing", 2, [2.0, 2.0, 2.0]),
        ("batch_size", 1.0, 1),
        ("seed", "7", 7),
        ("dataset_dir", 2024, str(Path("2024").resolve())),
        ("dataset_dir", "~/scans", str(Path("~/scans").expanduser().resolve())),
        ("flip_axes", 0, [0]),
        ("flip_axes", "[]", []),
        ("perceptual", "none", "none"),
        ("num_steps", None, None),
        ("orientation", " asr", "ASR"),
        ("crop_size", "[0,0,32]", [0, 0, 32]),
        ("foreground_crop", "none", None),
    ],
)
def test_values_arrive_in_many_forms(name: str, value: Any, expected: Any) -> None:
    assert coerce(OPTIONS[name], value) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", "two", r"--batch_size must be a whole number.*'two'|two"),
        ("batch_size", 0, "--batch_size must be at least 1 volumes"),
        ("batch_size", 1.5, "--batch_size must be a whole number"),
        ("batch_size", True, "--batch_size must be a whole number"),
        ("batch_size", None, "--batch_size needs a value"),
        ("image_size", [64, 64], r"--image_size must be one or three whole numbers \(H, W, D\)"),
        ("image_size", "64x64x64", "--image_size must be one or three whole numbers"),
        ("validation_fraction", 0.95, "at most 0.9"),
        ("sampler", "dimm", "--sampler must be one of ddpm, ddim, dpmpp.*Did you mean ddim"),
        ("ema_decay", "nan", "--ema_decay must be a number"),
        ("orientation", "RAX", "--orientation must be three letters, one each of L or R, A or P, S or I"),
        ("orientation", "RLS", "--orientation must be three letters"),
        ("orientation", "RASS", "--orientation must be three letters"),
        ("orientation", "none", "--orientation needs a value"),
        ("foreground_crop", True, "--foreground_crop must be a whole number"),
        ("crop_size", -1, "--crop_size must be at least 0"),
    ],
)
def test_values_that_do_not_fit_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        coerce(OPTIONS[name], value)


def test_profiles_follow_from_dataset_dir() -> None:
    phantom, paper = Defaults(str(BUNDLE)), Defaults(str(BUNDLE), dataset_dir="somewhere")
    assert (phantom["image_size"], paper["image_size"]) == ([32, 32, 32], [128, 128, 128])
    assert paper["num_codes"] == 16384 and paper["latent_channels"] == 8 and paper["timesteps"] == 300
    assert paper["spacing"] == [1.0, 1.0, 1.0] and paper["crop_size"] == [320, 320, 320]
    assert paper["compression"] == [4, 4, 4] and paper["unet_channels"] == 32 and paper["noise_schedule"] == "cosine"


@pytest.mark.parametrize("name", ["lidc_ldm", "duke_ldm", "chexpert_ldm"])
def test_the_quick_profile_is_the_phantom_run_behind_the_papers_preprocessing(name: str) -> None:
    root = str(BUNDLE.parent / name)
    phantom, paper = Defaults(root), Defaults(root, dataset_dir="somewhere", profile="paper")
    quick = Defaults(root, dataset_dir="somewhere", profile="quick")
    assert paper == Defaults(root, dataset_dir="somewhere") and quick.profile == "quick"
    for option in quick.options.values():
        same = paper if option.stage == "data" and option.name != "image_size" else phantom
        assert quick[option.name] == same[option.name], option.name
    assert quick["image_size"] == phantom["image_size"] and quick["test_fraction"] == paper["test_fraction"] == 0.1
    assert Settings(quick, {"image_size": quick["image_size"], "compression": quick["compression"]}).latent_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "quick"}, r"--profile chooses.*received: quick.*--dataset_dir"),
        ({"profile": "fast", "dataset_dir": "somewhere"}, "--profile must be one of paper, quick.*fast"),
    ],
)
def test_a_profile_that_can_not_be_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.compile(message, re.IGNORECASE)):
        Defaults(str(BUNDLE), **options)


def test_size_must_be_divisible_by_the_compression() -> None:
    defaults = Defaults(str(BUNDLE))
    with pytest.raises(UserError, match=r"divisible by the compression \(4, 4, 4\) along W.*\(32, 36, 32\)"):
        Settings(defaults, {"image_size": [32, 34, 32], "compression": 4})


def test_images_have_no_halves() -> None:
    with pytest.raises(UserError, match=r"--halves splits volumes.*\[16, 16, 1\].*--halves false"):
        Settings(Defaults(str(BUNDLE)), {"image_size": [16, 16, 1], "compression": 4, "halves": True})


@pytest.mark.parametrize(
    ("name", "image_size", "compression", "latent_channels", "channels"),
    [
        ("adni_ldm", [64, 64, 64], [2, 2, 2], 8, 1),
        ("duke_ldm", [256, 256, 32], [4, 4, 4], 8, 1),
        ("mrnet_ldm", [256, 256, 32], [4, 4, 4], 8, 1),
        ("airogs_ldm", [256, 256, 1], [8, 8, 1], 4, 3),
        ("crcdx_ldm", [512, 512, 1], [8, 8, 1], 8, 3),
        ("chexpert_ldm", [256, 256, 1], [8, 8, 1], 8, 1),
    ],
)
def test_paper_profiles(
    name: str, image_size: list[int], compression: list[int], latent_channels: int, channels: int
) -> None:
    paper = Defaults(str(BUNDLE.parent / name), dataset_dir="somewhere")
    assert paper["image_size"] == image_size and paper["compression"] == compression
    assert paper["latent_channels"] == latent_channels and paper["channels"] == channels
    is_volume = image_size[2] > 1
    assert paper["bottleneck"] == ("vq" if is_volume else "kl")
    assert paper["timesteps"] == (300 if is_volume else 1000)
    assert paper["intensity"] == ("minmax" if is_volume else "stored")
    assert paper["flip_axes"] == {"adni_ldm": [0], "duke_ldm": [0], "mrnet_ldm": [2]}.get(name, [])
    latent = image_size[0] // compression[0]
    assert paper["unet_channels"] == (256 if not is_volume else latent)


def test_the_cosine_schedule_has_no_betas() -> None:
    values = {"noise_schedule": "cosine", "beta_range": [0.002, 0.02]}
    with pytest.raises(UserError, match=r"--beta_range belongs to the linear.*\[0.002, 0.02\].*--beta_range none"):
        Settings(Defaults(str(BUNDLE)), values)
    assert Settings(Defaults(str(BUNDLE)), values | {"beta_range": "none"}).beta_range is None


@pytest.mark.parametrize("path", ["batchsize", "train#optimizer#learning_rat", "autoencoder#stepp"])
def test_misspelt_override_is_refused_at_any_depth(path: str) -> None:
    flow = workflow("train", **{path: 2})
    with pytest.raises(RuntimeError) as failure:
        flow.initialize()
    error = find_user_error(failure.value)
    assert error is not None and f"--{path}" in str(error)


def test_near_miss_is_suggested() -> None:
    flow = workflow("train", batch_sise=2)
    with pytest.raises(RuntimeError) as failure:
        flow.initialize()
    assert "Did you mean batch_size" in str(find_user_error(failure.value))


def test_without_a_running_workflow_nothing_is_compared() -> None:
    reject_unknown_overrides()


def test_unknown_device() -> None:
    assert select_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:77"):
        with pytest.raises(UserError, match=f"--device must be a device of this machine.*{name}.*Available here: cpu"):
            select_device(name)


def test_every_option_is_described_with_default_and_unit() -> None:
    text = describe_bundle(BUNDLE)
    for option in OPTIONS.values():
        assert f"--{option.name} " in text and option.help in text
    assert "[32, 32, 32] | [128, 128, 128] [voxels (H, W, D)]" in text


@pytest.mark.parametrize("name", bundle_names())
def test_bundles_are_in_step_with_their_template(name: str) -> None:
    for relative, text in render_bundle(name).items():
        assert (BUNDLE.parent / name / relative).read_text(encoding="utf-8") == text, relative


def test_every_option_is_read_by_a_configuration_or_the_package() -> None:
    """An option that nothing reads would be a promise that is not kept."""
    package = Path(__file__).resolve().parents[1] / "medical_diffusion"
    text = "".join(
        p.read_text(encoding="utf-8") for p in (package / "bundle").rglob("*") if p.suffix in (".py", ".json")
    )
    for name in OPTIONS:
        assert any(read in text for read in (f"settings.{name}", f"s.{name}", f's.get("{name}"')), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_dir": "{tmp}/missing"}, "dataset_dir must be an existing folder"),
        ({"dataset_dir": "{tmp}/empty"}, "dataset_dir must not be empty"),
        ({"dataset_dir": "{tmp}/text"}, "must hold readable images"),
        ({"run_dir": "{tmp}/file"}, "output folder must be writable"),
        ({"device": "cuda:77"}, "--device must be a device"),
        ({"image_size": [30, 32, 32]}, "divisible by the compression"),
        ({"autoencoder_steps": "many"}, "--autoencoder_steps must be a whole number"),
        ({"perceptual": "lpips"}, "perceptual"),
        ({"phantom_kind": "chestct"}, "Did you mean chest_ct"),
        ({"manifest": "no_such_manifest", "dataset_dir": "{tmp}/text"}, "manifest"),
    ],
)
def test_bad_input_is_refused_before_any_work(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no image")
    (tmp_path / "file").write_text("a file where a folder should be")
    filled = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises((RuntimeError, UserError)) as failure:
        run("train", **{**TINY_TRAINING, "run_dir": str(tmp_path / "run"), **filled})
    error = find_user_error(failure.value)
    assert error is not None and message in str(error), failure.value
    assert not list((tmp_path / "run").rglob("*.pt"))
