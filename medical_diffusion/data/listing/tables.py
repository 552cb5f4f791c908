"""Lists of images that people keep: a CSV with columns, an MSD ``dataset.json``, a MONAI datalist.

Each becomes entries of path, subject, class, segmentation and split, still as text; what is wrong with a row is said
with its line, all rows at once.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_diffusion.data.reading.formats import kind_of
from medical_diffusion.errors import UserError, did_you_mean

IMAGE_COLUMNS = ("image", "file", "path", "filename", "image_path")
LABEL_COLUMNS = ("label", "class", "target", "class_label", "diagnosis")
SUBJECT_COLUMNS = ("subject", "patient", "patient_id", "subject_id", "id")
SPLIT_COLUMNS = ("split", "set", "fold")
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}
_MAX_ROWS_SHOWN = 10

Names = tuple[str, ...]


@dataclass(frozen=True)
class ListedImage:
    """One row of a list, as text; ``None`` where the list does not say.

    Attributes:
        place: where in the list, for messages ("line 7", "training[6]").
        segmentation: path of a label image, relative as ``path`` is.
        class_name: the label of a class.
    """

    place: str
    path: str
    subject: str | None = None
    class_name: str | None = None
    segmentation: str | None = None
    split: str | None = None


def read_table(
    table: str | Path,
    image_column: str | None = None,
    label_column: str | None = None,
    subject_column: str | None = None,
) -> list[ListedImage]:
    """The rows of a ``.csv`` (comma, semicolon or tab) or ``.json`` list.

    Columns are found by name, whatever their case; keys of JSON entries likewise where they are named here.

    Args:
        table: path of the list.
        image_column, label_column, subject_column: their names; ``None`` finds them.

    Raises:
        UserError: the list is missing, empty, of an unknown encoding or form; a column that was named is not there.
    """
    path = Path(str(table)).expanduser()
    if not path.is_file():
        raise UserError("datalist must be an existing CSV or JSON file", str(path), "Check the path")
    if path.suffix.lower() == ".json":
        entries = _json_entries(path, _read_text(path), image_column, label_column, subject_column)
    else:
        entries = _csv_entries(path, image_column, label_column, subject_column)
    if not entries:
        raise UserError("a datalist must name at least one image", str(path), "Add a row for each image")
    return entries


def shown(places: Sequence[str]) -> str:
    """Some places of a list for a message, the others counted."""
    more = len(places) - _MAX_ROWS_SHOWN
    return ", ".join(places[:_MAX_ROWS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def split_of(name: str) -> str | None:
    """ "train", "validation" or "test" for any of their usual names, else ``None``."""
    return _SPLITS.get(name.strip().lower())


@dataclass(frozen=True)
class Rows:
    """A CSV file: names of its columns, and each row as text with its line."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    def column(self, name: str) -> list[str]:
        """The stripped cells of a column.

        Raises:
            UserError: no such column.
        """
        if name not in self.header:
            listed = f"{self.path} with columns {', '.join(self.header)}"
            raise UserError(f"a table must have the column {name}", listed, did_you_mean(name, self.header))
        place = self.header.index(name)
        return [row[place].strip() for _, row in self.rows]


