"""What a run says first and last."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medical_diffusion import __version__
from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.reconstruction import ReconstructionEvaluation
from medical_diffusion.bundle.settings import Settings
from medical_diffusion.bundle.training_data import TrainingData
from medical_diffusion.bundle.weights import Weights
from medical_diffusion.data.phantoms.registry import phantom_kind
from medical_diffusion.errors import UserError
from medical_diffusion.files import check_writable, write_json
from medical_diffusion.precision import has_bfloat16_units
from medical_diffusion.synthesis import LatentSampler, SampleWriter, SeedDataset
from medical_diffusion.training.distributed import is_main_process

logger = logging.getLogger(__name__)

SHARP = 0.8
"""High-frequency energy of reconstructions by that of held-out volumes below which training says what would help."""

FEW_SUBJECTS = 50
"""Training subjects below which a run warns that samples may be copies of them."""

PROFILE_NOTES = {
    "paper": "The paper's configuration is the default. --profile quick is a run of minutes, to see all go through.",
    "quick": "Profile quick: small networks and few steps. Without it the paper's configuration is the default.",
}
PHANTOM_TITLES = {
    "brain_mri": "brain-MRI",
    "breast_mri": "breast-MRI",
    "chest_ct": "chest-CT",
    "fundus": "fundus",
    "histology": "histology",
    "knee_mri": "knee-MRI",
    "radiograph": "chest-radiograph",
    "shapes": "geometric",
}


def phantom_title(kind: str) -> str:
    """What phantoms of a kind are called in a sentence.

    Raises:
        UserError: no such kind.
    """
    phantom_kind(kind)
    return PHANTOM_TITLES[kind]


def announce_training(settings: Settings, folders: Folders, data: TrainingData) -> None:
    """First lines of a training run; checks the output folder and the data before any work."""
    folders.check_writable()
    size = " x ".join(map(str, settings.image_size))
    if settings.dataset_dir is None:
        logger.info(
            "No dataset_dir was given: training on %d procedural %s phantoms of %s voxels (simulated, no patients).",
            settings.num_phantoms,
            phantom_title(data.kind),
            size,
        )
        logger.info(
            "To train on your own %s: --dataset_dir DIR (then the paper's configuration is the default).",
            _noun(settings),
        )
    else:
        logger.info("Training on %s at %s voxels.", settings.dataset_dir, size)
        logger.info(PROFILE_NOTES[settings.profile])
    data.prepare()
    if data.class_names:
        shares = zip(data.class_names, data.class_frequencies, strict=True)
        logger.info("Classes: %s.", ", ".join(f"{name} ({100 * share:.0f} %)" for name, share in shares))
    logger.info("Intensity: %s.", describe_intensity(settings))
    if data.is_dark:
        logger.warning(
            "The first image uses less than a quarter of the range of its type (12-bit values in a 16-bit file?): "
            '--intensity window --window "[0, 4095]" or --intensity minmax would use the whole.'
        )
    subjects = len({item["subject"] for item in data.train})
    if settings.dataset_dir is not None and subjects < FEW_SUBJECTS:
        logger.warning(
            "Only %d training subject%s: samples may be copies of them. Before one is passed on, evaluate.json with "
            "--samples_dir, or medical_diffusion evaluate, looks for copies.",
            subjects,
            "" if subjects == 1 else "s",
        )
    if settings.perceptual == "none":
        logger.info(
            "Perceptual network: none (structural and spectral terms take its place; --perceptual lpips adds it)."
        )
    if settings.amp == "none" and has_bfloat16_units(settings.device):
        logger.info(
            "This processor has matrix units for bfloat16: --amp bfloat16 trains wide networks up to twice as fast."
        )
    logger.info("Writing to %s. The same command continues an interrupted run.", folders.root)


def _noun(settings: Settings) -> str:
    return "images" if settings.planar else "volumes"


def describe_intensity(settings: Settings) -> str:
    """The intensity mapping in words."""
    if settings.planar:
        source = {"stored": "range of the stored type", "window": f"window {settings.window} of stored values"}
        mapped = source.get(settings.intensity, f"per image by {settings.intensity}")
        return f"{mapped} mapped to [-1, 1]; samples are PNG files that use their whole range of greys"
    if settings.intensity == "window":
        low, high = settings.window
        return f"fixed window {low:g} to {high:g} HU mapped to [-1, 1]; samples come back in HU"
    return f"per volume by {settings.intensity.replace('_', ' ')} mapped to [-1, 1]; samples are relative, 0 to 1"


def intensity_limits(settings: Settings) -> tuple[float | None, float | None]:
    """Limits of the intensity mapping: the window in HU, the percentiles, or none for the volume's own range."""
    own: tuple[None, None] = (None, None)
    limits = {"window": settings.window, "percentile": settings.percentiles, "minmax": own, "stored": own}
    chosen = limits[settings.intensity]
    if len(chosen) != 2:
        raise UserError(f"--{settings.intensity} limits must be two numbers (low, high)", chosen)
    return chosen[0], chosen[1]


