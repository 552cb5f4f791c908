"""A manifest as a page for a person: where the data come from, what a folder of them looks like, what to check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import TextWrapper

from medical_diffusion.data.listing.manifest import Manifest
from medical_diffusion.data.listing.rules import ClassRule

WIDTH = 112
INDENT = 16


def describe_manifest(manifest: Manifest) -> str:
    """Source, licence, access, layout, classes, masks, counts, split, preparation and the next commands."""
    return "\n".join(_row(name, text) for name, text in _rows(manifest))


def summary(manifest: Manifest) -> tuple[str, str, str, str]:
    """Name, size, way of access and title of a data set, for a list."""
    counts = manifest.counts
    noun = "images" if manifest.planar else "volumes"
    size = f"{counts['volumes']:,} {noun}" if "volumes" in counts else ""
    return manifest.name, size, "download" if "series" in manifest.fields else "see describe", manifest.fields["title"]


def _rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    fields = manifest.fields
    source, layout = fields["source"], fields["layout"]
    yield manifest.name, f"{fields['title']} (version {fields['version']})"
    yield "licence", fields["licence"]
    yield "", "The terms on the provider's page decide, not this line"
    yield "source", source["url"] + (f", doi {source['doi']}" if "doi" in source else "")
    if "citation" in source:
        yield "cite", source["citation"]
    for number, step in enumerate(fields.get("access", ()), start=1):
        yield "access" if number == 1 else "", f"{number}. {step}"
    yield "modality", fields["modality"]
    if manifest.example is not None:
        yield "layout", f"DIR/{manifest.example}"
    yield "images", _listed(layout["images"]) + (f"; not {_listed(manifest.exclude)}" if manifest.exclude else "")
    yield "subjects", f"{manifest.subject.pattern} in the path"
    if manifest.classes is not None:
        yield "classes", ", ".join(f"{number} {name}" for number, name in enumerate(manifest.classes.names))
        for line in _class_rule(manifest.classes):
            yield "", line
    if manifest.masks is not None:
        need = "every image has one" if manifest.masks.required else "where there are any"
        yield "masks", f"{_listed(manifest.masks.paths)}: {need}"
    if "series" in fields:
        conditions = "; ".join(f"{column} is {' or '.join(values)}" for column, values in _filter(manifest))
        yield "series", f"{fields['series']['file']}, from idc-index where {conditions}"
    yield "counts", ", ".join(_counts(manifest)) or "none stated"
    split = manifest.split
    rest = 1 - split.validation - split.test
    parts = f"{rest:.0%} training, {split.validation:.0%} validation, {split.test:.0%} test"
    public = "" if split.by == "patient" else " (no patient ids are published)"
    yield "split", f"by {split.by}{public}: {parts}"
    if "reference_batch" in fields:
        batch = fields["reference_batch"]
        balance = "as many of each class, " if batch["balanced"] else ""
        yield "reference", f"{batch['size']:,} images, {balance}from {batch['split']}: what the paper compares with"
    for number, note in enumerate(fields.get("preprocessing", ())):
        yield "preparation" if number == 0 else "", note
    yield from _commands(manifest)


def _class_rule(rule: ClassRule) -> Iterator[str]:
    if rule.folders:
        yield "by folder: " + ", ".join(f"{folder} is {name}" for folder, name in rule.folders.items())
        return
    files = " and ".join(table.file for table in rule.tables)
    yield f"by column {rule.label} of {files}, joined by {rule.join.pattern} in {rule.join_column} and in the path"
    if rule.values is not None:
        yield "values: " + ", ".join(f"{value or 'blank'} is {name}" for value, name in rule.values.items())
    for column, values in rule.filter.items():
        yield f"only rows whose {column} is {' or '.join(values)}"


def _filter(manifest: Manifest) -> Sequence[tuple[str, Sequence[str]]]:
    return list(manifest.fields["series"]["filter"].items())


def _counts(manifest: Manifest) -> Iterator[str]:
    counts, noun = manifest.counts, "images" if manifest.planar else "volumes"
    if "subjects" in counts:
        yield f"{counts['subjects']:,} {'patients' if manifest.split.by == 'patient' else manifest.split.by + 's'}"
    if "volumes" in counts:
        yield f"{counts['volumes']:,} {noun}"
    yield from (f"{count:,} {name}" for name, count in counts.get("classes", {}).items())
    if "after_preprocessing" in counts:
        yield f"{counts['after_preprocessing']:,} after preprocessing"


def _commands(manifest: Manifest) -> Iterator[tuple[str, str]]:
    fields, tool = manifest.fields, "python -m medical_diffusion data"
    if "series" in fields:
        yield "next", f"{tool} download {manifest.name} --output DIR"
    yield "" if "series" in fields else "next", f"{tool} verify --manifest {manifest.name} --dataset_dir DIR"
    if "bundle" in fields:
        config = f"bundles/{fields['bundle']}/configs/train.json"
        yield "", f"python -m monai.bundle run --config_file {config} --manifest {manifest.name} --dataset_dir DIR"
    if "phantoms" in fields:
        yield "without data", f"{tool} phantoms {manifest.name} --output DIR"


def _listed(patterns: Sequence[str]) -> str:
    return ", ".join(patterns)


def _row(name: str, text: str) -> str:
    lead = f"{name:<{INDENT}}"
    if text.startswith("python -m"):  # a command is copied whole
        return lead + text
    wrap = TextWrapper(WIDTH, lead, " " * INDENT, break_long_words=False, break_on_hyphens=False)
    return wrap.fill(text)
