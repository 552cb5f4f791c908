"""What a pre-training says first and last, its held-out figures and its picture."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.messages import list_written, phantom_title
from medical_diffusion.bundle.pretraining.data import SEEN, PretrainingData
from medical_diffusion.bundle.settings import Settings
from medical_diffusion.files import check_writable, write_json
from medical_diffusion.pictures import picture_of, volume_grid, write_png
from medical_diffusion.training import PretrainStep
from medical_diffusion.training.distributed import is_main_process

logger = logging.getLogger(__name__)

FINETUNING_SPLIT = "--validation_fraction 0.1 --test_fraction 0.2"
"""The defaults of ``swin_unetr_finetune``."""


def announce_pretraining(settings: Settings, folders: Folders, data: PretrainingData) -> None:
    """First lines of a run; checks the output folder and every volume before any work."""
    folders.check_writable()
    size = " x ".join(map(str, settings.image_size))
    if data.source is not None:
        logger.info(
            "Pre-training on fresh samples of %s (%s), %s voxels; each is used in %d steps.",
            settings.source_bundle,
            settings.source_sampler,
            size,
            settings.source_repeats,
        )
    elif settings.dataset_dir is None:
        logger.info(
            "No dataset_dir was given: pre-training on %d procedural %s phantoms of %s voxels (no patients).",
            settings.num_phantoms,
            phantom_title(data.kind),
            size,
        )
        logger.info("To use your own volumes or samples: --dataset_dir DIR, or --source_bundle BUNDLE.")
    else:
        logger.info("Pre-training on %s at %s voxels.", settings.dataset_dir, size)
        if is_main_process():  # the others wait until it has checked the volumes
            _warn_of_no_test_part(settings, data)
    data.prepare()
    if data.holds_samples or (data.source is not None and SEEN not in data.source.settings):
        logger.warning(
            "WARNING: these samples do not say whom their diffusion model was trained on: a fine-tuning can not tell "
            "whether its test subjects are among them. --source_bundle with weights of this version says it."
        )
    if data.source is None:
        logger.info("%d volumes to train on, %d held out.", len(data.train), len(data.validation))
    logger.info("Writing to %s. The same command continues an interrupted run.", folders.root)


def _warn_of_no_test_part(settings: Settings, data: PretrainingData) -> None:
    if data.lists.test or settings.held_out is not None or data.holds_samples:
        return
    logger.warning(
        "WARNING: no subject is held out for tests: these subjects can not be test subjects of a fine-tuning. To keep "
        "some back: %s, or --held_out FILE.",
        FINETUNING_SPLIT,
    )


class PretextEvaluation:
    """Held-out figures of the pretext task with fixed masks.

    Args:
        step: of the pre-training.
        dataset: held-out volumes under ``image`` by index.
        device: where to compute.
        count: volumes at most.
        seed: of the masks.
    """

    def __init__(
        self, step: PretrainStep, dataset: Dataset, device: torch.device, count: int = 16, seed: int = 0
    ) -> None:
        self.step, self.dataset, self.device, self.count, self.seed = step, dataset, device, count, seed

    def __call__(self) -> dict[str, float]:
        """Means by name, see :meth:`PretrainStep.validate`."""
        count = min(self.count, len(self.dataset))  # type: ignore[arg-type]
        figures = [self.step.validate(self._image(n), self.seed + n) for n in range(count)]
        return {name: sum(f[name] for f in figures) / count for name in figures[0]}

    @torch.no_grad()
    def rows(self, count: int) -> list[tuple[str, list[Any]]]:
        """Pictures of true volumes, of what the network saw of them, and of what it made of that."""
        self.step.network.eval()
        true: list[Any] = []
        seen: list[Any] = []
        made: list[Any] = []
        for n in range(min(count, len(self.dataset))):  # type: ignore[arg-type]
            image = self._image(n)
            hidden, mask = self.step.draw(image, self.seed + n)
            answer = torch.where(mask, self.step.reconstruct(hidden), image)
            for pictures, tensor in ((true, image), (seen, hidden), (made, answer)):
                pictures.append(picture_of(tensor[0]))
        share = round(100 * self.step.objective.mask_ratio)
        return [
            (f"true, held out ({len(true)})", true),
            (f"masked, {share} % in blocks of {' x '.join(map(str, self.step.block))}", seen),
            ("reconstructed where masked", made),
        ]

    def _image(self, n: int) -> torch.Tensor:
        return torch.as_tensor(self.dataset[n]["image"])[None].to(self.device)


def write_pretext_picture(path: Path, evaluation: PretextEvaluation, data: PretrainingData, count: int) -> Path | None:
    """True, masked and reconstructed held-out volumes in one picture."""
    if not is_main_process():
        return None
    return write_png(path, volume_grid(evaluation.rows(count), (-1.0, 1.0), data.output_spacing))


def report_pretraining(folders: Folders, evaluation: PretextEvaluation, settings: Settings) -> dict[str, Any] | None:
    """Write and show the held-out figures of the final weights."""
    if not is_main_process():
        return None
    figures = evaluation()
    report = {"objective": settings.objective, "mask_ratio": evaluation.step.objective.mask_ratio, **figures}
    write_json(folders.reports / "pretraining.json", report)
    logger.info(
        "Held out: mean absolute error of hidden voxels %.4f; filling them with the mean of the others %.4f.",
        figures["hidden_error"],
        figures["mean_fill_error"],
    )
    return report


def announce_pretrained(folders: Folders) -> None:
    """Last lines of a run: what was written."""
    list_written(
        {
            folders.models / "model.pt": "weights of encoder and decoder, for --pretrained of swin_unetr_finetune",
            folders.logs: f"TensorBoard logs: tensorboard --logdir {folders.logs}",
            folders.reports / "pretraining.json": "held-out figures of the pretext task",
            folders.preview: "true, masked and reconstructed volumes, to look at",
        }
    )


def pretext_output(settings: Settings, folders: Folders) -> Path:
    """File of the picture that inference draws; its folder is checked to be writable."""
    return check_writable(settings.output_dir or folders.reports) / "pretext.png"
