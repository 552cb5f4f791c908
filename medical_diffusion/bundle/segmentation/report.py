"""The evaluation of a fine-tuned network on the test subjects: figures with intervals, table, overlays."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.segmentation.data import SegmentationData
from medical_diffusion.bundle.segmentation.overlay import agreement_planes
from medical_diffusion.bundle.segmentation.segmenter import Segmenter
from medical_diffusion.bundle.weights import Weights
from medical_diffusion.data import EncodeLabelsd, load_volume
from medical_diffusion.data.listing.exposure import seen_subjects
from medical_diffusion.data.listing.tables import shown
from medical_diffusion.evaluation.segmentation import FIGURES, ClassScore, score_case, summarize
from medical_diffusion.files import write_json, write_text
from medical_diffusion.pictures import tile_grid, write_png

logger = logging.getLogger(__name__)

PICTURED = 4
OVERLAYS = "overlays"


class SegmentationReport:
    """Segments the test volumes and compares on their own grid, in millimetres.

    Args:
        segmenter: of the best weights.
        data: whose test part is evaluated; the validation part where there is no test part, which the report says.
        folders: ``reports`` gets ``segmentation.json``, ``segmentation.csv``, ``overlay.png`` and ``overlays/``.
        weights: tell the training subjects.
    """

    def __init__(self, segmenter: Segmenter, data: SegmentationData, folders: Folders, weights: Weights) -> None:
        self.segmenter, self.data, self.folders, self.weights = segmenter, data, folders, weights

    @property
    def split(self) -> str:
        """The part that is evaluated."""
        return "test" if self.data.lists.test else "validation"

    def run(self) -> dict[str, Any]:
        """Evaluate and write.

        Returns:
            the content of ``segmentation.json``: ``split``, ``subjects``, ``classes`` and ``mean_dice`` with intervals
            over subjects, ``cases`` (subject, image, Dice by class: None where the class is in neither map; the first
            by subject have an ``overlay``), ``training_subjects``, ``training_ids``, ``seen_subjects`` (evaluated
            ones that these weights or those before them were trained on: none in a fair figure) and ``data``, the hash
            of the whole data set.
        """
        names = list(self.data.class_values)
        items = sorted(getattr(self.data.lists, self.split), key=lambda item: (item["subject"], item["image"]))
        encode = EncodeLabelsd("label", list(self.data.class_values.values()))
        self.segmenter.network.to(self.segmenter.device)
        scored: list[tuple[dict[str, Any], dict[str, ClassScore]]] = []
        columns: list[list[np.ndarray]] = []
        cases: list[dict[str, Any]] = []
        for item in tqdm(items, "Evaluating", unit="volume"):
            segmentation = self.segmenter({key: item[key] for key in ("image", "series_uid") if key in item})
            label = encode({"label": load_volume(item["label"], allow_planar=True, channels=1)})["label"]
            reference = np.asarray(label)
            spacing = np.linalg.norm(segmentation.affine[:3, :3], axis=0).tolist()
            scores = score_case(segmentation.channels, reference, names, spacing)
            scored.append((item, scores))
            case = {"subject": item["subject"], "image": item["image"], "dice": {n: s.dice for n, s in scores.items()}}
            if len(columns) < PICTURED:
                image = np.asarray(load_volume(item["image"], item.get("series_uid"), allow_planar=True))
                columns.append(agreement_planes(image, segmentation.channels, reference, segmentation.affine))
                case["overlay"] = self._write_overlay(len(columns), columns[-1])
            cases.append(case)
        report = {
            "split": self.split,
            **summarize([(item["subject"], scores) for item, scores in scored], names),
            "cases": cases,
            "training_subjects": len(self.weights.settings.get("training_ids", [])),
            "training_ids": self.weights.settings.get("training_ids", []),
            "seen_subjects": seen_subjects(items, self.weights.settings.get("trained_on", [])),
            "data": self.data.lists.data,
        }
        pictured = ", ".join(case["subject"] for case in cases[:PICTURED])
        title = f"{self.split} subjects {pictured}: right green, wrong red"
        write_png(self.folders.reports / "overlay.png", tile_grid([(title, columns)]))
        write_text(self.folders.reports / "segmentation.csv", _table(scored, names))
        path = write_json(self.folders.reports / "segmentation.json", report)
        _show(report, path)
        return report

    def _write_overlay(self, number: int, tiles: list[np.ndarray]) -> str:
        """One case's picture; its path relative to the reports."""
        relative = f"{OVERLAYS}/{self.split}_{number}.png"
        write_png(self.folders.reports / relative, tile_grid([("", [tiles])]))
        return relative


def _table(scored: list[tuple[dict[str, Any], dict[str, ClassScore]]], names: list[str]) -> str:
    """One line for each case and class."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("subject", "image", "class", *FIGURES))
    for item, scores in scored:
        for name in names:
            figures = [getattr(scores[name], figure) for figure in FIGURES]
            table.writerow((item["subject"], item["image"], name, *("" if f is None else f"{f:.6g}" for f in figures)))
    return text.getvalue()


def _show(report: dict[str, Any], path: Path) -> None:
    if report["seen_subjects"]:
        logger.warning(
            "WARNING: %d of these subjects were trained on (%s): the figures are too good.",
            len(report["seen_subjects"]),
            shown(report["seen_subjects"]),
        )
    logger.info("%d %s subjects (mean over subjects, 95 %% bootstrap interval):", report["subjects"], report["split"])
    for name, figures in report["classes"].items():
        dice, hausdorff, surface = (_text(figures[figure]) for figure in FIGURES)
        logger.info("  %-16s Dice %s   Hausdorff 95 %% %s mm   surface %s mm", name, dice, hausdorff, surface)
    logger.info("  %-16s Dice %s", "mean", _text(report["mean_dice"]))
    logger.info("  written to %s", path)


def _text(interval: dict[str, Any]) -> str:
    if interval["value"] is None:
        return "none"
    ends = "" if interval["low"] is None else f" [{interval['low']:.3g}, {interval['high']:.3g}]"
    return f"{interval['value']:.3g}{ends}"
