"""What a manifest states of its data, as values: files, split, masks, classes and their tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medical_diffusion.errors import UserError, did_you_mean


@dataclass(frozen=True)
class ManifestFile:
    """One explicitly named volume; paths are relative to ``dataset_dir``; ``label`` is a segmentation."""

    path: str
    subject: str | None = None
    series_uid: str | None = None
    label: str | None = None
    sha256: str | None = None
    split: str | None = None
    class_name: str | None = None


@dataclass(frozen=True)
class SplitRule:
    """How subjects are split: fractions of the subjects, what a subject is, and the salt of the hash."""

    by: str = "patient"
    validation: float = 0.1
    test: float = 0.1
    salt: str = ""

    @property
    def has_subjects(self) -> bool:
        """Whether the data name what never crosses a split; otherwise each file stands for itself."""
        return self.by in ("patient", "exam")


@dataclass(frozen=True)
class MaskRule:
    """Where masks lie: ``paths`` hold {stem} and {subject}; ``required``: no image without one, and the reverse."""

    paths: tuple[str, ...]
    required: bool = False


@dataclass(frozen=True)
class LabelTable:
    """A CSV file of labels; ``header`` names its columns where it has no header of its own."""

    file: str
    header: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ClassRule:
    """How the class of an image is found: by a folder's name, or by tables; fields are the schema's."""

    names: tuple[str, ...]
    folders: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[LabelTable, ...] = ()
    join_column: str = ""
    join: re.Pattern[str] = re.compile("")
    label: str = ""
    values: Mapping[str, str] | None = None
    filter: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> ClassRule:
        """The rule of a manifest's ``classes``.

        Raises:
            UserError: a folder or value stands for a class that is not among the names; the join has no group.
        """
        join = fields.get("join", {"column": "", "expression": "()"})
        expression = re.compile(join["expression"])
        if not expression.groups:
            rule = "classes.join.expression of a manifest must have a group, the key that rows and images share"
            raise UserError(rule, join["expression"], "Put it in parentheses")
        names = tuple(fields["names"])
        for stated in (*fields.get("folders", {}).values(), *fields.get("values", {}).values()):
            if stated not in names:
                raise UserError("folders and values must stand for classes.names", stated, did_you_mean(stated, names))
        return cls(
            names=names,
            folders=dict(fields.get("folders", {})),
            tables=tuple(
                LabelTable(table["file"], tuple(table["header"]) if "header" in table else None)
                for table in fields.get("tables", ())
            ),
            join_column=join["column"],
            join=expression,
            label=fields.get("label", ""),
            values=fields.get("values"),
            filter={column: tuple(values) for column, values in fields.get("filter", {}).items()},
        )
