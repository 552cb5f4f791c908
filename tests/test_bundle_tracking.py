"""MONAI's ``--tracking mlflow`` follows both stages, where mlflow is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_runs import TINY_TRAINING, workflow


def test_both_stages_are_tracked(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (extra 'mlflow')")
    uri = f"sqlite:///{tmp_path / 'mlruns.db'}"
    options = {**TINY_TRAINING, "run_dir": str(tmp_path), "tracking_uri": uri, "output_dir": str(tmp_path / "eval")}
    flow = workflow("train", tracking="mlflow", **options)
    flow.initialize()
    flow.run()
    flow.finalize()
    client = mlflow.MlflowClient(tracking_uri=uri)
    names = {e.experiment_id: e.name for e in client.search_experiments()}
    metrics = {names[r.info.experiment_id]: set(r.data.metrics) for r in client.search_runs(list(names))}
    assert "autoencoder_loss" in metrics["autoencoder"]
    assert "train_loss" in metrics["monai_experiment"]
