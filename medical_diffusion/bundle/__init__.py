"""What the expressions of bundle configurations call, as ``bundle.<name>``; each name is imported at its first use, so
that the commands which only read configurations answer at once."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    ".context": ("bundle_root",),
    ".folders": ("Folders",),
    ".latent_statistics": ("LatentStatistics",),
    ".messages": (
        "announce_evaluation",
        "announce_sampling",
        "announce_training",
        "announce_written",
        "intensity_limits",
        "report_reconstruction",
        "sample_provenance",
        "samples_folder",
    ),
    ".pretraining.data": ("PretrainingData", "inherited_defaults"),
    ".pretraining.messages": (
        "PretextEvaluation",
        "announce_pretrained",
        "announce_pretraining",
        "pretext_output",
        "report_pretraining",
        "write_pretext_picture",
    ),
    ".previews": ("sample_picture", "write_preview", "write_sample_preview"),
    ".reconstruction": ("NoiseEvaluation", "ReconstructionEvaluation"),
    ".sample_evaluation": ("SampleEvaluation",),
    ".segmentation.data": ("SegmentationData", "augmented_axes", "inherited", "trained_classes"),
    ".segmentation.messages": (
        "announce_comparison",
        "announce_finetuned",
        "announce_finetuning",
        "announce_segmenting",
        "transfer",
    ),
    ".segmentation.report": ("SegmentationReport",),
    ".segmentation.segmenter": ("Segmenter", "window_inferer"),
    ".segmentation.validation": ("DiceValidation",),
    ".segmentation.writer": (
        "ImagesToSegment",
        "SegmentationEvaluator",
        "SegmentationWriter",
        "segmentations_folder",
        "write_segmentation_preview",
    ),
    ".session": (
        "begin",
        "end",
        "parameters_of",
        "process_device",
        "require_finished",
        "sampler_steps",
        "seed_networks",
        "set_threads",
        "share_of",
        "to_device",
        "tracking_requested",
        "tracking_uri",
    ),
    ".settings": ("Defaults", "Settings", "select_device"),
    ".training_data": ("TrainingData",),
    ".weights": ("Weights",),
    "medical_diffusion.data": ("weights_hash",),
    "medical_diffusion.training": ("parameter_groups",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name], __name__), name)
