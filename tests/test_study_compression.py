"""The compression study: table, figure, resuming, errors."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pytest
from bundle_runs import BUNDLE, TINY_TRAINING
from PIL import Image

from medical_diffusion.__main__ import build_parser, main
from medical_diffusion.cli.study import bundle_options, run_compression
from medical_diffusion.errors import UserError
from medical_diffusion.studies.compression import run_compression_study


def test_arms_share_volumes_and_give_table_and_figure(tmp_path: Path) -> None:
    options = {**TINY_TRAINING, "autoencoder_steps": 2}
    figure = run_compression_study(BUNDLE, tmp_path, (2, 4), options)
    rows = list(csv.reader((tmp_path / "table.csv").open(encoding="utf-8")))
    assert [row[0] for row in rows] == ["compression", "2", "4"]
    assert "| 2 |" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert min(Image.open(figure).size) > 100
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("autoencoder.pt")}
    assert len(stamps) == 2
    run_compression_study(BUNDLE, tmp_path, (2, 4), options)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("autoencoder.pt")} == stamps


def test_command_line_passes_options_of_the_bundle_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset_dir must be an existing folder"):
        run_compression(parsed_study(["--output", str(tmp_path), "--seed", "1", "--dataset_dir", str(tmp_path / "no")]))
    assert main(["study", "compression", "--output", str(tmp_path), "--stepps", "3"]) == 1


def parsed_study(words: list[str]) -> argparse.Namespace:
    parsed, rest = build_parser("study").parse_known_args(["study", "compression", *words])
    parsed.options = rest
    return parsed


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two different compressions"):
        run_compression_study(BUNDLE, tmp_path, (4, 4))
    with pytest.raises(UserError, match="dataset_dir must be an existing folder"):
        run_compression_study(BUNDLE, tmp_path, (2, 4), {"dataset_dir": str(tmp_path / "missing")})
    assert bundle_options(["--image_size", "64", "--seed", "1"]) == {"image_size": "64", "seed": "1"}
    with pytest.raises(UserError, match="come as pairs"):
        bundle_options(["--image_size"])
