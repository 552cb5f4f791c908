"""A bundle's weights: which there are, what they were trained with, and loading them into networks that must fit."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import nn

from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.settings import stored_settings
from medical_diffusion.errors import UserError
from medical_diffusion.files import file_hash, load_tensors


class Weights:
    """Final weights in a run's ``models`` folder.

    Args:
        folders: of the run.
    """

    def __init__(self, folders: Folders) -> None:
        self.folders = folders

    def load(self, stage: str, network: nn.Module) -> None:
        """Load ``<stage>.pt`` into ``network`` strictly.

        Raises:
            UserError: missing, damaged, holding pickled code, or of another architecture.
        """
        path = self.folders.models / f"{stage}.pt"
        content = load_tensors(path)
        try:
            network.load_state_dict(content["model"])
        except (RuntimeError, KeyError) as error:
            first = str(error).splitlines()
            raise UserError(
                f"the weights in {path.name} must fit the network of this configuration",
                f"{path}: {' '.join(first[1:3]).strip() or first[0]}",
                "Leave out overrides that they were not trained with, or train again",
            ) from error
        network.eval().requires_grad_(False)

    @cached_property
    def output_spacing(self) -> list[float]:
        """Millimetres per voxel of the volumes that the weights were trained on."""
        return [float(v) for v in self.settings["output_spacing"]]

    @cached_property
    def _stored(self) -> dict[str, Any]:
        """As :attr:`settings`, but empty where there are no weights yet."""
        return stored_settings(self.folders.root)

    @property
    def split(self) -> str | None:
        """Fingerprint of the images and the split of training."""
        return self._stored.get("split")

    @property
    def png_bits(self) -> int | None:
        """Bits of the PNG files that samples become; None for volumes."""
        return self._stored.get("png_bits")

    @property
    def class_names(self) -> list[str]:
        """Classes that the network was trained with; empty without labels, and where there are no weights yet."""
        return self._stored.get("class_names", [])

    @property
    def class_frequencies(self) -> list[float]:
        """Share of each class in training."""
        return self._stored.get("class_frequencies", [])

    @cached_property
    def settings(self) -> dict[str, Any]:
        return dict(load_tensors(self.folders.models / "model.pt")["settings"])

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each weights file."""
        return {f"{s}.pt": file_hash(self.folders.models / f"{s}.pt") for s in ("autoencoder", "model")}
