"""The engine of both stages: a MONAI trainer that counts steps, resumes where it was and stops without losing work.

One engine epoch is the whole run of ``epoch_length`` steps. Every step's random numbers come from (seed, step, rank),
so a run that was killed and resumed takes the same path as one that was not.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from torch import Tensor

from medical_diffusion.data.loader import StepLoader
from medical_diffusion.errors import UserError
from medical_diffusion.training.checkpoint import Progress, StageCheckpoint, TrainableStep
from medical_diffusion.training.distributed import is_main_process

logger = logging.getLogger(__name__)

FINITE_CHECK_INTERVAL = 10
SHAPES = ("linear", "cosine")


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one step of one process."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)


def set_learning_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Scale the rates that the optimisers were made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


class StepTrainer(Trainer):
    """Runs a :class:`TrainableStep` over a :class:`StepLoader`.

    Args:
        device: where the step computes.
        train_data_loader: endless loader whose items hold ``image`` and, where the data have labels, ``class_label`` or
            the map ``label``.
        epoch_length: number of steps of the run.
        max_epochs: passes over ``epoch_length`` steps; the run's length is their product.
        checkpoint: files of the stage.
        checkpoint_interval: seconds between two resumable states.
        seed: of the random numbers of every step.
        augmentation: applied to each batch on the device.
        learning_rate_decay: share of the run, at its end, over which every learning rate falls to zero.
        learning_rate_warmup: share of the run, at its start, over which they rise linearly from zero.
        learning_rate_shape: how they fall: ``"linear"``, or ``"cosine"`` (half a period, Loshchilov and Hutter 2017).
        on_finish: called once with the step after the last one, before the final weights are written.
        patience: steps without a better validation figure after which the run ends; None runs to its end.
        train_handlers: MONAI or ignite handlers.

    Raises:
        UserError: another shape, or a warm-up outside [0, 1].
    """

    def __init__(
        self,
        device: str | torch.device,
        step: TrainableStep,
        train_data_loader: StepLoader,
        epoch_length: int,
        checkpoint: StageCheckpoint,
        max_epochs: int = 1,
        checkpoint_interval: float = 300.0,
        seed: int = 0,
        augmentation: Callable[[Tensor], Tensor] | None = None,
        learning_rate_decay: float = 0.0,
        learning_rate_warmup: float = 0.0,
        learning_rate_shape: str = "linear",
        on_finish: Callable[[], None] | None = None,
        patience: int | None = None,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            decollate=False,
        )
        self.step, self.checkpoint, self.checkpoint_interval = step, checkpoint, checkpoint_interval
        self.augmentation, self.on_finish = augmentation, on_finish
        if learning_rate_shape not in SHAPES:
            raise UserError(f"learning_rate_shape must be one of {', '.join(SHAPES)}", learning_rate_shape)
        if not 0.0 <= learning_rate_warmup <= 1.0:
            raise UserError("learning_rate_warmup must lie in [0, 1]", learning_rate_warmup)
        self.learning_rate_decay, self.learning_rate_warmup = learning_rate_decay, learning_rate_warmup
        self.learning_rate_shape = learning_rate_shape
        self.patience = patience
        self.state.seed = seed
        self.progress = Progress()
        self._signal: int | None = None
        self._saved_at = 0.0
        self._handlers = list(train_handlers or [])

    @property
    def total_steps(self) -> int:
        return self.state.epoch_length * self.state.max_epochs

    def run(self) -> None:
        """Train what is missing: everything, the rest of an interrupted run, or nothing.

        Raises:
            UserError: the loss is not finite.
            SystemExit: with status 128 + signal after Ctrl-C or SIGTERM, once the state is saved.
        """
        self.progress = self.checkpoint.restore(self.step)
        done, total, stage = self.progress.step, self.total_steps, self.checkpoint.stage
        if done >= total or self._has_lost_patience():
            logger.info("%s: finished before (%d steps) and unchanged, skipped", stage, done)
            if not self.checkpoint.has_final_weights():  # interrupted in a longer run
                self._finish()
            return
        if done:
            logger.info("%s: continuing at step %d of %d", stage, done, total)
        self.add_event_handler(Events.ITERATION_COMPLETED, _check_loss)
        self._register_handlers(self._handlers)
        if self.patience is not None:
            self.add_event_handler(Events.ITERATION_COMPLETED, _stop_early)
        self.add_event_handler(Events.ITERATION_COMPLETED, _save_when_due)
        self.data_loader.start_at(done)
        self.state.iteration, self.state.epoch = done, done // self.state.epoch_length
        self._saved_at = time.monotonic()
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            super().run()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._signal is not None:
            self.checkpoint.save(self.step, self.progress)
            logger.warning(
                "%s: stopped at step %d of %d; the same command continues there", stage, self.progress.step, total
            )
            raise SystemExit(128 + self._signal)
        self._finish()
        last = ", ".join(f"{name} {float(value):.4g}" for name, value in self.state.output[0].items())
        logger.info("%s: finished at step %d: %s", stage, self.progress.step, last)

    def _finish(self) -> None:
        if self.on_finish is not None:
            self.on_finish()
        self.checkpoint.finish(self.step, self.progress)

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """One step; its scalars in a list of one, as MONAI's engines give their decollated outputs to handlers."""
        index = engine.state.iteration - 1
        seed_step(engine.state.seed, index, engine.state.rank)
        set_learning_rates(self.step.optimizers(), self.learning_rate_factor(index))
        images = torch.as_tensor(batchdata["image"]).to(engine.state.device, non_blocking=True)
        images = images.contiguous(memory_format=torch.channels_last_3d)
        if self.augmentation is not None:
            images = self.augmentation(images)
        labels = batchdata.get("class_label", batchdata.get("label"))
        if labels is not None:
            labels = torch.as_tensor(labels).to(engine.state.device, non_blocking=True)
        output = self.step(images, index, labels)
        self.progress.step = engine.state.iteration  # ignite may stop between counting a step and running it
        return [output]

    def learning_rate_factor(self, index: int) -> float:
        """Factor of the learning rates at step ``index`` (from 0); resuming needs no state for it."""
        falling, rising = (share * self.total_steps for share in (self.learning_rate_decay, self.learning_rate_warmup))
        left = 1.0 if falling == 0 else min(1.0, (self.total_steps - index) / falling)
        factor = left if self.learning_rate_shape == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
        return factor if index >= rising else factor * (index + 1) / (rising + 1)

    def record_validation(self, figure: float) -> None:
        """Keep the weights if ``figure`` (lower is better) is the best so far."""
        if self.progress.best is None or figure < self.progress.best:
            self.progress.best, self.progress.best_step = figure, self.progress.step
            self.checkpoint.save_best(self.step, self.progress)

    def _has_lost_patience(self) -> bool:
        waited = self.progress.step - self.progress.best_step
        return self.patience is not None and self.progress.best is not None and waited >= self.patience

    def _on_signal(self, number: int, frame: object) -> None:
        self._signal = number
        self.terminate()


