"""Samples of a trained run by one sampler and number of steps, drawn by the bundle's ``inference.json`` and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import nibabel
import torch
from ignite.engine import Engine, Events

from medical_diffusion.data.image_scaling import PERCENTILES
from medical_diffusion.errors import UserError
from medical_diffusion.studies.workflows import free_memory, open_workflow, plain_errors

UNKNOWN_TO_STUDY = ("foreground_crop", "halves", "histogram_standardization")
"""Options of preprocessing that the study does not carry out on real images."""


@dataclass(frozen=True)
class SampleFormat:
    """What a run's samples are like, from the settings that its weights were trained with.

    Attributes:
        planar: images (depth 1).
        channels: 1 or 3.
        image_size: (H, W, D); of volumes along right, front and top.
        crop_size: that training cut or padded volumes to before resizing, in the same order; None for none.
        intensity, window: how volumes became [-1, 1].
        timesteps: the most steps that a sampler can take.
        spacing: voxel size that training resampled volumes to, in millimetres along right, front and top; None where
            each kept its own, and for images.
    """

    planar: bool
    channels: int
    image_size: tuple[int, ...]
    crop_size: tuple[int, ...] | None
    intensity: str
    window: tuple[float, float]
    timesteps: int
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Drawn:
    """One batch of samples: how many, in how many seconds, and on what."""

    samples: int
    seconds: float
    device: str


class SampleRunner(Protocol):
    """What a study needs of a trained model."""

    def prepare(self, options: Mapping[str, Any]) -> SampleFormat:
        """Load the weights and check the options.

        Raises:
            UserError: what inference with these options would refuse; a run whose real images need other preparation
                than crop, resize and an intensity map.
        """
        ...

    def draw(self, options: Mapping[str, Any], drawn: Callable[[Drawn], None]) -> None:
        """Write the samples that are missing in ``options["output_dir"]``; ``drawn`` is called after every batch."""
        ...


class BundleSampler:
    """Draws with a bundle, in this process.

    Args:
        bundle: folder with ``configs/inference.json``.

    Raises:
        UserError: it has none, or none with samplers.
    """

    def __init__(self, bundle: str | Path) -> None:
        self.bundle = Path(bundle)
        path = self.bundle / "configs" / "inference.json"
        if not path.is_file() or '"num_steps"' not in path.read_text(encoding="utf-8"):
            raise UserError("a study of samplers needs a bundle of a diffusion model", self.bundle.name)

    def prepare(self, options: Mapping[str, Any]) -> SampleFormat:
        """Initialise the inference, which loads the weights, and leave it at that."""
        settings = open_workflow(self.bundle, "inference", "infer", options).parser.get_parsed_content("settings")
        free_memory()
        check_plain(settings)
        low, high = settings.window
        return SampleFormat(
            settings.planar,
            settings.channels,
            _along_ras(settings.image_size, settings),
            None if settings.crop_size is None else _along_ras(settings.crop_size, settings),
            settings.intensity,
            (float(low), float(high)),
            settings.timesteps,
            None if settings.planar or settings.spacing is None else _along_ras(settings.spacing, settings),
        )

    def draw(self, options: Mapping[str, Any], drawn: Callable[[Drawn], None]) -> None:
        """Draw, decode and write batch by batch; loading the weights is not timed."""
        workflow = open_workflow(self.bundle, "inference", "infer", options)
        evaluator = workflow.parser.get_parsed_content("evaluator")
        device = str(evaluator.state.device)
        device += f" with {torch.get_num_threads()} threads" if device == "cpu" else ""
        begun = 0.0

        def begin(_: Engine) -> None:
            nonlocal begun
            begun = time.perf_counter()

        def end(engine: Engine) -> None:
            drawn(Drawn(len(engine.state.batch), time.perf_counter() - begun, device))

        evaluator.add_event_handler(Events.ITERATION_STARTED, begin)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, end)
        with plain_errors():
            workflow.run()
            workflow.finalize()
        del workflow, evaluator
        free_memory()


def check_plain(settings: Any) -> None:
    """Refuse a run whose preprocessing does more than the study does to real images.

    Args:
        settings: of the run.

    Raises:
        UserError: it cropped to the foreground, cut halves, standardised histograms, or took its own percentiles.
    """
    done = [name for name in UNKNOWN_TO_STUDY if settings.get(name) is not None and settings.get(name) is not False]
    percentiles = tuple(settings.get("percentiles") or PERCENTILES)
    if settings.intensity == "percentile" and percentiles != PERCENTILES:
        done.append(f"percentiles {percentiles}")
    if done:
        remedy = (
            "Measure samples of such a run with evaluate.json and --samples_dir, which prepares real images like it"
        )
        raise UserError("the study can not prepare real images as this run did", ", ".join(done), remedy)


def _along_ras(size: Any, settings: Any) -> tuple[Any, ...]:
    """A size along the axes of the run's orientation, along right, front and top."""
    if settings.planar:
        return tuple(size)
    axes = nibabel.orientations.axcodes2ornt(settings.orientation)[:, 0].astype(int).tolist()
    return tuple(size[axes.index(world)] for world in range(3))
