"""From the rows of a datalist to image files: paths looked up, each image once, subjects by column or by folder."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from medical_diffusion.data.checks import Fault
from medical_diffusion.data.listing.discovery import is_container
from medical_diffusion.data.listing.tables import ListedImage
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.data.reading.formats import first_channel, is_flat_format, kind_of, stem_of, supported

logger = logging.getLogger(__name__)

_BIDS = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
#: A folder that is called after a patient ("patient00007", "case_12").
_PATIENT_FOLDER = re.compile(r"(?:^|/)((?:patient|subject|case|pat|sub)[-_ ]?\d\w*)/", re.IGNORECASE)


def locate(
    entries: Sequence[ListedImage], table: Path, root: Path, planar: bool = False
) -> tuple[list[VolumeFile], list[Fault]]:
    """The files that a list names; faults for rows whose file is missing, no image, or named before.

    A relative path is looked for below ``root``, then beside the list, each also with nnU-Net's ``_0000``. Without a
    subject column the subject is the BIDS entity or the patient's folder in the path; otherwise each image is a subject
    of its own, called as it is where the folder is searched without a list (``imagesTr/case_1.nii.gz`` is ``case_1``),
    so that both are split alike.

    Args:
        entries: of ``read_table``.
        table: the list's own path.
        root: the dataset's folder.
        planar: flat images count.
    """
    volumes: list[VolumeFile] = []
    faults: list[Fault] = []
    first_place: dict[Path, str] = {}
    found = [_find(entry, entry.path, table, root) for entry in entries]
    own_names = [_own_name(path, root, table.parent) for path, _ in found]
    times = Counter(own_names)
    for entry, (path, fault), own_name in zip(entries, found, own_names, strict=True):
        segmentation = None
        if fault is None and entry.segmentation is not None:
            segmentation, fault = _find(entry, entry.segmentation, table, root)
        kind = "dicom" if path.is_dir() else kind_of(path, planar)
        if fault is None and kind is None:
            fault = _no_image(entry, path, planar)
        earlier = first_place.setdefault(path.resolve(), entry.place)
        if fault is None and earlier != entry.place:
            value = f"{entry.place} names the file of {earlier}"
            fault = Fault(path, f"{table.name} must name each image once", value, "Remove one of the rows")
        if fault is not None or kind is None:
            faults += [fault] if fault is not None else []
            continue
        # one numbering for each of train and test tells nothing of patients: then the folders belong to the name
        subject = entry.subject or _subject(entry.path, path, own_name if times[own_name] == 1 else None)
        volumes.append(
            VolumeFile(
                path,
                subject,
                kind,
                label=segmentation,
                split=entry.split,
                class_name=entry.class_name,
                place=f"{table.name} {entry.place}",
            )
        )
    if all(entry.subject is None for entry in entries):
        count = len({volume.subject for volume in volumes})
        logger.info("%s names no subjects: taking %d of %d images by their paths", table, count, len(volumes))
    return volumes, faults


def _find(entry: ListedImage, name: str, table: Path, root: Path) -> tuple[Path, Fault | None]:
    relative = Path(name).expanduser()
    if not relative.is_absolute() and "\\" in name and not (root / relative).exists():
        relative = Path(name.replace("\\", "/"))
    for folder in (root, table.parent):
        for path in (folder / relative, first_channel(folder / relative)):
            if path.exists():
                return path, None
    value = f"{entry.place}: no such file below {root} or beside the list"
    return root / relative, Fault(root / relative, f"a file that {table.name} names must exist", value, "Fetch it")


def _no_image(entry: ListedImage, path: Path, planar: bool) -> Fault:
    if is_flat_format(path):
        value = f"{entry.place}: a flat image where volumes are asked for"
        return Fault(path, "a volume must have more than one slice here", value, "Use a bundle for images (depth 1)")
    value = f"{entry.place}: {path.suffix or 'no suffix'}"
    return Fault(path, "a file that a datalist names must be an image", value, f"Supported: {supported(planar)}")


def _subject(name: str, path: Path, own_name: str | None) -> str:
    name = name.replace("\\", "/")
    found = _BIDS.search(name) or _PATIENT_FOLDER.search(name)
    if found:
        return found.group(1)
    return own_name if own_name is not None else Path(name).with_name(stem_of(path)).as_posix()


def _own_name(path: Path, *roots: Path) -> str:
    """A path below one of the folders, without its suffix and without folders that name no patient."""
    relative = next((path.relative_to(root) for root in roots if path.is_relative_to(root)), path)
    folders = [part for part in relative.parts[:-1] if not is_container(part)]
    return Path(*folders, stem_of(path)).as_posix()
