"""Downloads: planned before the first byte, whole or absent, continued; from a stand-in of the object store."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import voxels, write_dicom
from object_store import ObjectStore, idc_index_module, served

from medical_diffusion.__main__ import main
from medical_diffusion.data import build_datalist, find_volumes, load_manifest
from medical_diffusion.data.acquisition.download import IdcStore, download
from medical_diffusion.data.acquisition.plan import measure, plan_download
from medical_diffusion.data.acquisition.series_index import as_text, select_series, write_series
from medical_diffusion.data.listing.series import Series, load_series
from medical_diffusion.errors import UserError

PATIENTS = ("P1", "P2", "P3")
FILTER = {"collection_id": ["small"], "Modality": ["CT"]}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    """A series of five slices for each of three patients, keys ``UID/file``."""
    objects = {}
    for number, patient in enumerate(PATIENTS, start=1):
        uid = f"1.2.{number}"
        folder = write_dicom(tmp_path / "bucket" / uid, voxels(seed=number), np.eye(4), uid, patient)
        objects |= {f"{uid}/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    with served(ObjectStore(objects)) as running:
        yield running


@pytest.fixture
def index(store: ObjectStore) -> dict[str, list[Any]]:
    """Columns as of idc-index, with series that are not wanted."""
    rows = [("small", "CT", f"1.2.{n}", patient) for n, patient in enumerate(PATIENTS, start=1)]
    rows += [("small", "SEG", "1.2.8", "P1"), ("other", "CT", "1.2.9", "P1")]
    columns = list(zip(*reversed(rows), strict=True))
    names = ("collection_id", "Modality", "SeriesInstanceUID", "PatientID")
    table: dict[str, list[Any]] = {name: list(column) for name, column in zip(names, columns, strict=True)}
    sizes = [store.prefix(f"{uid}/") for uid in table["SeriesInstanceUID"]]
    return table | {"instanceCount": [len(s) for s in sizes], "series_size_MB": [sum(s.values()) / 1e6 for s in sizes]}


@pytest.fixture
def manifest(tmp_path: Path, store: ObjectStore, index: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest with its file of series, and the stand-in of idc-index in place."""
    monkeypatch.setitem(sys.modules, "idc_index", idc_index_module(store, index))
    fields = {
        "name": "small",
        "title": "Small",
        "version": "1",
        "licence": "CC BY 3.0",
        "source": {"url": "https://example.org", "citation": "Someone (2020)"},
        "access": ["Apply.", "Wait."],
        "modality": "CT",
        "layout": {"images": ["P*/**/*.dcm"], "subject": "(P\\d)"},
        "series": {"file": "small.series.json", "filter": FILTER},
    }
    path = tmp_path / "small.json"
    path.write_text(json.dumps(fields))
    write_series(load_manifest(path), tmp_path)
    return path


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_index_is_filtered_and_ordered(manifest: Path) -> None:
    listed = load_series(load_manifest(manifest))
    assert listed is not None
    assert [(s.patient, s.uid, s.modality, s.files) for s in listed.series] == [
        (patient, f"1.2.{n}", "CT", 5) for n, patient in enumerate(PATIENTS, start=1)
    ]
    assert listed.idc_version == "v0"
    assert as_text(listed) == (manifest.parent / "small.series.json").read_text(encoding="utf-8")


def test_filters_that_select_nothing(store: ObjectStore, index: dict[str, Any]) -> None:
    client = idc_index_module(store, index).IDCClient()
    with pytest.raises(UserError, match=r"columns of idc-index. Received: Colour"):
        select_series(client, {"Colour": ["blue"]})
    with pytest.raises(UserError, match=r"must select a series.*'MR'"):
        select_series(client, {"Modality": ["MR"]})


def test_sizes_below_a_gigabyte_are_told_in_megabytes(tmp_path: Path) -> None:
    said = str(plan_download(load_manifest("duke_breast_mri"), tmp_path, patients=1))
    assert "1 series of 1 patient," in said and "size       5.6 MB" in said
    assert "size       30.8 GB" in str(plan_download(load_manifest("duke_breast_mri"), tmp_path))


def test_a_file_that_is_gone_while_a_folder_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(7))
    (tmp_path / "b.dcm").symlink_to(tmp_path / "moved.dcm")
    assert measure(tmp_path) == (1, 7)
    assert measure(tmp_path / "none") == (0, 0)


