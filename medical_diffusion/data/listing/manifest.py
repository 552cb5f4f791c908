"""Data manifests: JSON files that state a dataset's source, licence, layout below ``dataset_dir`` and split."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Any

from medical_diffusion.data.listing.rules import ClassRule, ManifestFile, MaskRule, SplitRule
from medical_diffusion.errors import UserError, did_you_mean

SERIES_SUFFIX = ".series.json"


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.

    Attributes:
        folder: where it lies; the file of its series lies beside it.
        fields: the JSON as it was written.
    """

    name: str
    images: tuple[str, ...]
    exclude: tuple[str, ...]
    subject: re.Pattern[str]
    dicom_modalities: tuple[str, ...]
    split: SplitRule
    files: tuple[ManifestFile, ...]
    folder: Traversable
    masks: MaskRule | None = None
    classes: ClassRule | None = None
    example: str | None = None
    planar: bool = False
    counts: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        """What the first image's path should look like, for messages."""
        return self.example or " or ".join(self.images)

    def matches(self, relative: str) -> bool:
        """Whether ``layout`` takes the file at this path relative to ``dataset_dir``."""
        return _matches_any(self.images, relative) and not _matches_any(self.exclude, relative)

    def subject_of(self, relative: str) -> str:
        """Subject id in a relative path.

        Raises:
            UserError: the manifest's expression finds none.
        """
        found = self.subject.search(relative)
        if found is None:
            raise UserError(
                f"manifest {self.name}: layout.subject must find a subject id in every path",
                f"{self.subject.pattern} in {relative}",
                "Correct the expression, or exclude the file",
            )
        return found.group(1) if self.subject.groups else found.group(0)


def load_manifest(manifest: str | Path) -> Manifest:
    """Read and check a manifest, given by path or by the name of one that comes with the package ("lidc_idri").

    Raises:
        UserError: not found, not JSON, or in breach of the schema (every breach is listed).
    """
    file, folder = _find(str(manifest))
    try:
        fields = json.loads(file.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError("a manifest must be valid JSON", f"{file} ({error})", "Correct the file") from error
    breaches = _schema_breaches(fields)
    if breaches:
        raise UserError(
            "a manifest must keep its schema",
            f"{file}: " + "; ".join(breaches),
            "Correct these fields; the schema is medical_diffusion/data/listing/manifest.schema.json",
        )
    layout, split = fields["layout"], fields.get("split", {})
    files = tuple(
        ManifestFile(**{"class_name" if key == "class" else key: value for key, value in entry.items()})
        for entry in fields.get("files", ())
    )
    for entry in files:
        for relative in filter(None, (entry.path, entry.label)):
            check_relative(relative)
    masks = _mask_rule(layout["masks"]) if "masks" in layout else None
    for pattern in (*layout["images"], *(masks.paths if masks else ())):
        check_relative(pattern)
    rule = SplitRule(
        by=split.get("by", "patient"),
        validation=split.get("validation", SplitRule.validation),
        test=split.get("test", SplitRule.test),
        salt=split.get("salt", ""),
    )
    if rule.validation + rule.test + split.get("train", 0.0) > 1 + 1e-6:
        raise UserError("the fractions of a manifest's split must add up to 1 or less", split)
    return Manifest(
        name=fields["name"],
        images=tuple(layout["images"]),
        exclude=tuple(layout.get("exclude", ())),
        subject=re.compile(layout["subject"]),
        dicom_modalities=tuple(layout.get("dicom_modalities", ())),
        split=rule,
        files=files,
        folder=folder,
        masks=masks,
        classes=ClassRule.of(fields["classes"]) if "classes" in fields else None,
        example=layout.get("example"),
        planar=fields.get("planar", False),
        counts=dict(fields.get("counts", {})),
        fields=fields,
    )


def packaged_manifests() -> dict[str, Traversable]:
    """Manifests that come with the package, by name."""
    folder = _packaged_folder()
    if not folder.is_dir():
        return {}
    files = [file for file in folder.iterdir() if file.name.endswith(".json") and not file.name.endswith(SERIES_SUFFIX)]
    return {file.name.removesuffix(".json"): file for file in sorted(files, key=lambda file: file.name)}


def _packaged_folder() -> Traversable:
    try:
        return importlib.resources.files("medical_diffusion.data_manifests")
    except ModuleNotFoundError:  # a source checkout that is not installed
        return Path(__file__).resolve().parents[3] / "data_manifests"


def check_relative(relative: str) -> None:
    """Refuse an absolute path and one that climbs with "..".

    Raises:
        UserError: the path could leave ``dataset_dir``.
    """
    path = PurePosixPath(relative.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", relative):
        raise UserError(
            "a manifest may only name files inside dataset_dir",
            relative,
            "Use paths relative to dataset_dir, without '..'",
        )


def inside(dataset_dir: Path, relative: str) -> Path:
    """The path below ``dataset_dir``, links resolved for the check only.

    Raises:
        UserError: it lies outside, also by way of a symbolic link.
    """
    check_relative(relative)
    path = dataset_dir / relative
    if not path.resolve().is_relative_to(dataset_dir.resolve()):
        raise UserError(
            "a manifest may only name files inside dataset_dir",
            f"{relative}, a link to {path.resolve()}",
            "Copy the file into dataset_dir, or pass the folder that holds both",
        )
    return path


def _find(manifest: str) -> tuple[Traversable, Traversable]:
    """A manifest's file and folder."""
    path = Path(manifest).expanduser()
    if path.is_file():
        return path, path.parent
    known = packaged_manifests()
    # data_manifests/NAME.json names a packaged manifest also where no checkout is at hand.
    if path.stem in known and path.parent.name in ("", "data_manifests") and path.suffix in ("", ".json"):
        return known[path.stem], _packaged_folder()
    if path.suffix == ".json" or path.parent != Path("."):
        raise UserError("the manifest must exist", manifest, f"Packaged: {', '.join(known) or 'none'}")
    raise UserError("the manifest must exist", manifest, did_you_mean(manifest, known))


def _mask_rule(fields: Mapping[str, Any]) -> MaskRule:
    for path in fields["paths"]:
        try:
            path.format(stem="", subject="")
        except (KeyError, IndexError, ValueError) as error:
            raise UserError("layout.masks.paths may only hold {stem} and {subject}", path) from error
    return MaskRule(tuple(fields["paths"]), fields.get("required", False))


def _schema_breaches(fields: Any) -> list[str]:
    import jsonschema

    schema = json.loads((importlib.resources.files(__package__) / "manifest.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    errors = sorted(validator.iter_errors(fields), key=lambda error: list(map(str, error.absolute_path)))
    return [f"{'.'.join(map(str, e.absolute_path)) or 'top level'}: {e.message}" for e in errors]


def _matches_any(patterns: Sequence[str], relative: str) -> bool:
    return any(_glob_expression(pattern).fullmatch(relative) for pattern in patterns)


@functools.lru_cache(maxsize=256)
def _glob_expression(pattern: str) -> re.Pattern[str]:
    """Regular expression of a glob: ``*`` and ``?`` stay within a folder, ``**/`` spans any number of folders."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(wild.get(part, re.escape(part)) for part in parts))
