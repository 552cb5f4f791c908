"""Training for label-efficiency studies that takes no time: Dice grows with labels, more where pre-trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medical_diffusion.evaluation.bootstrap import bootstrap_interval
from medical_diffusion.pictures import write_png

SUBJECTS = [f"patient_{n:02d}" for n in range(12)]
LABELLED = [f"labelled_{n:02d}" for n in range(20)]
GAINS = {"synthetic": 0.1, "shapes": 0.06}
"""In Dice by arm, less the more labels there are."""


class FakeRunner:
    """Remembers what it was asked for; fails, or is interrupted, where it is told to.

    Args:
        fail_at: number of the run, from 0, at which ``error`` is raised.
        error: what is raised there.
    """

    def __init__(self, fail_at: int | None = None, error: BaseException | None = None) -> None:
        self.fail_at, self.error = fail_at, error
        self.checked: list[dict[str, Any]] = []
        self.done: list[dict[str, Any]] = []

    def check(self, options: Mapping[str, Any]) -> None:
        self.checked.append(dict(options))

    def run(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if self.fail_at == len(self.done) and self.error is not None:
            raise self.error
        self.done.append(dict(options))
        folder = Path(options["run_dir"])
        (Path(options["cache_dir"]) / "labelled").mkdir(parents=True, exist_ok=True)
        for name in ("models", "cache", "data"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "models" / "model.pt").write_bytes(b"weights")
        return report(options)


def report(options: Mapping[str, Any]) -> dict[str, Any]:
    """What ``evaluate.json`` leaves, with a picture of two subjects."""
    share, seed = float(options["label_fraction"]) / 100, int(options["subset_seed"])
    name = Path(options["pretrained"] or "none/models/model.pt").parents[1].name
    gain = GAINS.get(name, 0.0) * (1 - share)
    hardness = np.random.default_rng(5).normal(0, 0.05, len(SUBJECTS))
    noise = np.random.default_rng([seed, int(1000 * share), len(name)]).normal(0, 0.01, len(SUBJECTS))
    dice = np.clip(0.6 + 0.3 * share + gain + hardness + noise, 0, 1)
    cases: list[dict[str, Any]] = []
    for number, (subject, value) in enumerate(zip(SUBJECTS, dice, strict=True)):
        case: dict[str, Any] = {"subject": subject, "image": f"{subject}.nii.gz"}
        case["dice"] = {"liver": float(value), "lesion": None if number == 3 else float(value)}
        if number < 2 and share < 0.6:  # drawing takes longer than all the rest
            case["overlay"] = f"overlays/{subject}.png"
            picture = np.zeros((40, 60, 3), np.uint8)
            picture[10:30, 10 : 10 + int(40 * value), 1] = 200
            picture[10:30, 10 + int(40 * value) : 50, 0] = 200
            write_png(Path(options["run_dir"]) / "reports" / case["overlay"], picture)
        cases.append(case)
    interval = bootstrap_interval(dice).as_dict()
    ranked = np.random.default_rng([seed, 1]).permutation(LABELLED)
    subset = sorted(ranked[: int(np.ceil(share * len(LABELLED)))].tolist())
    figures = {"dice": interval, "hausdorff95_mm": interval, "surface_distance_mm": interval}
    return {
        "split": "test",
        "subjects": len(SUBJECTS),
        "classes": {"liver": figures, "lesion": figures},
        "mean_dice": interval,
        "cases": cases,
        "training_subjects": len(subset),
        "training_ids": subset,
    }


def weights_files(folder: Path, names: Sequence[str] = ("synthetic", "shapes")) -> list[str]:
    """Files that open as checkpoints, each as its run would leave it."""
    paths = []
    for number, name in enumerate(names):
        path = folder / name / "models" / "model.pt"
        path.parent.mkdir(parents=True)
        torch.save({"model": {"weight": torch.full((2,), float(number))}}, path)
        paths.append(str(path))
    return paths
