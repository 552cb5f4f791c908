"""Memorisation in a report: the threshold above which a sample is a copy, each generator's copy rate, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.copies import CopySearch
from medical_diffusion.evaluation.copy_rate import FEWEST_STRANGERS, Calibration, CopyRate, calibrate, copy_rate
from medical_diffusion.evaluation.report.figures import Figure, absent, figure
from medical_diffusion.evaluation.report.kept import NOTHING_KEPT, KeptFigures

NO_TRAINING_IMAGES = "no training images were given (--train)"


class CopyFigures:
    """Copies among the samples of generators.

    Args:
        training: images (C, H, W, D) that the generators were trained on; None where they are not known.
        held_out: real images that are no training images; with fewer than ten, training images are compared with one
            another instead.
        search: gives the search over ``training``.
        kept: figures of earlier runs, of the sets "real", "train" and the generators.
        seed: of what is drawn.

    Attributes:
        rates: copy rate of each generator, by name.
    """

    def __init__(
        self,
        training: Sequence[Tensor] | None,
        held_out: Sequence[Tensor],
        search: Callable[[], CopySearch],
        kept: KeptFigures = NOTHING_KEPT,
        seed: int = 0,
    ) -> None:
        self._training, self._held_out, self._search = training, held_out, search
        self._kept, self._seed = kept, seed
        self.rates: dict[str, CopyRate] = {}

    @cached_property
    def calibration(self) -> Calibration | None:
        """Of the threshold; None where there is none."""
        return self._found[0]

    @cached_property
    def _found(self) -> tuple[Calibration | None, str]:
        if self._training is None:
            return None, NO_TRAINING_IMAGES
        try:
            return self._kept("threshold of copies", ["real", "train"], self._calibrated), ""
        except UserError as error:
            return None, str(error)

    def _calibrated(self) -> Calibration:
        strangers = self._held_out if len(self._held_out) >= FEWEST_STRANGERS else None
        return calibrate(self._search(), self._training or [], strangers, self._seed)

    def summary(self) -> dict[str, Any]:
        """How the threshold was set and what it does, or the ``reason`` why there is none; for JSON."""
        if self.calibration is None:
            return {"reason": self._found[1]}
        found = self.calibration
        low, high = found.false_alarm_interval
        rate = found.false_alarms / found.strangers
        return {
            "training_images": len(self._training or []),
            "threshold": found.threshold,
            "false_alarm_rate_of_threshold": found.false_alarm_rate,
            "false_alarms": figure(rate, low, high, n=found.strangers, seed=self._seed),
            "strangers": found.source,
            "sensitivity_to_planted_copies": found.sensitivity,
            "auroc_planted_copies": found.auroc,
        }

    def of(self, name: str, samples: Sequence[Tensor]) -> tuple[Figure, dict[str, Any]]:
        """The copy rate of a generator; and its ``verdict`` in a sentence, with the number ``flagged``."""
        if self.calibration is None:
            return absent(self._found[1]), {"verdict": f"Memorisation was not examined: {self._found[1]}"}
        calibration = self.calibration
        copies = self._kept("copies", [name, "real", "train"], lambda: copy_rate(samples, self._search(), calibration))
        self.rates[name] = copies
        flagged, count = int(copies.flagged.sum()), len(copies.flagged)
        verdict = (
            f"{flagged} of {count} samples are nearer to a training image than "
            f"{100 - 100 * calibration.false_alarm_rate:g} % of strangers are: copy rate {100 * copies.rate:.2f} % "
            f"(95 % interval {100 * copies.low:.2f} to {100 * copies.high:.2f} %)."
        )
        entry = figure(copies.rate, copies.low, copies.high, n=count, seed=self._seed, flagged=flagged)
        return entry, {"flagged": flagged, "verdict": verdict}
