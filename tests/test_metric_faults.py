"""Growing faults in real images worsen the metrics that are meant to see them, step by step, in 2D and 3D."""

from __future__ import annotations

from pathlib import Path

import metric_faults

from medical_diffusion.evaluation.features import create_extractor


def unseen(found: dict[str, dict[str, list[float]]]) -> list[str]:
    return [
        f"{fault} by {metric}: {values}"
        for fault, metrics in found.items()
        for metric, values in metrics.items()
        if metric in metric_faults.MEANT[fault] and not metric_faults.worsens(metric, values)
    ]


def test_faults_of_radiographs_are_seen(data_folder: Path) -> None:
    halves = metric_faults.radiographs(data_folder, 120)
    assert halves.real.shape == (120, 1, 28, 28, 1)
    found = metric_faults.judge_faults(halves, create_extractor("random", 2), pairs=300)
    assert unseen(found) == []
    assert "| blur (none, 0.5, 1, 2) | **" in metric_faults.table(found)


def test_faults_of_volumes_are_seen(data_folder: Path) -> None:
    halves = metric_faults.hippocampus(data_folder, 78, size=(16, 24, 16))
    assert halves.real.shape == (78, 1, 16, 24, 16)
    found = metric_faults.judge_faults(halves, create_extractor("random", 3), pairs=100)
    assert unseen(found) == []
    # MS-SSIM of pairs notices once each image stands there 32 times
    gaps = found["collapse"]["ms_ssim_gap"]
    assert gaps[-1] > max(0.05, *map(abs, gaps[:-1]))


def test_what_worsening_means() -> None:
    assert metric_faults.worsens("fid", [1, 2, 3])
    assert not metric_faults.worsens("fid", [1, 3, 2])
    assert not metric_faults.worsens("fid", [1, 1, 2])
    assert metric_faults.worsens("recall", [0.9, 0.1, 0, 0])
    assert not metric_faults.worsens("recall", [0.5, 0.6, 0])
    assert metric_faults.worsens("ms_ssim_gap", [-0.01, 0.02, 0.1])
    assert metric_faults.worsens("ms_ssim_gap", [0.01, -0.02, -0.1])
    assert not metric_faults.worsens("ms_ssim_gap", [-0.1, -0.05, 0.02])
