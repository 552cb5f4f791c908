"""Where the images of a dataset come from: a manifest, a datalist, class folders, or the folder's own layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medical_diffusion.data.checks import Fault
from medical_diffusion.data.listing.class_folders import label_by_folder
from medical_diffusion.data.listing.classes import resolve_classes
from medical_diffusion.data.listing.discovery import check_dataset_dir, scan_volumes
from medical_diffusion.data.listing.entries import locate
from medical_diffusion.data.listing.manifest import Manifest, load_manifest
from medical_diffusion.data.listing.tables import read_table
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.errors import UserError


@dataclass(frozen=True)
class DataSource:
    """One dataset folder and what says which of its files are images.

    Attributes:
        root: the dataset's folder.
        table: path of a datalist.
        columns: names of its image, label and subject columns, ``None`` where they are to be found.
    """

    root: Path
    manifest: Manifest | None
    table: Path | None
    class_folders: bool
    planar: bool
    columns: tuple[str | None, str | None, str | None]

    @classmethod
    def of(
        cls,
        dataset_dir: str | Path,
        manifest: str | Path | None = None,
        datalist: str | Path | None = None,
        class_folders: bool = False,
        planar: bool = False,
        image_column: str | None = None,
        label_column: str | None = None,
        subject_column: str | None = None,
    ) -> DataSource:
        """The source that a user's options describe; a relative ``datalist`` may also lie in ``dataset_dir``.

        Raises:
            UserError: more than one of manifest, datalist and class folders; columns without a datalist; a folder or
                manifest that cannot be used.
        """
        root = check_dataset_dir(dataset_dir)
        given = {"manifest": manifest is not None, "datalist": datalist is not None, "class_folders": class_folders}
        chosen = [name for name, is_given in given.items() if is_given]
        if len(chosen) > 1:
            raise UserError("images come from one of manifest, datalist and class_folders", " and ".join(chosen))
        columns = (image_column, label_column, subject_column)
        named = [name for name in columns if name is not None]
        if named and datalist is None:
            raise UserError("columns are those of a datalist", f"{', '.join(named)} without one", "Pass datalist")
        rules = load_manifest(manifest) if manifest is not None else None
        table = None
        if datalist is not None:
            table = Path(str(datalist)).expanduser()
            table = root / table if not table.exists() and (root / table).is_file() else table
        return cls(root, rules, table, class_folders, planar, columns)

    @property
    def name(self) -> str:
        """What states classes and splits, for messages."""
        if self.table is not None:
            return str(self.table)
        return f"manifest {self.manifest.name}" if self.manifest is not None else str(self.root)

    def scan(self) -> tuple[list[VolumeFile], list[Fault]]:
        """The images, ordered by their paths, and the faults of single files.

        Raises:
            UserError: nothing can be read at all.
        """
        if self.table is not None:
            volumes, faults = locate(read_table(self.table, *self.columns), self.table, self.root, self.planar)
            volumes.sort(key=lambda volume: volume.path.as_posix())
            return volumes, faults
        volumes, faults = scan_volumes(self.root, self.manifest, self.planar)
        if self.class_folders:
            volumes, more = label_by_folder(self.root, volumes)
            faults += more
        return volumes, faults

    def resolve_classes(
        self, volumes: Sequence[VolumeFile], classes: Sequence[str] | None, labels: bool | None
    ) -> tuple[tuple[str, ...], list[int]]:
        """Class names and the class of each volume; the manifest's classes where none are given.

        Labels are demanded where another option asks for them.

        Raises:
            UserError: as of ``classes.resolve_classes``.
        """
        if labels is None and (classes is not None or self.columns[1] is not None or self.class_folders):
            labels = True
        if classes is None and self.manifest is not None and self.manifest.classes is not None:
            classes = self.manifest.classes.names
        return resolve_classes(volumes, classes, labels)

    def relative(self, path: Path) -> str:
        """A path as the fingerprint holds it: relative to the folder, or to the list, so that copies agree."""
        for folder in (self.root, self.table.parent if self.table is not None else self.root):
            if path.is_relative_to(folder):
                return path.relative_to(folder).as_posix()
        return path.as_posix()


def stated_split(volumes: Sequence[VolumeFile]) -> dict[str, str]:
    """Part of each subject where the files state theirs; empty where none does.

    Raises:
        UserError: one subject in two parts; some files state their part and others do not.
    """
    stated: dict[str, str] = {}
    for volume in volumes:
        if volume.split is not None and stated.setdefault(volume.subject, volume.split) != volume.split:
            raise UserError(
                "all volumes of a subject must be in one split",
                f"subject {volume.subject} in {stated[volume.subject]} and {volume.split}"
                + (f" ({volume.place})" if volume.place else ""),
                "Correct the manifest's files, the list or the folders",
            )
    unstated = [volume.path.name for volume in volumes if volume.split is None]
    if stated and unstated:
        rule = "either all files of a manifest or none state their split, and so in folders"
        raise UserError(rule, f"none for {unstated[0]}")
    return stated
