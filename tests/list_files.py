"""A small labelled image list for tests: twelve pictures with classes and patients, and lists that are broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from image_files import pixels, write_picture

NAMES = [f"{number:02d}" for number in range(12)]


def write_twelve(tmp_path: Path) -> Path:
    """Twelve pictures in ``images``."""
    for seed, name in enumerate(NAMES):
        write_picture(tmp_path / "images" / f"{name}.png", pixels(seed=seed))
    return tmp_path


def write_csv(root: Path, rows: list[str], name: str = "list.csv") -> Path:
    (root / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root / name


def sick_or_well(name: str) -> str:
    return "sick" if int(name) % 3 else "well"


def rows(header: str = "image,label,subject") -> list[str]:
    return [header, *(f"images/{name}.png,{sick_or_well(name)},p{int(name) // 2}" for name in NAMES)]


def items(data: Any) -> list[dict[str, Any]]:
    return sorted(data.train + data.validation + data.test, key=lambda item: item["image"])


def labels(data: Any) -> dict[str, str]:
    return {Path(item["image"]).name.split(".")[0]: data.classes[item["class_label"]] for item in items(data)}


EXPECTED = {name: sick_or_well(name) for name in NAMES}


def broken_csv(root: Path, kind: str) -> Path:
    text = "\n".join(rows())
    table = root / "list.csv"
    content = {
        "missing file": text.replace("images/03.png", "images/33.png").encode(),
        "duplicate": f"{text}\n./images/01.png,sick,p0".encode(),
        "empty": b"  \n",
        "header only": b"image,label\n",
        "encoding": text.replace("sick", "kränk").encode("utf-16"),
        "latin": text.replace("sick", "kränk").encode("latin-1"),
        "ragged": f"{text}\nimages/x.png,a".encode(),
        "nameless": f"{text}\n,sick,p1".encode(),
        "split": text.replace("subject", "fold").encode(),
        "part split": b"image,split\nimages/00.png,train\nimages/01.png,\n",
        "no image": text.replace("images/03.png", "list.csv").encode(),
        "two columns": b"image,label,Label\nimages/00.png,a,b\n",
    }[kind]
    table.write_bytes(content)
    return table
