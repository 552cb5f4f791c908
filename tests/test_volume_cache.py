"""The cache of preprocessed volumes: damaged files are written again, and none is ever half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import Compose, Transform

from medical_diffusion.data import SafePersistentDataset
from medical_diffusion.errors import UserError


class Counting(Transform):
    """Makes a volume of an item's number."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        return {"image": torch.full((1, 4, 4, 4), float(item["n"]))}


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_files_are_computed_again(damage: str, tmp_path: Path) -> None:
    transform = Counting()
    dataset = SafePersistentDataset([{"n": 3}], Compose([transform]), tmp_path)
    first = dataset[0]["image"]
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no archive"}[damage])
    for _ in range(2):
        torch.testing.assert_close(dataset[0]["image"], first)
    assert transform.calls == 2, "once, and once more for the damaged file"
    assert list(tmp_path.iterdir()) == [file] and len(file.read_bytes()) > len(whole) // 2


def test_a_killed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = SafePersistentDataset([{"n": 3}], Compose([Counting()]), tmp_path)

    def cut(content: Any, path: Path, *_: Any, **__: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut)
        with pytest.raises(UserError, match="the disk is full"):
            _ = dataset[0]
    assert list(tmp_path.iterdir()) == []
    assert dataset[0]["image"].shape == (1, 4, 4, 4)
