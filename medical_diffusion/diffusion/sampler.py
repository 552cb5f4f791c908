"""Base of the samplers: schedule tables, training targets and the loop; a subclass writes one step.

A sampler walks from noise to data over a falling sub-sequence of the T training timesteps,
``x_{t_1} → x_{t_2} → ... → x_{t_N} → x_0``, where ``a² = abar_t`` is the share of the signal and ``s² = 1 - abar_t``
that of the noise (``a = 1, s = 0`` at the end). Each step asks the network once, turns its output into an estimate of
x_0, clips it if wished, and hands it to the subclass, which moves from (a, s) of one timestep to that of the next. All
coefficients follow from the sub-sequence itself, so a step is right whatever its length.

It is a MONAI ``Scheduler``, so that ``DiffusionInferer`` and ``LatentDiffusionInferer`` take it. Unlike MONAI's its
tables are never cast: ``sampler.to(torch.bfloat16)`` moves nothing but devices, and half-precision samples are stepped
in float32.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from medical_diffusion.diffusion.noise import Generators
from medical_diffusion.diffusion.prediction import check_prediction_type, predicted_x0, prediction_target
from medical_diffusion.diffusion.schedules import schedule_betas
from medical_diffusion.diffusion.spacing import check_spacing, spaced_timesteps
from medical_diffusion.errors import UserError


class Sampler(Scheduler):
    """Noise schedule, training targets and sampling loop.

    Args:
        num_train_timesteps: T, the number of timesteps that the network is trained on.
        schedule: ``cosine``, ``linear`` or ``scaled_linear``.
        prediction_type: what the network predicts: ``epsilon`` (the noise), ``sample`` (x_0) or ``v_prediction``.
        num_inference_steps: N, the number of steps to sample with; all T by default.
        clip_range: limits of the estimate of x_0 in each step, as (low, high) or as r for (-r, r); None for no limits.
        timestep_spacing: which timesteps are visited where N < T: ``uniform``, ``quadratic`` or ``log_snr``.
        beta_range: first and last beta of a linear schedule; None takes the schedule's own.
        schedule_options: further numbers for the schedule, for example ``s``.

    Attributes:
        timesteps: the timesteps to visit, int64, falling.
        betas, alphas, alphas_cumprod: schedule tables, float32, ``(T,)``.

    Raises:
        UserError: unknown schedule, prediction type or spacing; N not in [1, T]; noise prediction with no signal left.
    """

    betas: Tensor
    alphas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    default_spacing = "uniform"

    def __init__(
        self,
        num_train_timesteps: int = 300,
        schedule: str = "cosine",
        prediction_type: str = "epsilon",
        num_inference_steps: int | None = None,
        clip_range: float | Sequence[float] | None = None,
        timestep_spacing: str | None = None,
        beta_range: Sequence[float] | None = None,
        **schedule_options: float,
    ) -> None:
        # not Scheduler.__init__: it would build MONAI's float32 tables as plain attributes
        nn.Module.__init__(self)
        if beta_range is not None:
            schedule_options |= {"beta_start": beta_range[0], "beta_end": beta_range[1]}
        betas = schedule_betas(schedule, num_train_timesteps, **schedule_options)
        self.num_train_timesteps = int(num_train_timesteps)
        self.prediction_type = check_prediction_type(prediction_type)
        self.timestep_spacing = check_spacing(timestep_spacing or self.default_spacing)
        self.clip_range = _limits(clip_range)

        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if alphas_cumprod[-1] == 0 and prediction_type == "epsilon":
            raise UserError(
                "a network that predicts the noise needs a trace of signal at the last timestep",
                f"schedule {schedule} with {schedule_options}",
                "Use prediction_type v_prediction or sample, or a smaller beta at the end",
            )
        # Python numbers in double precision for the steps: no cancellation in 1 - abar, no device to wait for.
        self._signal: list[float] = alphas_cumprod.sqrt().tolist()
        self._noise: list[float] = (1 - alphas_cumprod).sqrt().tolist()
        self._log_snr = [
            math.log(a / s) if a > 0 else -math.inf for a, s in zip(self._signal, self._noise, strict=True)
        ]
        tables = {
            "betas": betas,
            "alphas": 1 - betas,
            "alphas_cumprod": alphas_cumprod,
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
        }
        for name, table in tables.items():
            # configuration, not state: a checkpoint must not carry another schedule in
            self.register_buffer(name, table.float(), persistent=False)
        self.set_timesteps(self.num_train_timesteps if num_inference_steps is None else num_inference_steps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Sampler:
        """Follows the module to another device and keeps the precision of the tables."""
        device = fn(torch.empty(0, device=self.betas.device)).device
        for name, table in self._buffers.items():
            self._buffers[name] = None if table is None else table.to(device)
        return self

    @property
    def log_snr(self) -> Tensor:
        """``lambda_t = log(a_t / s_t)`` of each training timestep, float64, ``(T,)``, falling."""
        return torch.tensor(self._log_snr, dtype=torch.float64)

    # ---- training -------------------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``x_t = a x_0 + s noise``.

        Args:
            original_samples: x_0, ``(B, ...)``.
            noise: standard normal, of the same shape.
            timesteps: whole numbers in [0, T), ``(B,)``.

        Returns:
            x_t, like ``original_samples``; computed in float32 at least.
        """
        a, s = self._scales(original_samples, timesteps)
        return (a * original_samples + s * noise).to(original_samples.dtype)

    def training_target(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is to return for ``add_noise(original_samples, noise, timesteps)``, like the samples."""
        a, s = self._scales(original_samples, timesteps)
        return prediction_target(self.prediction_type, original_samples, noise, a, s).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``v = a noise - s x_0`` (MONAI's name for the target of ``v_prediction``)."""
        a, s = self._scales(sample, timesteps)
        return prediction_target("v_prediction", sample, noise, a, s).to(sample.dtype)

    def _scales(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """a and s of each sample, float32, broadcasting against ``like``."""
        index = timesteps.to(device=self.betas.device, dtype=torch.long)
        shape = (-1,) + (1,) * (like.ndim - 1)
        a, s = (table[index].reshape(shape) for table in (self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod))
        return a.to(like.device), s.to(like.device)

    # ---- sampling -------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Chooses the timesteps to visit.

        Args:
            num_inference_steps: N, from 1 to T, spaced by ``timestep_spacing``.
            device: of the attribute ``timesteps``.
            timesteps: an own falling sequence instead of N, for example to start from a half-noised volume.

        Raises:
            UserError: N outside [1, T]; both or neither given; timesteps not falling or outside [0, T).
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise UserError("give either num_inference_steps or timesteps", (num_inference_steps, timesteps))
        if timesteps is not None:
            chosen = [int(t) for t in timesteps]
            falling = all(a > b for a, b in pairwise(chosen))
            if not chosen or not falling or not 0 <= chosen[-1] <= chosen[0] < self.num_train_timesteps:
                raise UserError(f"timesteps must fall and lie in [0, {self.num_train_timesteps})", chosen)
        else:
            chosen = self._spaced(num_inference_steps)
        self.num_inference_steps = len(chosen)
        self.timesteps = torch.tensor(chosen, dtype=torch.long, device=device)
        self._index = {t: i for i, t in enumerate(chosen)}
        # a, s and lambda along the way, with the clean end
        self._a = [self._signal[t] for t in chosen] + [1.0]
        self._s = [self._noise[t] for t in chosen] + [0.0]
        self._lambda = [self._log_snr[t] for t in chosen] + [math.inf]

    def _spaced(self, num_steps: int | None) -> list[int]:
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
            raise UserError("the number of sampling steps must be a positive whole number", num_steps)
        if num_steps > self.num_train_timesteps:
            raise UserError(
                "the number of sampling steps must not exceed the number of training timesteps "
                f"({self.num_train_timesteps})",
                num_steps,
                f"Use at most {self.num_train_timesteps} steps",
            )
        return spaced_timesteps(self.timestep_spacing, num_steps, self._log_snr)

    @abstractmethod
    def _advance(self, x0: Tensor, x_t: Tensor, index: int, generators: Generators) -> Tensor:
        """From step ``index`` to the next one.

        Args:
            x0: estimate of x_0 (clipped), float32 or float64.
            x_t: the current state, of the same shape and type.
            index: position in ``timesteps``; ``_a[index]`` is the signal now, ``_a[index + 1]`` after the step.
            generators: for a stochastic step.
        """

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, generator: Generators = None
    ) -> tuple[Tensor, Tensor]:
        """One step of the chain.

        Args:
            model_output: the network's output for ``sample`` at ``timestep``, ``(B, ...)``.
            timestep: one of ``timesteps``.
            sample: x_t, of the same shape.
            generator: one per sample, one for the batch, or None for torch's global one.

        Returns:
            the state at the next timestep and the estimate of x_0, both like ``sample``.

        Raises:
            UserError: a timestep that is not one of those chosen, or outputs of another shape than the sample.
        """
        index = self._index.get(int(timestep))
        if index is None:
            raise UserError(
                "a step must start at one of the sampler's timesteps", int(timestep), "Call set_timesteps first"
            )
        if model_output.shape != sample.shape:
            raise UserError(
                f"the network's output must have the shape of the sample {tuple(sample.shape)}",
                tuple(model_output.shape),
            )
        working = torch.promote_types(sample.dtype, torch.float32)
        x_t, output = sample.to(working), model_output.to(working)
        x0 = predicted_x0(self.prediction_type, output, x_t, self._a[index], self._s[index])
        if self.clip_range is not None:
            x0 = x0.clamp(*self.clip_range)
        previous = self._advance(x0, x_t, index, generator)
        return previous.to(sample.dtype), x0.to(sample.dtype)

    @torch.no_grad()
    def sample(
        self,
        model: Callable[..., Tensor],
        noise: Tensor,
        num_steps: int | None = None,
        generators: Generators = None,
        progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Samples x_0 from noise.

        Args:
            model: ``model(x, timesteps, **model_kwargs)`` with x like ``noise`` and timesteps int64 ``(B,)``.
            noise: standard normal, ``(B, ...)``, see :func:`~medical_diffusion.diffusion.noise.noise_for_seeds`.
            num_steps: number of steps from now on; the present ``timesteps`` by default.
            generators: one per sample, so that a sample does not depend on its batch; only stochastic samplers draw.
            progress: wraps the sequence of timesteps, for example ``tqdm.tqdm``.
            model_kwargs: further arguments of the model, for example ``class_labels``.

        Returns:
            x_0, like ``noise``. The state between the steps is float32 also where the model works in half precision.
        """
        if num_steps is not None:
            self.set_timesteps(num_steps)
        chosen = self.timesteps.tolist()
        x = noise.to(torch.promote_types(noise.dtype, torch.float32))
        for t in chosen if progress is None else progress(chosen):
            timesteps = torch.full((noise.shape[0],), t, dtype=torch.long, device=noise.device)
            output = model(x.to(noise.dtype), timesteps, **(model_kwargs or {}))
            x, _ = self.step(output, t, x, generators)
        return x.to(noise.dtype)


def _limits(clip_range: float | Sequence[float] | None) -> tuple[float, float] | None:
    if clip_range is None:
        return None
    low, high = (-clip_range, clip_range) if isinstance(clip_range, (int, float)) else tuple(clip_range)
    if not low < high:
        raise UserError("clip_range must be a positive number or two rising ones", clip_range)
    return float(low), float(high)
