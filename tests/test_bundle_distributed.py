"""Two processes with torchrun (gloo): the same weights and codebook on both ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_runs import BUNDLE, ROOT, TINY_TRAINING, as_arguments, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medical_diffusion.bundle import session
from medical_diffusion.errors import find_user_error


def test_two_processes_end_with_equal_networks(tmp_path: Path) -> None:
    configs = [str(BUNDLE / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    options = {**TINY_TRAINING, "run_dir": tmp_path, "num_phantoms": 8, "autoencoder_steps": 40}
    del options["device"]
    hook = {
        "imports": ["$import medical_diffusion.bundle as bundle", "$import rank_dump"],
        "finalize": [f"$rank_dump.dump({str(tmp_path)!r}, @autoencoder_def, @train#step.ema.network)", "$bundle.end()"],
    }
    (tmp_path / "hook.json").write_text(json.dumps(hook))
    configs.append(str(tmp_path / "hook.json"))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "monai.bundle", "run", "--config_file", str(configs), *as_arguments(options),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[:6000]
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    for part in ("autoencoder", "network"):
        for name, tensor in first[part].items():
            torch.testing.assert_close(tensor, second[part][name], rtol=0, atol=0, msg=f"{part} {name}")
    assert float(first["autoencoder"]["bottleneck.codebook"].std()) > 0
    assert (tmp_path / "models" / "model.pt").is_file()
    events = EventAccumulator(str(tmp_path / "logs" / "autoencoder")).Reload()
    losses = [point.value for point in events.Scalars("train/pixel_loss")]
    assert losses[-1] < losses[0]


def test_overlay_without_torchrun_says_how_to_start_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError) as failure:
        run("train", **{**TINY_TRAINING, "distributed": True}, run_dir=str(tmp_path))
    assert "overlay for torchrun" in str(find_user_error(failure.value))


def test_processes_wait_for_hours_while_the_first_prepares_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(session.dist, "init_process_group", lambda _, **options: asked.update(options))
    for place, name in ((session.hook, "install"), (session, "keep_freed_memory"), (session, "_log_plainly")):
        monkeypatch.setattr(place, name, lambda: None)
    monkeypatch.setattr(session, "reject_unknown_overrides", lambda: None)
    session.begin(distributed=True)
    assert asked["timeout"].total_seconds() >= 6 * 3600
