"""Where published weights of an extractor lie: a given file, or torch's folder of checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from medical_diffusion.errors import UserError


def checkpoints_folder() -> Path:
    """``$TORCH_HOME/hub/checkpoints``, by default in ``~/.cache/torch``."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(
    extractor: str, name: str, url: str, weights_file: str | os.PathLike[str] | None, download: bool
) -> Path:
    """The weights' file.

    Args:
        extractor: that needs it.
        name: of the published file.
        url: where it can be had.
        weights_file: the file itself; by default ``name`` in :func:`checkpoints_folder`.
        download: fetch it there where it is missing; only where the name holds the hash of its content.

    Raises:
        UserError: it is missing and was not or could not be downloaded.
    """
    path = Path(weights_file).expanduser() if weights_file else checkpoints_folder() / name
    if path.is_file():
        return path
    remedy = f"Download {url} elsewhere and put it there, or take the extractor random, which needs no weights"
    if weights_file or not download:
        raise UserError(f"the extractor {extractor} needs the file {name}", f"no file {path}", remedy)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".part-{os.getpid()}-{name}")
        try:
            torch.hub.download_url_to_file(url, str(partial), hash_prefix=path.stem.rsplit("-", 1)[-1])
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # a wrong hash raises RuntimeError
        raise UserError(
            f"the extractor {extractor} needs the file {path}, and it could not be downloaded", str(error), remedy
        ) from error
    return path