def _check_loss(engine: StepTrainer) -> None:
    """Runs before validation and saving, so that a broken state never replaces a good one."""
    step = engine.state.iteration
    if step % FINITE_CHECK_INTERVAL and step < engine.total_steps and engine.state.device.type != "cpu":
        return
    loss = float(engine.state.output[0]["loss"])
    if not math.isfinite(loss):
        raise UserError(
            f"the loss of stage '{engine.checkpoint.stage}' must stay finite",
            f"{loss} at step {step}",
            "The last checkpoint is kept. Try a lower learning rate, a longer discriminator warm-up or --amp false, "
            "and look for outliers in the data with: python -m medical_diffusion data verify",
        )


def _stop_early(engine: StepTrainer) -> None:
    if _agreed(engine._has_lost_patience(), engine.state.device) and engine.state.iteration < engine.total_steps:
        logger.info(
            "%s: no better figure since step %d, stopped early", engine.checkpoint.stage, engine.progress.best_step
        )
        engine.terminate()


def _save_when_due(engine: StepTrainer) -> None:
    due = _agreed(time.monotonic() - engine._saved_at >= engine.checkpoint_interval, engine.state.device)
    if due and engine.state.iteration < engine.total_steps and math.isfinite(float(engine.state.output[0]["loss"])):
        engine.checkpoint.save(engine.step, engine.progress)
        engine._saved_at = time.monotonic()


def _agreed(due: bool, device: torch.device) -> bool:
    """The main process's clock decides for all, so that all ranks check and save at the same step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return due
    flag = torch.tensor([int(due and is_main_process())], device=device)
    torch.distributed.broadcast(flag, 0)
    return bool(flag.item())
