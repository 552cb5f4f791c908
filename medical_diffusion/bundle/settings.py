"""The values that a run works with: defaults by profile or from the weights, overridden by name, checked together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medical_diffusion.bundle.options import Option, coerce, load_options
from medical_diffusion.errors import UserError
from medical_diffusion.files import load_tensors
from medical_diffusion.shapes import latent_size

WEIGHTS = ("model.pt", "autoencoder.pt")
STAGES = ("data", "autoencoder", "diffusion", "network", "pretraining", "finetuning")


class Defaults(dict[str, Any]):
    """Default of every option: those that trained the weights for inference and evaluation, else those of the profile.

    Args:
        bundle_root: the bundle's folder.
        dataset_dir: the user's data; without it training takes the ``phantom`` profile, with it ``profile``.
        run_dir: where the weights lie; the bundle's folder by default.
        from_weights: take what shapes the model from the weights where there are some.
        inherited: values that other weights bring along, such as the width of a pre-trained network; they take the
            place of the profile's.
        profile: the one wanted for the user's data, ``paper`` (also where None) or ``quick``.

    Raises:
        UserError: an unknown profile, or one without data.
    """

    def __init__(
        self,
        bundle_root: str,
        dataset_dir: str | None = None,
        run_dir: str | None = None,
        from_weights: bool = False,
        inherited: Mapping[str, Any] | None = None,
        profile: str | None = None,
    ) -> None:
        self.options = load_options(bundle_root)
        chosen = coerce(self.options["profile"], profile) if "profile" in self.options else None
        if chosen and dataset_dir is None:
            raise UserError(
                "--profile chooses between configurations for your own data",
                chosen,
                "Pass --dataset_dir, or leave --profile out: phantoms have a small run of their own",
            )
        folder = Path(coerce(self.options["run_dir"], run_dir) or bundle_root)
        self.trained = stored_settings(folder) if from_weights else {}
        self.profile = self.trained.get("profile") or ("phantom" if dataset_dir is None else chosen or "paper")
        super().__init__({name: option.defaults[self.profile] for name, option in self.options.items()})
        self.update({name: value for name, value in (inherited or {}).items() if name in self.options})
        self.update({name: value for name, value in self.trained.items() if name in self.options})


class Settings:
    """Checked values by attribute (``settings.image_size``).

    Args:
        defaults: of the options.
        values: value of every option, as the configuration or the command line gave it.

    Raises:
        UserError: a value of the wrong type or out of bounds; values that do not fit each other; for inference and
            evaluation, a value that differs from the one that the weights were trained with.
    """

    def __init__(self, defaults: Defaults, values: Mapping[str, Any]) -> None:
        self.options: dict[str, Option] = defaults.options
        self.profile = defaults.profile
        self.values = {name: coerce(self.options[name], value) for name, value in values.items()}
        self.trained = defaults.trained
        self._compare_with_weights(defaults)
        if "image_size" in self.values and "compression" in self.values:
            self.latent_size = latent_size(self.image_size, self.compression)
        if self.values.get("halves") and self.planar:
            raise UserError("--halves splits volumes", f"image_size {self.image_size}", "Use --halves false for images")
        if self.values.get("noise_schedule") == "cosine" and self.values.get("beta_range") is not None:
            raise UserError(
                "--beta_range belongs to the linear noise schedules",
                f"--noise_schedule cosine with --beta_range {self.beta_range}",
                "Add --beta_range none",
            )

    @property
    def planar(self) -> bool:
        """Whether the run works on images: volumes of depth 1."""
        return self.image_size[2] == 1

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an option that not every family of bundles has."""
        return self.values.get(name, default)

    def of_stage(self, *stages: str) -> dict[str, Any]:
        """The values that shape the given stages, for fingerprints."""
        return {n: v for n, v in self.values.items() if self.options[n].stage in stages}

    def stored(self) -> dict[str, Any]:
        """What is kept with the weights: all that shapes the model, and nothing about where the data lay."""
        return {"profile": self.profile, **self.of_stage(*STAGES)}

    def _compare_with_weights(self, defaults: Defaults) -> None:
        for name, trained in defaults.trained.items():
            option = self.options.get(name)
            if option is None or name not in self.values or not option.fixed:
                continue
            if self.values[name] != coerce(option, trained):
                raise UserError(
                    f"--{name} must be what the weights were trained with ({trained})",
                    self.values[name],
                    "Leave it out, or train with the new value first",
                )


def stored_settings(run_dir: str | Path) -> dict[str, Any]:
    """The settings that the weights of a run were trained with; empty without weights."""
    for name in WEIGHTS:
        path = Path(run_dir) / "models" / name
        if path.is_file():
            return dict(load_tensors(path).get("settings", {}))
    return {}


def select_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one; any other name must be a device of this machine.

    Raises:
        UserError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        count = torch.cuda.device_count()
        known = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise UserError("--device must be a device of this machine", name, f"Available here: {known}") from error
    return device