def test_what_arrives_is_what_the_manifest_finds(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    download(plan_download(load_manifest(manifest), output), IdcStore(), progress=False)
    assert {path.split("/")[1] for path in files_of(output)} == {"CT_1.2.1", "CT_1.2.2", "CT_1.2.3"}
    data = build_datalist(output, manifest)
    assert {item["subject"] for item in data.train + data.validation} == set(PATIENTS)


def test_a_finished_series_is_not_fetched_again(manifest: Path, store: ObjectStore, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = plan_download(load_manifest(manifest), output, patients=2)
    assert [series.patient for series in first.remaining] == ["P1", "P2"]
    download(first, IdcStore(), progress=False)
    store.requested.clear()
    rest = plan_download(load_manifest(manifest), output)
    assert [series.patient for series in rest.remaining] == ["P3"]
    assert "there      2 series; 1 series" in str(rest)
    download(rest, IdcStore(), progress=False)
    assert {key.split("/")[0] for key in store.requested} == {"1.2.3"}
    assert not plan_download(load_manifest(manifest), output).remaining


def test_an_interrupted_download_continues(manifest: Path, store: ObjectStore, tmp_path: Path) -> None:
    output = tmp_path / "out"
    store.broken = {sorted(store.prefix("1.2.2/"))[3]}
    with pytest.raises(UserError, match=r"arrive complete. Received: 4 of 5 files, \d+ of \d+ bytes of 1.2.2 \(P2\)"):
        download(plan_download(load_manifest(manifest), output), IdcStore(), progress=False)
    assert {path.rsplit("/", 1)[0] for path in files_of(output)} == {"P1/CT_1.2.1", "P3/CT_1.2.3", ".part/P2/CT_1.2.2"}
    assert len(find_volumes(output, load_manifest(manifest))) == 2  # the part is no data
    store.broken.clear()
    store.requested.clear()
    download(plan_download(load_manifest(manifest), output), IdcStore(), progress=False)
    assert len(store.requested) == 1
    assert not (output / ".part").exists()
    assert len(files_of(output)) == 15


def test_an_interruption_from_the_keyboard_keeps_what_arrived(
    manifest: Path, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medical_diffusion.data.acquisition.download.BATCH_BYTES", 1)  # a series a batch

    class Impatient(IdcStore):
        def fetch(self, series: Sequence[Series], folder: Path) -> None:
            super().fetch(series, folder)
            if series[0].patient == "P2":
                raise KeyboardInterrupt

    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        download(plan_download(load_manifest(manifest), output), Impatient(), progress=False)
    store.requested.clear()
    plan = plan_download(load_manifest(manifest), output)
    assert [series.patient for series in plan.remaining] == ["P2", "P3"]
    download(plan, IdcStore(), progress=False)
    assert {key.split("/")[0] for key in store.requested} == {"1.2.3"}  # P2 was complete, and only moved
    assert len(files_of(output)) == 15


def test_the_bar_follows_the_bytes(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medical_diffusion.data.acquisition.download.WATCH_SECONDS", 0.01)
    shown: list[int] = []
    monkeypatch.setattr("medical_diffusion.data.acquisition.download._show", lambda bar, done: shown.append(done))

    class Slow(IdcStore):
        def fetch(self, series: Sequence[Series], folder: Path) -> None:
            for one in series:
                super().fetch([one], folder)
                time.sleep(0.1)

    plan = plan_download(load_manifest(manifest), tmp_path / "out")
    download(plan, Slow())
    assert shown == sorted(shown)
    assert shown[-1] == plan.listed.size
    assert len({done for done in shown if 0 < done < plan.listed.size}) >= 2


def test_damaged_folders_are_replaced(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    download(plan_download(load_manifest(manifest), output), IdcStore(), progress=False)
    victim = next((output / "P1").rglob("*.dcm"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-10])
    plan = plan_download(load_manifest(manifest), output)
    assert [series.patient for series in plan.remaining] == ["P1"]
    download(plan, IdcStore(), progress=False)
    assert victim.read_bytes() == whole


def test_series_that_the_index_does_not_know(manifest: Path, index: dict[str, Any], tmp_path: Path) -> None:
    index["SeriesInstanceUID"].remove("1.2.1")
    with pytest.raises(UserError, match=r"must have the series. Received: .*\(1.2.1 not in the index\)"):
        download(plan_download(load_manifest(manifest), tmp_path / "out"), IdcStore(), progress=False)


def test_disk_too_small_is_told_before_the_first_byte(
    manifest: Path, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=100))
    with pytest.raises(UserError, match=r"disk must hold the download.*MB needed, 0.0 MB free at .*--patients 20"):
        download(plan_download(load_manifest(manifest), tmp_path / "out"), IdcStore(), progress=False)
    assert store.requested == []
    assert not (tmp_path / "out").exists()


def test_without_idc_index_the_extra_is_named(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "idc_index", None)
    with pytest.raises(UserError, match=r"needs the package idc-index.*medical_diffusion\[download\]"):
        IdcStore()


def test_missing_series_file_and_bad_numbers(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"patients must be 1 or more. Received: 0"):
        plan_download(load_manifest(manifest), tmp_path, patients=0)
    (tmp_path / "small.series.json").write_text('{"patients": 3}')
    with pytest.raises(UserError, match=r"needs its file of series.*small.series.json"):
        plan_download(load_manifest(manifest), tmp_path)
    with pytest.raises(UserError, match=r"airogs is not in the Imaging Data Commons.*\(1\) Log in at.*\(3\) Unpack"):
        plan_download(load_manifest("airogs"), tmp_path)


def run(manifest: Path, *options: str) -> int:
    return main(["data", "download", str(manifest), "--output", str(manifest.parent / "out"), *options])


def test_command_shows_and_asks(
    manifest: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(manifest, "--dry-run", "--patients", "2") == 0
    said = capsys.readouterr().out
    for part in ("licence    CC BY 3.0", "cite       Someone", "2 series of 2 patients, 10 files", "GB free"):
        assert part in said
    assert "out/P2/CT_1.2.2  5 files" in said and "P3" not in said
    assert run(manifest) == 1
    assert "no terminal to ask at. Pass --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert run(manifest) == 0
    assert "Nothing was fetched" in capsys.readouterr().out

    def end_of_input(question: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end_of_input)
    assert run(manifest) == 0
    assert "Nothing was fetched" in capsys.readouterr().out
    assert store.requested == []
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert run(manifest, "--patients", "1") == 0
    assert {key.split("/")[0] for key in store.requested} == {"1.2.1"}
    monkeypatch.undo()


def test_a_folder_that_cannot_be_written_is_told_before_anybody_is_asked(
    manifest: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (manifest.parent / "out").write_text("a file where the folder should be")
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail("asked"))
    assert run(manifest) == 1
    assert "the output folder must be writable" in capsys.readouterr().err
    assert store.requested == []


def test_command_with_yes(manifest: Path, store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(manifest, "--yes") == 0
    assert len(store.requested) == 15
    assert f"data verify --manifest small --dataset_dir {manifest.parent / 'out'}" in capsys.readouterr().out
    assert run(manifest, "--yes") == 0
    assert len(store.requested) == 15


@pytest.mark.parametrize(
    ("name", "patients", "series", "gigabytes"), [("lidc_idri", 1010, 1018, 128.4), ("duke_breast_mri", 922, 922, 30.8)]
)
def test_packaged_series(name: str, patients: int, series: int, gigabytes: float) -> None:
    manifest = load_manifest(name)
    listed = load_series(manifest)
    assert listed is not None
    assert len(listed.patients) == manifest.counts["subjects"] == patients
    assert len({s.uid for s in listed.series}) == len(listed.series) == manifest.counts["volumes"] == series
    assert round(listed.size / 1e9, 1) == gigabytes
    assert {s.modality for s in listed.series} == set(manifest.dicom_modalities)
    assert all(s.files > 1 and s.size > 0 for s in listed.series)
    plan = plan_download(manifest, "somewhere", patients=1)
    folder = plan.folder_of(plan.remaining[0]).relative_to("somewhere")
    assert manifest.example == f"{folder.as_posix()}/*.dcm"


@pytest.mark.parametrize("name", ["lidc_idri", "duke_breast_mri"])
def test_packaged_series_are_those_of_the_index(name: str, tmp_path: Path) -> None:
    """In a process of its own: idc-index reads its files in the locale's encoding, which ITK changes."""
    if importlib.util.find_spec("idc_index") is None:
        pytest.skip("the extra download is not installed")
    program = (
        "import sys, pathlib; from medical_diffusion.data.acquisition import series_index as made\n"
        "made.write_series(made.load_manifest(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-X", "utf8", "-c", program, name, str(tmp_path)], check=True)
    stated, selected = (
        json.loads((folder / f"{name}.series.json").read_text(encoding="utf-8"))["patients"]
        for folder in (load_manifest(name).folder, tmp_path)
    )
    assert {(patient, row[0]) for patient, rows in selected.items() for row in rows} == {
        (patient, row[0]) for patient, rows in stated.items() for row in rows
    }
