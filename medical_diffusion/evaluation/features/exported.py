"""A user's own network as extractor: TorchScript (``torch.jit.save``) or an exported program (``torch.export.save``).

The network takes images ``(B, C, H, W)`` or volumes ``(B, C, H, W, D)`` in [-1, 1], of any batch size, and returns
``(B, F)``.

Either file is a program, and a program is run: give only one that you trust, the log says. TorchScript has its own
interpreter and reads no Python. ``torch.export.load`` unpickles weights where the archive asks for it and loads
compiled libraries; archives with either are refused here.
"""

from __future__ import annotations

import io
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.features.extractor import FeatureExtractor
from medical_diffusion.files import file_hash

logger = logging.getLogger(__name__)

PROGRAM_SUFFIX = ".pt2"
REMEDY = "Save it with torch.jit.save (FILE.pt), or with torch.export.save and a dynamic batch (FILE.pt2)"


class ExportedNetwork(FeatureExtractor):
    """Features of an exported network.

    Args:
        path: ``FILE.pt2`` of ``torch.export``, any other suffix for TorchScript.
        spatial_dims: 2 for images (depth 1), 3 for volumes.
        channels: of the images.

    Raises:
        UserError: no such file, not an exported network, or one that holds pickled code or a compiled library.
    """

    def __init__(self, path: str | os.PathLike[str], spatial_dims: int, channels: int = 1) -> None:
        path = Path(path).expanduser()
        if not path.is_file():
            raise UserError("the file of the extractor must exist", str(path), REMEDY)
        super().__init__(path.name, spatial_dims, channels, {"weights": file_hash(path)})
        logger.warning("Features come from the program in %s: run only what you trust.", path)
        self.network: Callable[[Tensor], Tensor] = _load(path)

    def features(self, images: Tensor) -> Tensor:
        """``(B, C, H, W, D)`` → ``(B, F)``."""
        x = images.squeeze(-1) if self.spatial_dims == 2 else images
        try:
            found = self.network(x)
        except Exception as error:  # whatever the program raises
            raise UserError(
                f"the extractor {self.name} must take images of the shape {tuple(x.shape)}",
                str(error).strip().splitlines()[-1][:300],
                REMEDY,
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"the extractor {self.name} must return features ({len(x)}, F)", shape, REMEDY)
        return found


def _load(path: Path) -> Callable[[Tensor], Tensor]:
    is_program = path.suffix == PROGRAM_SUFFIX
    if is_program:
        _refuse_pickled_code(path)
    try:
        if is_program:
            return torch.export.load(path).module()
        return torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as error:  # whatever a damaged file makes the library raise
        raise UserError(
            "the extractor must be an exported network", f"{path}: {str(error).strip().splitlines()[0][:300]}", REMEDY
        ) from error


def _refuse_pickled_code(path: Path) -> None:
    """Refuse archives for which torch.export would unpickle more than tensors, or load a library."""
    remedy = "Export it again with torch.export.save of a current PyTorch, or as TorchScript"
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                inside = name.split("/", 1)[-1]
                if inside.startswith("data/aotinductor/"):
                    raise UserError("an exported extractor must not hold a compiled library", str(path), remedy)
                if inside.endswith("_config.json"):
                    entries = json.loads(archive.read(name)).get("config", {}).values()
                    if any(entry.get("use_pickle") for entry in entries):
                        raise UserError("an exported extractor must not hold pickled weights", str(path), remedy)
                if inside.startswith("data/") and inside.endswith(".pt"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    except UserError:
        raise
    except Exception as error:  # an unreadable archive, or one with pickled code
        raise UserError(
            "an exported extractor must be a whole archive without pickled code",
            f"{path}: {str(error).strip().splitlines()[0][:300]}",
            remedy,
        ) from error
