"""Checkpoints of one training stage, and what a run finds when it starts: nothing, a part, or a finished stage.

``models/<stage>.pt``       final weights with the settings and the fingerprint that they were trained with
``models/<stage>_last.pt``  all that resuming needs: networks, optimisers, averages, scaler, step
``models/<stage>_best.pt``  weights at the best validation figure
A fingerprint of data, preprocessing and configuration decides: the same one resumes, skips or extends; another one
moves the old files aside and says so.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from medical_diffusion.errors import UserError
from medical_diffusion.files import load_tensors, save_tensors
from medical_diffusion.training.distributed import is_main_process

logger = logging.getLogger(__name__)


class TrainableStep(Protocol):
    """What a stage trains: called once a step, with states to save."""

    def __call__(self, batch: Tensor, step: int, labels: Tensor | None) -> dict[str, Tensor]: ...

    def optimizers(self) -> list[Optimizer]: ...

    def weights(self) -> dict[str, Tensor]: ...

    def load_weights(self, weights: dict[str, Tensor]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """Where a stage stands: ``step`` steps done; ``best`` validation figure so far (None before the first), which was
    reached at ``best_step``."""

    step: int = 0
    best: float | None = None
    best_step: int = 0


class StageCheckpoint:
    """Reads and writes the files of one stage.

    Args:
        models_dir: the bundle's ``models`` folder.
        stage: ``autoencoder`` or ``model``: the files' name.
        fingerprint: hash of all that shapes the result except the number of steps.
        settings: option values stored with the weights, plain values only.
        keep_best: the final weights are those of the best validation figure instead of the last step's.
    """

    def __init__(
        self,
        models_dir: str | Path,
        stage: str,
        fingerprint: str,
        settings: dict[str, Any],
        keep_best: bool = False,
    ) -> None:
        self.stage, self.fingerprint, self.settings, self.keep_best = stage, fingerprint, settings, keep_best
        folder = Path(models_dir)
        self.weights_path = folder / f"{stage}.pt"
        self.last_path = folder / f"{stage}_last.pt"
        self.best_path = folder / f"{stage}_best.pt"

    def restore(self, step: TrainableStep) -> Progress:
        """Load what an earlier run of the same configuration left into ``step``; move other runs' files aside."""
        if self._belongs(self.last_path):
            state = load_tensors(self.last_path)
            step.load_state_dict(state["state"])
            return _progress(state)
        if self._belongs(self.weights_path):
            state = load_tensors(self.weights_path)
            step.load_weights(state["model"])
            logger.info("%s: weights found without their optimiser's state, which starts afresh", self.stage)
            return _progress(state)
        self._move_aside()
        return Progress()

    def has_final_weights(self) -> bool:
        """Whether the final weights of this configuration are there."""
        return self._belongs(self.weights_path)

    def peek(self) -> Progress | None:
        """Progress of an earlier run of the same configuration, if there is one."""
        for path in (self.last_path, self.weights_path):
            if self._belongs(path):
                state = load_tensors(path)
                return _progress(state)
        return None

    def save(self, step: TrainableStep, progress: Progress) -> None:
        """Write the resumable state."""
        if is_main_process():
            content = {"state": step.state_dict(), **self._header(progress)}
            save_tensors(self.last_path, content)

    def save_best(self, step: TrainableStep, progress: Progress) -> None:
        """Write the weights of the best validation figure so far."""
        if is_main_process():
            save_tensors(self.best_path, {"model": step.weights(), **self._header(progress)})

    def finish(self, step: TrainableStep, progress: Progress) -> Path:
        """Write the final weights (and the state, so that more steps can extend the run)."""
        self.save(step, progress)
        if is_main_process():
            keeps_best = self.keep_best and self._belongs(self.best_path)
            weights = load_tensors(self.best_path)["model"] if keeps_best else step.weights()
            save_tensors(self.weights_path, {"model": weights, **self._header(progress)})
        return self.weights_path

    def _header(self, progress: Progress) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "step": progress.step,
            "best": progress.best,
            "best_step": progress.best_step,
        }

    def _belongs(self, path: Path) -> bool:
        if not path.is_file():
            return False
        state = load_tensors(path)
        if state.get("stage") != self.stage:
            raise UserError(
                f"{path.name} must hold a checkpoint of the stage '{self.stage}'",
                f"{path} ({state.get('stage')})",
                "Move it away and run the same command again",
            )
        return state.get("fingerprint") == self.fingerprint

    def _move_aside(self) -> None:
        found = [p for p in (self.weights_path, self.last_path, self.best_path) if p.is_file()]
        if not found or not is_main_process():
            return
        folder = self.weights_path.parent / f"{self.stage}_before_{time.strftime('%Y%m%d_%H%M%S')}"
        folder.mkdir()
        for path in found:
            path.rename(folder / path.name)
        logger.warning(
            "%s: the checkpoints found were trained on other data or with another configuration; moved to %s",
            self.stage,
            folder,
        )


def _progress(state: dict[str, Any]) -> Progress:
    return Progress(int(state["step"]), state["best"], int(state.get("best_step", 0)))
