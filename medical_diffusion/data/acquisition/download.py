"""Fetching the series of a plan in batches; the same call continues an interrupted one.

The store is passed in: :class:`IdcStore` is the public buckets of the NCI Imaging Data Commons by way of ``idc-index``,
whose s5cmd fetches many files at once and takes up the ones that are missing. A call of it searches the whole index
(about ten seconds), hence the batches.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from medical_diffusion.data.acquisition.plan import DownloadPlan, is_whole, measure
from medical_diffusion.data.acquisition.series_index import idc_client
from medical_diffusion.data.listing.series import Series
from medical_diffusion.errors import UserError
from medical_diffusion.files import check_writable

#: A batch ends with the series that reaches this size.
BATCH_BYTES = 2_000_000_000
WATCH_SECONDS = 2.0


class SeriesStore(Protocol):
    """Where series are fetched from."""

    def fetch(self, series: Sequence[Series], folder: Path) -> None:
        """Put the files of each series into ``folder/PATIENT/MODALITY_UID``, those that are missing there.

        Raises:
            UserError: the store does not know a series or cannot be reached.
        """


class IdcStore:
    """The Imaging Data Commons, without an account.

    Raises:
        UserError: idc-index is not installed.
    """

    def __init__(self) -> None:
        self._client = idc_client()
        logging.getLogger("idc_index").setLevel(logging.ERROR)  # it tells of each batch's sizes otherwise

    def fetch(self, series: Sequence[Series], folder: Path) -> None:
        """As of :class:`SeriesStore`; s5cmd repeats what fails, and :func:`download` tells what is missing still."""
        try:
            self._client.download_from_selection(
                downloadDir=str(folder),
                seriesInstanceUID=[one.uid for one in series],
                dirTemplate="%PatientID/%Modality_%SeriesInstanceUID",
                use_s5cmd_sync=True,
                show_progress_bar=False,
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(
                "the Imaging Data Commons must have the series",
                f"{', '.join(one.uid for one in series)} ({error})",
                "Check the connection and run the same command again; a newer idc-index may know the series",
            ) from error


def download(plan: DownloadPlan, store: SeriesStore, progress: bool = True) -> None:
    """Fetch the remaining series of a plan.

    They gather in a hidden folder, and each is moved to its place when it is complete.

    Args:
        progress: show a progress bar, in bytes.

    Raises:
        UserError: not enough space, a folder that cannot be written, or a series that did not come completely;
            what has arrived stays and is not fetched again.
    """
    plan.check_disk()
    check_writable(plan.output_dir)
    done = plan.listed.size - plan.remaining_size
    bar = tqdm(
        total=plan.listed.size,
        initial=done,
        desc=plan.manifest.name,
        unit="B",
        unit_scale=True,
        disable=not progress,
    )
    with bar:
        for batch in _batches(plan.remaining):
            with _watched(bar, done, plan, batch):
                _fetch(plan, store, batch)
            done += sum(series.size for series in batch)
            _show(bar, done)
    shutil.rmtree(plan.part_dir, ignore_errors=True)


def _batches(series: Sequence[Series]) -> Iterator[list[Series]]:
    batch: list[Series] = []
    for one in series:
        batch.append(one)
        if sum(member.size for member in batch) >= BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _fetch(plan: DownloadPlan, store: SeriesStore, batch: Sequence[Series]) -> None:
    try:
        plan.part_dir.mkdir(exist_ok=True)
        missing = [series for series in batch if not is_whole(plan.part_of(series), series)]
        if missing:
            store.fetch(missing, plan.part_dir)
        incomplete = [series for series in batch if not is_whole(plan.part_of(series), series)]
        for series in batch:
            if series not in incomplete:
                _put_in_place(plan.part_of(series), plan.folder_of(series))
    except OSError as error:
        raise UserError(
            f"the download could not be written: {error.strerror or error}",
            str(plan.output_dir),
            "Free some space or choose another folder, and run the same command again",
        ) from error
    if incomplete:
        first = incomplete[0]
        files, size = measure(plan.part_of(first))
        others = f" and {len(incomplete) - 1} more series" if len(incomplete) > 1 else ""
        raise UserError(
            "a series must arrive complete",
            f"{files} of {first.files} files, {size} of {first.size} bytes of {first.uid} ({first.patient}){others}",
            "Check the connection and run the same command again: what has arrived is kept",
        )


def _put_in_place(part: Path, folder: Path) -> None:
    """Move a complete series to its place; what was there is the rest of a damaged one."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, folder)


@contextmanager
def _watched(bar: tqdm, done: int, plan: DownloadPlan, batch: Sequence[Series]) -> Iterator[None]:
    """Move the bar with the bytes that arrive meanwhile."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            places = (folder for series in batch for folder in (plan.part_of(series), plan.folder_of(series)))
            _show(bar, done + sum(measure(folder)[1] for folder in places))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(bar: tqdm, done: int) -> None:
    bar.n = done
    bar.refresh()
