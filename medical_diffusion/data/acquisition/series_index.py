"""The series of a manifest, taken from the index of the NCI Imaging Data Commons that ``idc-index`` brings along.

``python -m medical_diffusion.data.acquisition.series_index NAME ...`` writes ``data_manifests/NAME.series.json`` of a
checkout anew, after the filter that the manifest states. It needs no network.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_diffusion.data.listing.manifest import Manifest, load_manifest
from medical_diffusion.data.listing.series import Series, SeriesList
from medical_diffusion.errors import UserError
from medical_diffusion.files import write_text

BYTES_PER_MEGABYTE = 1_000_000
_COLUMNS = ("SeriesInstanceUID", "PatientID", "Modality", "instanceCount", "series_size_MB")


def idc_client() -> Any:
    """A client of ``idc-index``.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from idc_index import IDCClient
    except ImportError as error:
        raise UserError(
            "this needs the package idc-index",
            f"it could not be imported ({error})",
            'Install the extra: python -m pip install "medical_diffusion[download]"',
        ) from error
    return IDCClient()


def select_series(client: Any, conditions: Mapping[str, Sequence[str]]) -> SeriesList:
    """The series whose columns hold one of the given values, ordered by patient and UID.

    Args:
        client: of :func:`idc_client`; its ``index`` holds columns of equal length, a row per series.
        conditions: values by column.

    Raises:
        UserError: no such column, or nothing is selected.
    """
    index = client.index
    for column in conditions:
        if column not in index:
            raise UserError("series.filter must name columns of idc-index", column, "Correct the manifest")
    rows: Iterable[int] = range(len(index[_COLUMNS[0]]))
    for column, values in conditions.items():
        cells, allowed = _cells(index[column]), set(values)
        rows = [row for row in rows if cells[row] in allowed]
    columns = [_cells(index[name]) for name in _COLUMNS]
    fields = (tuple(column[row] for column in columns) for row in rows)
    series = [
        Series(str(uid), str(patient), str(modality), int(files), round(float(megabytes) * BYTES_PER_MEGABYTE))
        for uid, patient, modality, files, megabytes in fields
    ]
    if not series:
        raise UserError("series.filter must select a series", dict(conditions), "Correct the manifest")
    return SeriesList(client.get_idc_version(), tuple(sorted(series, key=lambda s: (s.patient, s.uid))))


def _cells(column: Any) -> list[Any]:
    """A column as a list; the Arrow arrays of pandas are slow to iterate and quick to convert."""
    return list(column.tolist() if hasattr(column, "tolist") else column)


def as_text(listed: SeriesList) -> str:
    """The content of a series file: per patient rows of UID, modality, number of files and bytes, a patient a line."""
    patients: dict[str, list[list[str | int]]] = {}
    for series in listed.series:
        patients.setdefault(series.patient, []).append([series.uid, series.modality, series.files, series.size])
    lines = ",\n".join(f"  {json.dumps(patient)}: {json.dumps(rows)}" for patient, rows in patients.items())
    return f'{{\n "idc_version": {json.dumps(listed.idc_version)},\n "patients": {{\n{lines}\n }}\n}}\n'


def write_series(manifest: Manifest, folder: Path) -> Path:
    """Write the series file that a manifest names into a folder.

    Raises:
        UserError: the manifest states no series; as :func:`idc_client` and :func:`select_series`.
    """
    if "series" not in manifest.fields:
        raise UserError("a manifest must state the series filter", manifest.name, "Add series.file and series.filter")
    stated = manifest.fields["series"]
    return write_text(folder / stated["file"], as_text(select_series(idc_client(), stated["filter"])))


def main(names: Sequence[str]) -> None:
    """Write the series files of named manifests beside them."""
    for name in names:
        manifest = load_manifest(name)
        if not isinstance(manifest.folder, Path):
            raise UserError("series files are written in a checkout of the repository", str(manifest.folder))
        print(write_series(manifest, manifest.folder))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as problem:
        sys.exit(f"error: {problem}")
