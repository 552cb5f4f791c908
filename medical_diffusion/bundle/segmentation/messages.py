"""What a fine-tuning or an evaluation says first and last, and the transfer of pre-trained weights."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from torch import nn

from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.messages import list_written, phantom_title
from medical_diffusion.bundle.segmentation.data import SegmentationData
from medical_diffusion.bundle.segmentation.pretrained import HELD_OUT, check_held_out, warn_of_other_volumes
from medical_diffusion.bundle.settings import Settings
from medical_diffusion.bundle.weights import Weights
from medical_diffusion.data.listing.tables import shown
from medical_diffusion.files import write_json
from medical_diffusion.networks.transfer import transfer_weights
from medical_diffusion.training.distributed import is_main_process

logger = logging.getLogger(__name__)


def announce_finetuning(settings: Settings, folders: Folders, data: SegmentationData) -> None:
    """First lines of a fine-tuning; checks folder, data and share before any work."""
    folders.check_writable()
    size = " x ".join(map(str, settings.image_size))
    if settings.dataset_dir is None:
        logger.info(
            "No dataset_dir was given: fine-tuning on %d procedural %s phantoms with their masks (simulated, no "
            "patients), crops of %s voxels.",
            settings.num_phantoms,
            phantom_title(data.kind),
            size,
        )
        logger.info("To fine-tune on your own labelled volumes: --dataset_dir DIR --pretrained PATH/model.pt")
    else:
        logger.info("Fine-tuning on %s, crops of %s voxels.", settings.dataset_dir, size)
    if is_main_process():  # the others wait until it has found or made the volumes
        check_held_out(settings, data, folders.reports / HELD_OUT)
    data.prepare()
    warn_of_other_volumes(settings, data)
    subjects = data.lists.subjects("train")
    logger.info(
        "Labels of %d training subjects (%s; %g %% of them, repeat %d) for %s.",
        len(subjects),
        shown(subjects),
        settings.label_fraction,
        settings.subset_seed,
        ", ".join(f"{name} ({value})" for name, value in data.class_values.items()),
    )
    scale = f"window {settings.window}" if settings.intensity == "window" else f"per volume by {settings.intensity}"
    logger.info("Intensity: %s mapped to [-1, 1].", scale)
    logger.info("Writing to %s. The same command continues an interrupted run.", folders.root)


def transfer(network: nn.Module, settings: Settings, folders: Folders) -> frozenset[str]:
    """Load the pre-trained weights where there are any and say what came of every tensor.

    Returns:
        names of the tensors that came from them.

    Raises:
        UserError: too small a share of the network's parameters is in the file.
    """
    if settings.pretrained is None:
        logger.info("No pre-trained weights: all layers start from random numbers (--pretrained PATH/model.pt).")
        return frozenset()
    report = transfer_weights(network, settings.pretrained, settings.minimum_share, new_head=True)
    for line in report.summary():
        logger.info("  %s", line)
    if is_main_process():
        write_json(folders.reports / "transfer.json", report.as_dict())
    return frozenset(report.transferred)


def announce_finetuned(folders: Folders) -> None:
    """Last lines of a training run: what was written."""
    list_written(
        {
            folders.models / "model.pt": "weights of the best validation Dice, which load into MONAI's SwinUNETR",
            folders.reports / "transfer.json": "what became of every pre-trained tensor",
            folders.logs: f"TensorBoard logs: tensorboard --logdir {folders.logs}",
        }
    )


def announce_segmenting(images: Collection[Any], writer: Any) -> None:
    """Say what will be segmented."""
    skipped = len(images.all) - len(images)  # type: ignore[attr-defined]
    there = f" ({skipped} are there already)" if skipped else ""
    logger.info("Segmenting %d images into %s%s.", len(images), writer.output_dir, there)


def announce_comparison(settings: Settings, data: SegmentationData, weights: Weights) -> None:
    """Say which volumes are evaluated, and warn where they may be those of training."""
    source = settings.dataset_dir or f"{settings.num_phantoms} phantoms"
    if weights.settings.get("data") != data.lists.data:
        logger.warning(
            "These are not the images or not the split of training: the test part may hold images that were trained "
            "on. For a figure on held-out images pass what training was given."
        )
    if not data.lists.test:
        logger.warning("There is no test part: the validation subjects, which chose the weights, are evaluated.")
    logger.info("Evaluating on the labelled images of %s (%s).", source, data.lists)
