"""What a run says of its data before it trains and of its reconstructions after."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.messages import FEW_SUBJECTS, announce_training, report_reconstruction


class Evaluation:
    """Stands for an evaluation whose reconstructions have this sharpness, or none."""

    def __init__(self, sharpness: float | None) -> None:
        self.sharpness = sharpness

    def run(self) -> dict:
        figures: dict = {"psnr": {"mean": 30.0, "std": 1.5}}
        if self.sharpness is not None:
            figures["high_frequency_ratio"] = {"mean": self.sharpness, "std": None}
        return {"volumes": 3, "reconstruction": figures, "trilinear_baseline": {"psnr": {"mean": 20.0, "std": None}}}


@pytest.mark.parametrize(
    ("sharpness", "external", "said"),
    [
        (0.62, None, True),
        (0.95, None, False),
        (None, None, False),
        (0.62, "somewhere/vae", False),
    ],
)
def test_blurred_reconstructions_come_with_a_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sharpness: float | None, external: str | None, said: bool
) -> None:
    caplog.set_level(logging.INFO, "medical_diffusion.bundle.messages")
    report = report_reconstruction(Folders(tmp_path), Evaluation(sharpness), external)  # type: ignore[arg-type]
    text = caplog.text
    assert "30 ± 1.5   (trilinear 20)" in text
    assert ("keep 62 % of the held-out high-frequency energy" in text and "--compression" in text) == said
    (path,) = (tmp_path / "reports").glob("*.json")
    assert report and json.loads(path.read_text(encoding="utf-8"))["reconstruction"] == report["reconstruction"]


class Data(SimpleNamespace):
    """Stands for training data."""

    def prepare(self) -> None:
        pass


@pytest.mark.parametrize(
    ("subjects", "dataset_dir", "said"),
    [
        (1, "scans", "Only 1 training subject:"),
        (FEW_SUBJECTS - 1, "scans", f"Only {FEW_SUBJECTS - 1} training subjects:"),
        (FEW_SUBJECTS, "scans", None),
        (1, None, None),
    ],
)
def test_few_subjects_come_with_a_warning_of_copies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, subjects: int, dataset_dir: str | None, said: str | None
) -> None:
    caplog.set_level(logging.WARNING, "medical_diffusion.bundle.messages")
    train = [{"subject": n % subjects} for n in range(2 * FEW_SUBJECTS)]  # subjects count, not their volumes
    announce(tmp_path, train, dataset_dir=dataset_dir)
    assert ("looks for copies" in caplog.text) == (said is not None) and (said or "") in caplog.text


def announce(run_dir: Path, train: list[dict], **options: object) -> None:
    """First lines of a run with these options."""
    settings = SimpleNamespace(
        dataset_dir=None, image_size=(8, 8, 8), profile="paper", planar=False, num_phantoms=3, intensity="window",
        window=[0, 1], perceptual="none", amp="none", device="cpu",
    )  # fmt: skip
    vars(settings).update(options)
    data = Data(train=train, class_names=(), is_dark=False, kind="chest_ct")
    announce_training(settings, Folders(run_dir), data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("amx", "amp", "device", "said"),
    [(True, "none", "cpu", True), (False, "none", "cpu", False), (True, "bfloat16", "cpu", False),
     (True, "none", "cuda:0", False)],
)  # fmt: skip
def test_a_processor_with_bfloat16_units_is_told_of(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    amx: bool,
    amp: str,
    device: str,
    said: bool,
) -> None:
    caplog.set_level(logging.INFO, "medical_diffusion.bundle.messages")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx}, raising=False)
    announce(tmp_path, [{"subject": 0}], amp=amp, device=device)
    assert ("--amp bfloat16" in caplog.text) == said