def report_reconstruction(
    folders: Folders, evaluation: ReconstructionEvaluation, external: str | None = None
) -> dict[str, Any] | None:
    """Write and show the reconstruction figures of the held-out volumes; ``external`` names another's autoencoder."""
    if not is_main_process():
        return None
    report = evaluation.run()
    name = "reconstruction_external.json" if external else "reconstruction.json"
    path = write_json(folders.reports / name, {**report, "autoencoder": external} if external else report)
    logger.info("Reconstruction of %d held-out items (mean ± SD; trilinear resampling beside it):", report["volumes"])
    for name, entry in report["reconstruction"].items():
        other = report["trilinear_baseline"].get(name)
        beside = f"   (trilinear {_figure(other)})" if other else ""
        logger.info("  %-20s %s%s", name, _figure(entry), beside)
    for name, reason in report.get("absent", {}).items():
        logger.info("  %-20s not measured: %s", name, reason)
    if codebook := report.get("codebook"):
        logger.info("  codes used %.0f %%, perplexity %.0f", 100 * codebook["codes_used"], codebook["perplexity"])
    logger.info("  written to %s", path)
    sharpness = report["reconstruction"].get("high_frequency_ratio")
    if sharpness and sharpness["mean"] < SHARP and not external:
        logger.info(
            "  Reconstructions keep %.0f %% of the held-out high-frequency energy, and samples will hardly keep more. "
            "A smaller --compression keeps most, then a higher --spectral_weight or more --autoencoder_steps.",
            100 * sharpness["mean"],
        )
    return report


def _figure(entry: dict[str, float | None]) -> str:
    spread = "" if entry["std"] is None else f" ± {entry['std']:.2g}"
    return f"{entry['mean']:.4g}{spread}"


def announce_written(folders: Folders) -> None:
    """Last lines of a training run: what was written."""
    list_written(
        {
            folders.models / "autoencoder.pt": "weights of stage 1",
            folders.models / "model.pt": "weights of stage 2 (moving average)",
            folders.logs: f"TensorBoard logs: tensorboard --logdir {folders.logs}",
            folders.reports / "reconstruction.json": "reconstruction metrics on held-out volumes",
            folders.preview: "real, reconstructed and synthetic examples, to look at",
        }
    )


def list_written(meanings: Mapping[Path, str]) -> None:
    """Names of the files that exist, each with what it is; the first process speaks."""
    if not is_main_process():
        return
    logger.info("Written:")
    for path, meaning in meanings.items():
        if path.exists():
            logger.info("  %s   %s", path, meaning)


def samples_folder(settings: Settings, folders: Folders) -> Path:
    """Folder of the samples, checked to be writable."""
    return check_writable(settings.output_dir or folders.samples)


def sample_provenance(settings: Settings, weights: Weights, sampler: Any, inferer: LatentSampler) -> dict[str, Any]:
    """What every sample of a run has in common."""
    import monai
    import torch

    return {
        "sampler": settings.sampler,
        "num_steps": inferer.num_steps or sampler.num_train_timesteps,
        "amp": settings.amp,
        "guidance_scale": inferer.guidance_scale,
        "intensity": settings.intensity,
        "window": settings.window if settings.intensity == "window" else None,
        "spacing_mm": weights.output_spacing,
        "orientation": None if settings.planar else settings.orientation,
        "weights_sha256": weights.hashes,
        "versions": {"medical_diffusion": __version__, "torch": torch.__version__, "monai": monai.__version__},
    }


def announce_sampling(settings: Settings, dataset: SeedDataset, writer: SampleWriter) -> None:
    """Say what will be drawn.

    Raises:
        UserError: the folder holds samples of these seeds that were made in another way.
    """
    skipped = settings.num_samples - len(dataset)
    for seed in sorted(set(range(settings.seed, settings.seed + settings.num_samples)) - set(dataset.seeds)):
        _compare_sidecar(writer, seed)
    logger.info(
        "Drawing %d of %d %s with %s, %d steps, into %s%s.",
        len(dataset),
        settings.num_samples,
        _noun(settings),
        settings.sampler,
        writer.provenance["num_steps"],
        writer.output_dir,
        f" ({skipped} are there already)" if skipped else "",
    )


def _compare_sidecar(writer: SampleWriter, seed: int) -> None:
    found = json.loads(writer.sidecar_path(seed).read_text(encoding="utf-8"))
    keys = ("sampler", "num_steps", "guidance_scale", "amp", "intensity", "window", "orientation", "weights_sha256")
    wanted = {key: writer.provenance[key] for key in keys}
    for key, value in {**wanted, "class_name": writer.class_labels.name_of(seed)}.items():
        if found.get(key) != value:
            raise UserError(
                "samples that are there already must have been made in the same way",
                f"{writer.image_path(seed)} with {key} {found.get(key)}, now {value}",
                "Choose another --output_dir, or delete the old samples",
            )


def announce_evaluation(settings: Settings, data: TrainingData, weights: Weights) -> None:
    """Say which volumes are evaluated, and warn where they may be those of training."""
    source = settings.dataset_dir or f"{settings.num_phantoms} phantoms"
    codec = (
        f"the autoencoder of {settings.external_autoencoder}" if settings.external_autoencoder else "the autoencoder"
    )
    if weights.split not in (None, data.lists.fingerprint):
        logger.warning(
            "These are not the images or not the split of training: the held-out part may hold images that were "
            "trained on. For a figure on held-out images pass what training was given (--dataset_dir, --datalist, "
            "--manifest, columns and fractions)."
        )
    logger.info("Evaluating %s on the held-out %s of %s (%s).", codec, _noun(settings), source, data.lists)
