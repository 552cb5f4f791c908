"""Reuse by strangers: metadata, packing, download over loopback, inference from an empty folder with the wheel only."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_runs import BUNDLE, ROOT, TINY_TRAINING, command_line, run
from monai.bundle import verify_metadata

from medical_diffusion.bundle.inspection import inspect_bundle
from medical_diffusion.bundle.pack import pack_bundle
from medical_diffusion.bundle.render import bundle_names

SCHEMA = ROOT / "tests" / "schemas" / "monai_bundle_metadata.json"


@pytest.mark.parametrize("name", bundle_names())
def test_verify_metadata(name: str) -> None:
    verify_metadata(meta_file=str(BUNDLE.parent / name / "configs" / "metadata.json"), filepath=str(SCHEMA))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Zip of a bundle that was trained, tiny, in its own folder."""
    import shutil

    bundle = tmp_path / "source" / "lidc_ldm"
    shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("models", "data", "cache", "logs", "reports"))
    run("train", bundle=bundle, **TINY_TRAINING)
    return pack_bundle(bundle, tmp_path / "served")


@pytest.fixture
def served(packed: Path) -> Iterator[str]:
    """Address of the zip on a loopback server."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(packed.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{packed.name}"
    server.shutdown()
    server.server_close()


def test_downloaded_bundle_samples_elsewhere_with_the_wheel_only(served: str, packed: Path, tmp_path: Path) -> None:
    elsewhere, site = tmp_path / "elsewhere", tmp_path / "site"
    elsewhere.mkdir()
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    built = subprocess.run([*wheel, "-w", str(tmp_path), str(ROOT)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(next(tmp_path.glob("*.whl")))], check=True, capture_output=True)

    download = command_line("download", "--name", "lidc_ldm", "--url", served, "--bundle_dir", "here", cwd=elsewhere)
    assert download.returncode == 0, download.stderr
    config = Path("here") / "lidc_ldm" / "configs" / "inference.json"
    sample = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config), "--num_samples", "1",
         "--output_dir", "out", "--device", "cpu"],
        cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert sample.returncode == 0, sample.stderr[-2000:]
    assert (elsewhere / "out" / "sample_0.nii.gz").is_file()
    where = [sys.executable, "-c", "import medical_diffusion; print(medical_diffusion.__file__)"]
    found = subprocess.run(
        where, cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    assert str(site) in found.stdout
    assert (site / "medical_diffusion" / "data_manifests" / "lidc_idri.json").is_file()
    assert (site / "medical_diffusion" / "bundle" / "templates" / "bundles" / "lidc_ldm.json").is_file()


def test_own_bundle_executes_only_this_package_and_its_foundations() -> None:
    targets = {item.text for item in inspect_bundle(BUNDLE) if item.kind == "target"}
    assert targets
    allowed = ("medical_diffusion.", "torch.", "monai.")
    monai_names = {t for t in targets if "." not in t}
    assert all(t.startswith(allowed) for t in targets - monai_names)
    import monai.bundle.config_item

    located = monai.bundle.config_item.ComponentLocator(excludes=None)
    assert all(located.get_component_module_name(t) for t in monai_names)
