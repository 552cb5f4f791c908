"""What a person sees of a run: a progress bar with losses, rate and time left; TensorBoard scalars and pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from medical_diffusion.training.distributed import is_main_process

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


def scalars(output: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers of a step, from the engine's output."""
    return {name: float(value) for name, value in output[0].items()}


class ProgressBar:
    """Shows losses, steps a second and the time left, on the main process only.

    Args:
        description: text before the bar.
        interval: seconds between two updates (reading a loss waits for the device).
    """

    def __init__(self, description: str, interval: float = 1.0) -> None:
        self.description, self.interval = description, interval
        self._bar: tqdm | None = None
        self._shown_at = 0.0

    def attach(self, engine: Engine) -> None:
        if is_main_process():
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
            engine.add_event_handler(Events.COMPLETED, self._close)
            engine.add_event_handler(Events.TERMINATE, self._close)
            engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Any) -> None:
        self._bar = tqdm(
            desc=self.description,
            total=engine.total_steps,
            initial=engine.state.iteration,
            unit="step",
            mininterval=self.interval,
            dynamic_ncols=True,
        )

    def _update(self, engine: Any) -> None:
        if self._bar is None:
            return
        last = engine.state.iteration == engine.total_steps
        if last or time.monotonic() - self._shown_at >= self.interval:
            shown = {
                k.removesuffix("_loss"): f"{v:.3g}" for k, v in scalars(engine.state.output).items() if "loss" in k
            }
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(engine.state.iteration - self._bar.n)
            self._shown_at = time.monotonic()

    def _close(self, engine: Any) -> None:
        if self._bar is not None:
            self._bar.update(engine.state.iteration - self._bar.n)
            self._bar.close()
            self._bar = None

    def _fail(self, engine: Any, error: Exception) -> None:
        self._close(engine)
        raise error


class TensorBoardLogs:
    """Writes the scalars of the step and, through :class:`Validation`, held-out figures and pictures.

    Args:
        log_dir: folder of the event files.
        interval: steps between two points.
    """

    def __init__(self, log_dir: str | Path, interval: int = 10) -> None:
        self.log_dir, self.interval = Path(log_dir), interval
        self._writer: SummaryWriter | None = None

    def attach(self, engine: Engine) -> None:
        if is_main_process():
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self._write)
            for event in (Events.COMPLETED, Events.TERMINATE):
                engine.add_event_handler(event, self._flush)

    @property
    def writer(self) -> SummaryWriter:
        """The event file, opened at first use."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.log_dir))
        return self._writer

    def _write(self, engine: Any) -> None:
        for name, value in scalars(engine.state.output).items():
            self.writer.add_scalar(f"train/{name}", value, engine.state.iteration)

    def _flush(self, engine: Any) -> None:
        if self._writer is not None:
            self._writer.flush()


class Validation:
    """Evaluates on held-out data during training, logs the figures and keeps the best weights.

    Args:
        interval: steps between two evaluations; the last step is always one.
        evaluate: returns held-out figures by name; called on every process.
        key: the figure that decides which weights are best (lower is better).
        start: fraction of the run before which no weights count as best (a VQ-GAN without its discriminator
            reconstructs closely but blurs).
        logs: where the figures go.
        picture: returns an RGB picture (H, W, 3) of held-out data for the logs.
    """

    def __init__(
        self,
        interval: int,
        evaluate: Callable[[], dict[str, float]],
        key: str,
        start: float = 0.0,
        logs: TensorBoardLogs | None = None,
        picture: Callable[[], np.ndarray] | None = None,
    ) -> None:
        self.interval, self.evaluate, self.key, self.start = interval, evaluate, key, start
        self.logs, self.picture = logs, picture

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._maybe_run)

    def _maybe_run(self, engine: Any) -> None:
        step, total = engine.state.iteration, engine.total_steps
        if step % self.interval and step != total:
            return
        state = torch.random.get_rng_state()
        figures = self.evaluate()
        torch.random.set_rng_state(state)
        if not is_main_process():
            return
        listed = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        logger.info("%s step %d of %d, held out: %s", engine.checkpoint.stage, step, total, listed)
        if self.logs is not None:
            for name, value in figures.items():
                self.logs.writer.add_scalar(f"validation/{name}", value, step)
            if self.picture is not None:
                self.logs.writer.add_image("validation/picture", self.picture(), step, dataformats="HWC")
        if step >= self.start * total:
            engine.record_validation(figures[self.key])
