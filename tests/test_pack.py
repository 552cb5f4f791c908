"""Packing: the layout that MONAI downloads, only what belongs in it, the same bytes each time."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from medical_diffusion.bundle.pack import pack_bundle
from medical_diffusion.errors import UserError

METADATA = {"version": "0.1.0", "monai_version": "1.6.1", "pytorch_version": "2.8.0", "numpy_version": "1.26.0"}
PACKED = {
    "LICENSE": b"Apache",
    "configs/train.json": b'{"lr": 1}',
    "configs/train_autoencoder.json": b"{}",
    "configs/inference.yaml": b"a: 1\n",
    "configs/logging.conf": b"[loggers]\n",
    "docs/README.md": b"# Bundle\n",
    "scripts/net.py": b"x = 1\n",
    "preview.png": b"\x89PNG",
}
LEFT_OUT = {
    "models/autoencoder_last.pt": b"state",
    "models/model_best.pt": b"state",
    "models/model_before_20260101_000000/model.pt": b"old",
    "models/.part-1.pt": b"half",
    "cache/latents.bin": b"0",
    "logs/events.out": b"0",
    "data/subject.nii.gz": b"0",
    "samples/sample_0.nii.gz": b"0",
    "scripts/__pycache__/net.cpython-311.py": b"0",
    "configs/.train.json.swp": b"0",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A trained bundle of a few bytes."""
    root = tmp_path / "bundles" / "tiny_ldm"
    for name, content in (PACKED | LEFT_OUT).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    for stage in ("autoencoder", "model"):
        torch.save({"model": {"weight": torch.arange(4.0)}}, root / "models" / f"{stage}.pt")
    return root


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[str]:
    """Address of a loopback server over ``tmp_path / "served"``."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line per request."""

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def expected_names(*stages: str) -> set[str]:
    return {f"tiny_ldm/{name}" for name in [*PACKED, "configs/metadata.json", *(f"models/{s}.pt" for s in stages)]}


def test_the_zip_holds_what_belongs_in_a_bundle_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    path = pack_bundle(bundle, tmp_path / "new" / "out")
    assert path == tmp_path / "new" / "out" / "tiny_ldm.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == expected_names("autoencoder", "model")
        for name, content in PACKED.items():
            assert archive.read(f"tiny_ldm/{name}") == content


def test_the_same_content_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    first = pack_bundle(bundle, tmp_path / "a").read_bytes()
    for path in bundle.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o755)
    assert pack_bundle(bundle, tmp_path / "b").read_bytes() == first


def test_monai_downloads_what_was_packed(bundle: Path, tmp_path: Path, serve: str) -> None:
    pack_bundle(bundle, tmp_path / "served")
    target = tmp_path / "elsewhere"
    target.mkdir()
    url = f"{serve}/tiny_ldm.zip"
    command = [sys.executable, "-m", "monai.bundle", "download", "--name", "tiny_ldm", "--url", url]
    done = subprocess.run([*command, "--bundle_dir", str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {path.relative_to(target).as_posix() for path in (target / "tiny_ldm").rglob("*") if path.is_file()}
    assert found == expected_names("autoencoder", "model")
    for name in found:
        assert (target / name).read_bytes() == (bundle.parent / name).read_bytes()


def test_an_untrained_bundle_packs_without_weights_on_request(bundle: Path, tmp_path: Path) -> None:
    for path in (bundle / "models").glob("*.pt"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"models/model.pt is missing; models/autoencoder.pt is missing.*Train it first"
    ):
        pack_bundle(bundle, tmp_path)
    with zipfile.ZipFile(pack_bundle(bundle, tmp_path, with_weights=False)) as archive:
        assert set(archive.namelist()) == expected_names()


def test_a_bundle_of_one_stage_needs_one_file_of_weights(bundle: Path, tmp_path: Path) -> None:
    (bundle / "configs" / "train_autoencoder.json").unlink()
    (bundle / "models" / "autoencoder.pt").unlink()
    assert pack_bundle(bundle, tmp_path).is_file()


@pytest.mark.parametrize(
    ("absent", "fault"),
    [
        ("LICENSE", "LICENSE is missing"),
        ("configs/train.json", "configs/train.json is missing"),
        ("configs/inference.yaml", "configs/inference.json is missing"),
        ("configs/metadata.json", "configs/metadata.json is missing"),
    ],
)
def test_a_missing_part_is_named(bundle: Path, tmp_path: Path, absent: str, fault: str) -> None:
    (bundle / absent).unlink()
    with pytest.raises(UserError, match=f"must be complete: {fault}"):
        pack_bundle(bundle, tmp_path)


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [("{", "is not JSON"), ("[]", "must be an object"), ('{"version": "1"}', "lacks monai_version, pytorch_version")],
)
def test_metadata_that_monai_cannot_use_is_named(bundle: Path, tmp_path: Path, metadata: str, fault: str) -> None:
    (bundle / "configs" / "metadata.json").write_text(metadata)
    with pytest.raises(UserError, match=f"configs/metadata.json {fault}"):
        pack_bundle(bundle, tmp_path)


def test_a_name_that_monai_would_cut_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="may hold letters, digits"):
        pack_bundle(bundle.rename(bundle.with_name("tiny.ldm v2")), tmp_path)


def test_pickled_code_is_refused(bundle: Path, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), bundle / "models" / "model.pt")
    with pytest.raises(UserError, match=r"tensors and plain values only; model.pt would fetch .*Linear"):
        pack_bundle(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_refused_and_the_old_zip_kept(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        pack_bundle(bundle, tmp_path / "file")
    old = pack_bundle(bundle, tmp_path)
    before = old.read_bytes()
    monkeypatch.setattr("shutil.copyfileobj", disk_full)
    with pytest.raises(UserError, match="the disk is full"):
        pack_bundle(bundle, tmp_path)
    assert old.read_bytes() == before
    assert not list(tmp_path.glob(".part-*"))


def disk_full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_weights_of_a_run_elsewhere_are_packed(bundle: Path, tmp_path: Path) -> None:
    whole = pack_bundle(bundle, tmp_path / "whole").read_bytes()
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for part in ("models", "preview.png"):
        (bundle / part).rename(run_dir / part)
    with pytest.raises(UserError, match=r"models/model.pt is missing.*--run_dir"):
        pack_bundle(bundle, tmp_path / "out")
    assert pack_bundle(bundle, tmp_path / "out", run_dir=run_dir).read_bytes() == whole
