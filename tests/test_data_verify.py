"""Verification: each kind of fault is found, all of them at once, and sound data passes."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from data_files import voxels, write_dicom, write_itk, write_nifti
from PIL import Image
from test_data_manifest import write_manifest

from medical_diffusion.cli.data import add_parser
from medical_diffusion.data import verify_dataset
from medical_diffusion.data.checks import Fault
from medical_diffusion.errors import UserError


def float_voxels() -> np.ndarray:
    return voxels((16, 16, 16)).astype(np.float32)


def write_faulty(root: Path) -> dict[str, str]:
    """One file a fault; the rule that each breaks."""
    array = float_voxels()
    array[1, 2, 3] = np.nan
    write_nifti(root / "nan.nii.gz", array)
    array[1, 2, 3] = np.inf
    write_nifti(root / "inf.nii.gz", array)
    write_nifti(root / "constant.nii.gz", np.full((4, 4, 4), 7, np.int16))
    write_nifti(root / "4d.nii.gz", voxels((4, 4, 4, 3)))
    write_nifti(root / "2d.nii.gz", voxels((8, 8)))
    write_nifti(root / "complex.nii.gz", voxels().astype(np.complex64))
    singular = nibabel.Nifti1Image(voxels(), None)
    singular.header.set_sform(np.diag([1.0, 0.0, 1.0, 1.0]), code=1)
    nibabel.save(singular, root / "singular.nii.gz")
    cut = write_nifti(root / "cut.nii.gz", float_voxels())
    cut.write_bytes(cut.read_bytes()[:-3000])
    short = write_nifti(root / "short.nii", float_voxels())
    short.write_bytes(short.read_bytes()[:-3000])
    (root / "text.nii.gz").write_text("not an image")
    mha = write_itk(root / "cut.mha", voxels((16, 16, 16)), np.eye(4))
    mha.write_bytes(mha.read_bytes()[:-300])
    write_dicom(root / "missing", voxels((6, 7, 8)), np.diag([1, 1, 2.5, 1]), skip=(3, 4))
    two = write_dicom(root / "two_series", voxels(), np.eye(4), uid="1.5.1")
    write_dicom(two, voxels(), np.eye(4), uid="1.5.2")
    repeated = write_dicom(root / "repeated", voxels(), np.eye(4), uid="1.6")
    for file in list(repeated.iterdir()):
        (repeated / f"again_{file.name}").write_bytes(file.read_bytes())
    return {
        "nan.nii.gz": "finite; received 1 of 4096 voxels",
        "inf.nii.gz": "finite; received 1 of 4096 voxels",
        "constant.nii.gz": "constant; received every voxel is 7",
        "4d.nii.gz": "three axes.*4D data",
        "2d.nii.gz": "more than one slice here; received a 2D image",
        "complex.nii.gz": "real numbers; received complex64",
        "singular.nii.gz": "affine must be invertible",
        "cut.nii.gz": "complete",
        "short.nii": "complete",
        "text.nii.gz": "format that its name says",
        "cut.mha": "complete",
        "missing": r"evenly spaced, without a missing slice; received a gap of 7.5 mm after 5 mm .*about 2 missing",
        "two_series": "one series.*1.5.1.*1.5.2",
        "repeated": "no two slices.*5 of 10 slices",
    }


HEADER_FAULTS = {"4d", "2d", "complex", "singular", "cut.nii", "short", "text", "missing", "two_series", "repeated"}


@pytest.mark.parametrize("headers_only", [False, True])
def test_all_faults_at_once(tmp_path: Path, headers_only: bool) -> None:
    expected = write_faulty(tmp_path)
    write_nifti(tmp_path / "sound.nii.gz")
    if headers_only:
        expected = {name: rule for name, rule in expected.items() if name.startswith(tuple(HEADER_FAULTS))}
    report = verify_dataset(tmp_path, headers_only=headers_only, progress=False)
    assert {fault.path.name for fault in report.faults} == set(expected)
    for name, rule in expected.items():
        with pytest.raises(UserError, match=rf"(?s)every volume in .* must be valid.*/{name}: [^\n]*{rule}"):
            report.raise_if_faulty()
    assert all(fault.remedy for fault in report.faults)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    for n in range(25):
        (tmp_path / f"{n}.nii.gz").write_text("no")
    report = verify_dataset(tmp_path, progress=False)
    with pytest.raises(UserError, match=r"(?s)and 5 more.*In all 25 faults") as raised:
        report.raise_if_faulty()
    assert str(raised.value).count("\n- ") == 21
    assert "and 5 more" in str(report)


@pytest.mark.parametrize("headers_only", [False, True])
def test_a_fault_that_many_files_share_is_told_once(tmp_path: Path, headers_only: bool) -> None:
    write_nifti(tmp_path / "sound.nii.gz")
    for n in range(5):
        write_nifti(tmp_path / f"flat{n}.nii.gz", voxels((8, 8), seed=n))
    for n in range(3):
        write_nifti(tmp_path / f"series{n}.nii.gz", voxels((4, 4, 4, 3), seed=n))
    report = verify_dataset(tmp_path, headers_only=headers_only, progress=False)
    assert len(report.faults) == 4 and sum(len(record.faults) for record in report.records) == 8
    flat, *series = report.faults
    assert [fault.path.name for fault in (flat, *series)] == ["flat0.nii.gz", *(f"series{n}.nii.gz" for n in range(3))]
    assert str(flat).startswith(f"5 files ({', '.join(str(tmp_path / f'flat{n}.nii.gz') for n in range(3))}, ...): ")
    with pytest.raises(UserError, match=r"(?s)- 5 files .*In all 4 faults"):
        report.raise_if_faulty()
    for n in range(3):
        (tmp_path / f"series{n}.nii.gz").unlink()
    with pytest.raises(UserError, match=r"more than one slice here.*5 files .*flat2.nii.gz, \.\.\.\): a 2D image"):
        verify_dataset(tmp_path, headers_only=headers_only, progress=False).raise_if_faulty()


@pytest.mark.parametrize(
    ("received", "value"),
    [
        ("/d/a.png: an RGB image", "an RGB image"),
        ("/d/a.png, a flat image of (5, 4)", "a flat image of (5, 4)"),
        ("/d/a.png (it ends (early))", "it ends (early)"),
        ("/d/a.png with 5 pages", "one with 5 pages"),
        ("/d/a.png", "/d/a.png"),
        ("/d/a.png.gz (no header)", "/d/a.png.gz (no header)"),
        ("4 axes", "4 axes"),
    ],
)
def test_a_fault_names_its_file_once(received: str, value: str) -> None:
    fault = Fault.from_error(Path("/d/a.png"), UserError("a rule", received))
    assert fault.value == value


def test_many_colour_images_where_grey_is_asked_for(tmp_path: Path) -> None:
    """Headers alone show a sample, which the one fault says; the remedy is spelt as the command takes it."""
    for n in range(50):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (6, 5, 3), np.uint8)).save(tmp_path / f"{n:02}.png")
    (fault,) = verify_dataset(tmp_path, planar=True, channels=1, progress=False).faults
    assert "50 files (" in str(fault) and "; received an RGB image. Pass --channels 3" in str(fault)
    (fault,) = verify_dataset(tmp_path, planar=True, channels=1, headers_only=True, progress=False).faults
    assert str(fault).startswith("25 files (") and "(25 of 50 RGB files were looked at)" in str(fault)
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    words = ["data", "verify", "--dataset_dir", str(tmp_path), "--images", "--channels", "1"]
    for remedy, faulty in (([], 1), (["--convert_channels", "true"], 0), (["--convert-channels"], 0)):
        arguments = parser.parse_args([*words, *remedy])
        assert arguments.run(arguments) == faulty


def test_sound_data_passes_and_is_summarised(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", voxels((6, 7, 5)), np.diag([1, 1, 2, 1]))
    write_itk(tmp_path / "b.nrrd", voxels((8, 7, 5)), np.eye(4))
    write_dicom(tmp_path / "c", voxels((6, 7, 9)), np.diag([1, 1, 2.5, 1]))
    report = verify_dataset(tmp_path, progress=False)
    report.raise_if_faulty()
    text = str(report)
    for part in ("3 (1 dicom, 1 nifti, 1 nrrd)", "6-8 x 7 x 5-9 voxels", "1 x 1 x 1-2.5 mm", "faults        none"):
        assert part in text
    assert "intensity" in text
    assert "intensity" not in str(verify_dataset(tmp_path, headers_only=True, progress=False))


def test_damaged_gzip_content_is_found_by_its_checksum(tmp_path: Path) -> None:
    """One flipped bit in stored (uncompressed) gzip blocks decodes without complaint, and nibabel reads it."""
    path = write_nifti(tmp_path / "a.nii", voxels((16, 16, 16)))
    content = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    content[-1000] ^= 1
    path.unlink()
    (tmp_path / "a.nii.gz").write_bytes(content)
    report = verify_dataset(tmp_path, progress=False)
    with pytest.raises(UserError, match=r"complete.*a.nii.gz: its gzip checksum does not fit"):
        report.raise_if_faulty()


def test_multi_member_gzip_is_fine(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", voxels((16, 16, 16)))
    content = path.read_bytes()
    path.unlink()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    assert not verify_dataset(tmp_path, progress=False).faults


def test_planar_images_where_they_are_welcome(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", voxels((8, 8)))
    assert not verify_dataset(tmp_path, progress=False, allow_planar=True).faults
    write_nifti(tmp_path / "b.nii.gz", voxels((8, 8, 8)))
    with pytest.raises(UserError, match=r"either images of depth 1 or volumes.*a.nii.gz: 1 of 2"):
        verify_dataset(tmp_path, progress=False, allow_planar=True).raise_if_faulty()


def test_manifest_checksums_and_labels(tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "P1.nii.gz")
    write_nifti(tmp_path / "seg.nii.gz", voxels((3, 3, 3)))
    sha256 = hashlib.sha256(image.read_bytes()).hexdigest()
    sound = write_manifest(tmp_path, files=[{"path": "P1.nii.gz", "sha256": sha256}])
    assert not verify_dataset(tmp_path, sound, progress=False).faults
    wrong = write_manifest(tmp_path, files=[{"path": "P1.nii.gz", "sha256": "0" * 64}])
    with pytest.raises(UserError, match=f"manifest's sha256.*{sha256}"):
        verify_dataset(tmp_path, wrong, progress=False).raise_if_faulty()
    labelled = write_manifest(tmp_path, files=[{"path": "P1.nii.gz", "label": "seg.nii.gz"}])
    with pytest.raises(UserError, match=r"mask must have the shape of its image.*\(3, 3, 3\) for \(6, 7, 5\) of .*P1"):
        verify_dataset(tmp_path, labelled, progress=False).raise_if_faulty()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())

    def run(*options: str) -> int:
        arguments = parser.parse_args(["data", "verify", "--dataset_dir", str(tmp_path), *options])
        return arguments.run(arguments)

    write_nifti(tmp_path / "a.nii.gz")
    assert run() == 0
    assert "faults        none" in capsys.readouterr().out
    write_nifti(tmp_path / "constant.nii.gz", np.zeros((4, 4, 4), np.int16))
    assert run("--headers-only") == 0
    assert run() == 1
    assert "constant.nii.gz: a volume must not be constant" in capsys.readouterr().out
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"must keep its schema"):
        run("--manifest", str(manifest))


def test_real_data_is_sound(data_folder: Path) -> None:
    report = verify_dataset(data_folder / "ct_chest", progress=False)
    report.raise_if_faulty()
    assert len(report.records) == 2
    assert "2 x 2 x 2 mm" in str(report)
    assert not verify_dataset(data_folder / "hippocampus", headers_only=True, progress=False).faults