def read_csv(path: Path, header: Sequence[str] | None = None) -> Rows:
    """A CSV file (comma, semicolon or tab), blank lines left out.

    Args:
        header: names of the columns where the file has no header of its own.

    Raises:
        UserError: empty, not UTF-8, not CSV, or rows of unequal length.
    """
    text = _read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), None)
    if first is None:
        raise UserError("a datalist must name at least one image", f"{path}, which is empty", "Add a header and rows")
    if "\0" in text:
        raise UserError("a datalist must be text in UTF-8", f"{path} with zero bytes", "Save it as CSV UTF-8")
    delimiter = max(",;\t", key=first.count)
    lines = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        rows = [(lines.line_num, tuple(row)) for row in lines if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError("a datalist must be a readable CSV file", f"{path} ({error})", "Save it again") from error
    if header is None:
        header = [name.strip() for name in rows.pop(0)[1]]
    ragged = [f"line {line} with {len(row)}" for line, row in rows if len(row) != len(header)]
    if ragged:
        raise UserError(f"every row of {path} must have the {len(header)} fields of its header", shown(ragged))
    return Rows(path, tuple(header), tuple(rows))


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("a datalist must be text in UTF-8", f"{path} ({error})", "Save it as CSV UTF-8") from error


def _csv_entries(path: Path, image: str | None, label: str | None, subject: str | None) -> list[ListedImage]:
    table = read_csv(path)
    header = list(table.header)
    columns = {
        "path": _column(path, header, "image", image, IMAGE_COLUMNS, needed=True),
        "class_name": _column(path, header, "label", label, LABEL_COLUMNS),
        "subject": _column(path, header, "subject", subject, SUBJECT_COLUMNS),
        "split": _column(path, header, "split", None, SPLIT_COLUMNS),
    }
    entries = []
    for line, row in table.rows:
        fields = {key: row[column].strip() or None for key, column in columns.items() if column is not None}
        entries.append((f"line {line}", fields))
    return _checked(path, entries)


def _column(
    path: Path, header: list[str], role: str, asked: str | None, known: Sequence[str], needed: bool = False
) -> int | None:
    names = [_plain(name) for name in header]
    doubled = sorted({name for name in names if name and names.count(name) > 1})
    wanted = [_plain(asked)] if asked is not None else list(known)
    if set(wanted) & set(doubled):
        raise UserError("the columns of a datalist must have different names", f"{path} with two {doubled[0]}")
    for name in wanted:
        if name in names:
            return names.index(name)
    if asked is None and not needed:
        return None
    rule = f"a datalist must have a column for the {role}: " + (asked if asked is not None else " or ".join(known))
    listed = f"{path} with columns {', '.join(header)}"
    near = did_you_mean(asked, header) if asked is not None else f"Name it: {role}_column"
    raise UserError(rule, listed, near)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _checked(path: Path, entries: Iterable[tuple[str, dict[str, str | None]]]) -> list[ListedImage]:
    """Entries with their splits' usual names."""
    listed, nameless, odd = [], [], []
    for place, fields in entries:
        stated = fields.get("split")
        split = split_of(stated) if stated is not None else None
        if fields.get("path") is None:
            nameless.append(place)
        elif stated is not None and split is None:
            odd.append(f"{stated!r} in {place}")
        else:
            listed.append(ListedImage(place=place, **(fields | {"split": split})))  # type: ignore[arg-type]
    if nameless:
        raise UserError(
            f"every row of {path} must name an image", shown(nameless), "Fill the fields or remove the rows"
        )
    if odd:
        rule = f"a split in {path} must be train, validation or test"
        raise UserError(rule, shown(odd), "Correct the column, or rename it where it means something else")
    without = [entry.place for entry in listed if entry.split is None]
    if without and len(without) < len(listed):
        raise UserError(f"either all rows of {path} or none must state their split", f"none in {shown(without)}")
    return listed


def _json_entries(
    path: Path, text: str, image: str | None, label: str | None, subject: str | None
) -> list[ListedImage]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError("a JSON datalist must be valid JSON", f"{path} ({error})", "Correct the file") from error
    parts = {key: split_of(key) for key in content if split_of(key)} if isinstance(content, dict) else {}
    if not parts:
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            "a JSON datalist must hold a list of images under training, validation or test",
            f"{path} with {found or 'nothing'}",
            "Write it as an MSD dataset.json or a MONAI datalist",
        )
    # Training images alone are no split: all of them are divided then.
    is_split = len({part for key, part in parts.items() if content[key]}) > 1
    named = ((image, IMAGE_COLUMNS), (subject, SUBJECT_COLUMNS), (label, LABEL_COLUMNS))
    images, subjects, labels = (known if asked is None else (_plain(asked),) for asked, known in named)
    found_entries: list[tuple[str, dict[str, Any], str | None]] = []
    for key, part in parts.items():
        if not isinstance(content[key], list):
            raise UserError(f"{key} in {path} must be a list", type(content[key]).__name__)
        for number, entry in enumerate(content[key]):
            place = f"{key}[{number}]"
            if not isinstance(entry, str | dict):
                raise UserError(f"an image in {path} must be a path or an entry with one", f"{place}: {entry!r}")
            fields = {images[0]: entry} if isinstance(entry, str) else entry
            found_entries.append((place, fields, part if is_split else None))
    keys = sorted({str(name) for _, entry, _ in found_entries for name in entry})
    for role, asked in (("image", image), ("label", label), ("subject", subject)):
        if asked is not None:
            _column(path, keys, role, asked, ())
    wanted = (images, subjects, labels)
    return _checked(path, [(p, _json_fields(path, p, e, *wanted) | {"split": part}) for p, e, part in found_entries])


def _json_fields(
    path: Path, place: str, entry: dict[str, Any], images: Names, subjects: Names, labels: Names
) -> dict[str, str | None]:
    plain = {_plain(str(key)): value for key, value in entry.items()}

    def first(names: Names) -> str | None:
        return next((_text(path, place, plain[name]) for name in names if plain.get(name) is not None), None)

    fields = {"path": first(images), "subject": first(subjects)}
    # A "label" that is an image is a segmentation; the class may stand beside it under another name.
    for name in labels:
        value = first((name,))
        if value is not None:
            is_image = isinstance(plain[name], str) and kind_of(Path(value), planar=True) is not None
            fields.setdefault("segmentation" if is_image else "class_name", value)
    return fields


def _text(path: Path, place: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    if isinstance(value, bool | int | float):
        return str(int(value)) if isinstance(value, bool) or float(value).is_integer() else str(value)
    raise UserError(
        f"image, label and subject in {path} must be one name or number each",
        f"{place}: {value!r}",
        "Several images or labels in one entry are not read; write one",
    )
