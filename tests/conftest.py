"""What every test shares: one thread a worker, fixed seeds, the folder with real images."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Two workers with all cores each would fight for them. Set before torch is imported; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Files of a test run must not depend on what a user configured.
os.environ.pop("MONAI_DATA_DIRECTORY", None)

import torch  # noqa: E402
from monai.utils import set_determinism  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds() -> Iterator[None]:
    """Every test starts from the same random state, whichever ran before it."""
    set_determinism(0)
    yield
    set_determinism(None)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the package logs: a run takes its logger out of the tree."""
    logger = logging.getLogger("medical_diffusion")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder with small real image sets (``<set>/images/*.nii.gz``); tests that ask for it are skipped without it."""
    folder = Path(os.environ.get("MEDICAL_DIFFUSION_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is not a folder; set MEDICAL_DIFFUSION_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished tiny run of both stages of ``lidc_ldm`` on phantoms."""
    from bundle_runs import TINY_TRAINING, run

    folder = tmp_path_factory.mktemp("trained")
    run("train", **TINY_TRAINING, run_dir=str(folder))
    return folder
