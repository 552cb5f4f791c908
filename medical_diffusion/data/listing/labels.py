"""Classes that a manifest states: by the folder an image lies in, or by tables whose rows are joined to images.

A row and an image belong together where the manifest's expression finds the same key in the row's column and in the
image's path. Rows that the manifest's filter drops take their images with them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medical_diffusion.data.checks import Fault
from medical_diffusion.data.listing.manifest import Manifest
from medical_diffusion.data.listing.rules import ClassRule, LabelTable
from medical_diffusion.data.listing.tables import Rows, read_csv, shown
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.errors import UserError

logger = logging.getLogger(__name__)


def label_by_manifest(
    root: Path, manifest: Manifest, volumes: Sequence[VolumeFile]
) -> tuple[list[VolumeFile], list[Fault]]:
    """Volumes with the class that the manifest's rule finds; those of filtered rows are left out.

    Volumes that have a class already (of the manifest's ``files``) keep it.

    Raises:
        UserError: a table is missing, unreadable or without a column that the manifest names.
    """
    rule = manifest.classes
    if rule is None or not volumes or any(volume.class_name for volume in volumes):
        return list(volumes), []
    if rule.folders:
        return _by_folder(root, manifest, rule, volumes)
    labels = _Labels(rule)
    for table in rule.tables:
        labels.add(read_csv(_find(root, manifest, table, volumes[0].path), table.header))
    return labels.apply(root, volumes)


def _by_folder(
    root: Path, manifest: Manifest, rule: ClassRule, volumes: Sequence[VolumeFile]
) -> tuple[list[VolumeFile], list[Fault]]:
    labelled, faults = [], []
    for volume in volumes:
        parts = volume.path.relative_to(root).parts[:-1]
        name = next((rule.folders[part] for part in reversed(parts) if part in rule.folders), None)
        if name is None:
            stated = f"manifest {manifest.name}: every image must lie in a folder {' or '.join(rule.folders)}"
            faults.append(Fault(volume.path, stated, "/".join(parts) or str(root), f"Expected {manifest.expected}"))
        else:
            labelled.append(replace(volume, class_name=name))
    return labelled, faults


def _find(root: Path, manifest: Manifest, table: LabelTable, image: Path) -> Path:
    """The table in ``root`` or a folder on the way to the first image."""
    folders = [root, *reversed([folder for folder in image.parents if folder.is_relative_to(root) and folder != root])]
    for folder in folders:
        if (folder / table.file).is_file():
            return folder / table.file
    raise UserError(
        f"manifest {manifest.name} needs its table of labels, {table.file}",
        f"none in {', '.join(map(str, folders))}",
        "Put it into dataset_dir",
    )


class _Labels:
    """Class by key, gathered from tables; ``None`` for rows that the filter drops."""

    def __init__(self, rule: ClassRule) -> None:
        self.rule = rule
        self.classes: dict[str, str | None] = {}
        self.places: dict[str, str] = {}
        self.faults: list[Fault] = []

    def add(self, table: Rows) -> None:
        """Take the rows of one table."""
        rule = self.rule
        filters = [(table.column(column), values) for column, values in rule.filter.items()]
        unknown: dict[str, list[str]] = {}
        cells = zip(table.rows, table.column(rule.join_column), table.column(rule.label), strict=True)
        for row, ((line, _), cell, value) in enumerate(cells):
            place = f"{table.path.name} line {line}"
            found = rule.join.search(cell.replace("\\", "/"))
            if found is None:
                self._fault(table.path, f"{rule.join_column} must hold a key such as {rule.join.pattern}", cell, place)
                continue
            key, name = found.group(1), None
            if all(column[row] in values for column, values in filters):
                name = self._class_of(value)
                if name is None:
                    unknown.setdefault(value, []).append(f"line {line}")
                    continue
            if self.classes.setdefault(key, name) != name:
                self._fault(table.path, "an image must have one label", f"{key} of {self.places[key]}", place)
            self.places.setdefault(key, place)
        if unknown:
            known = ", ".join(repr(value) for value in (rule.values if rule.values is not None else rule.names))
            listed = "; ".join(f"{value!r} in {shown(lines[:3])}" for value, lines in sorted(unknown.items())[:10])
            rows = f"a label in column {rule.label} must be one of {known}"
            self.faults.append(Fault(table.path, rows, listed, "Correct these rows, or the manifest's classes"))

    def apply(self, root: Path, volumes: Sequence[VolumeFile]) -> tuple[list[VolumeFile], list[Fault]]:
        """Volumes with their classes; faults for those without a row, a warning for rows without an image."""
        labelled, without, seen = [], [], set()
        for volume in volumes:
            found = self.rule.join.search(volume.path.relative_to(root).as_posix())
            key = found.group(1) if found else ""
            seen.add(key)
            if key not in self.classes:
                without.append(volume.path)
                continue
            name = self.classes[key]
            if name is not None:
                labelled.append(replace(volume, class_name=name, place=self.places[key]))
        tables = " or ".join(table.file for table in self.rule.tables)
        if without and not self.faults:
            value = f"{len(without)} of {len(volumes)} images without, the first {without[0].relative_to(root)}"
            rule = f"every image must have a row in {tables}"
            self.faults.append(Fault(without[0], rule, value, "Add the rows, or remove the images"))
        rowless = [key for key, name in self.classes.items() if name is not None and key not in seen]
        if rowless:
            logger.warning(
                "%d of %d rows of %s have no image, the first %s (%s)",
                len(rowless),
                sum(name is not None for name in self.classes.values()),
                tables,
                rowless[0],
                self.places[rowless[0]],
            )
        return labelled, self.faults

    def _class_of(self, value: str) -> str | None:
        if self.rule.values is None:
            return value if value in self.rule.names else None
        return self.rule.values.get(_plain(value))

    def _fault(self, path: Path, rule: str, value: str, place: str) -> None:
        self.faults.append(Fault(path, rule, f"{value} in {place}", "Correct the row"))


def _plain(value: str) -> str:
    """Numbers as tables write them by chance ("1.0") as whole ones ("1")."""
    try:
        number = float(value)
    except ValueError:
        return value
    return str(int(number)) if number.is_integer() else value
