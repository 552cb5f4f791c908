"""``python -m medical_diffusion data {list,describe,phantoms,download,verify}``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from medical_diffusion.cli import GROUPS
from medical_diffusion.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from medical_diffusion.data.acquisition.plan import DownloadPlan

PHANTOMS = 16
PLANAR_SIZE, VOLUME_SIZE = (64, 64, 1), (32, 32, 32)
_PASSED_ON = (
    "dataset_dir",
    "manifest",
    "datalist",
    "class_folders",
    "classes",
    "image_column",
    "label_column",
    "subject_column",
    "channels",
    "headers_only",
    "allow_planar",
)

Commands = argparse._SubParsersAction


def add_parser(subparsers: Commands[argparse.ArgumentParser]) -> None:
    """Add the group's commands."""
    group = subparsers.add_parser(
        "data",
        help=GROUPS["data"],
        description="The data sets of the two papers: what they are and how to obtain them, phantoms in their place, "
        "and a check of any folder before training on it.",
    )
    commands = group.add_subparsers(dest="command", required=True, metavar="{list,describe,phantoms,download,verify}")
    commands.add_parser("list", help="the data sets that have a manifest").set_defaults(run=_list)
    _add_describe(commands)
    _add_phantoms(commands)
    _add_download(commands)
    _add_verify(commands)


def _add_describe(commands: Commands[argparse.ArgumentParser]) -> None:
    describe = commands.add_parser(
        "describe", help="licence, steps to access, layout, classes, counts and split of a data set"
    )
    describe.add_argument("name", metavar="NAME", help="a data set of `data list`, or the path of a manifest")
    describe.set_defaults(run=_describe)


def _add_phantoms(commands: Commands[argparse.ArgumentParser]) -> None:
    phantoms = commands.add_parser(
        "phantoms",
        help="procedural images that stand in for a data set",
        description="Writes phantoms as NIfTI or PNG files with labels.csv where they have classes. A seed is a "
        "phantom: the same command writes the same files.",
    )
    phantoms.add_argument("name", metavar="NAME", help="a data set of `data list`, or a kind of phantom")
    phantoms.add_argument("--output", metavar="DIR", required=True, help="folder that gets a folder of phantoms")
    phantoms.add_argument("--count", metavar="N", type=int, default=PHANTOMS, help=f"how many (default {PHANTOMS})")
    sizes = f"{_text(PLANAR_SIZE)} for images, {_text(VOLUME_SIZE)} for volumes"
    phantoms.add_argument(
        "--size", metavar=("H", "W", "D"), type=int, nargs=3, help=f"voxels (default {sizes}); D is 1 for images"
    )
    phantoms.add_argument("--seed", metavar="S", type=int, default=0, help="first seed (default 0)")
    phantoms.set_defaults(run=_phantoms)


def _add_download(commands: Commands[argparse.ArgumentParser]) -> None:
    download = commands.add_parser(
        "download",
        help="fetch a data set that needs no account from the NCI Imaging Data Commons",
        description="Shows licence and size and asks before it starts. The same command continues an interrupted "
        'download. Needs the extra: python -m pip install "medical_diffusion[download]"',
    )
    download.add_argument("name", metavar="NAME", help="lidc_idri or duke_breast_mri; the others: `data describe NAME`")
    download.add_argument("--output", metavar="DIR", required=True, help="folder that gets a folder a patient")
    download.add_argument("--patients", metavar="N", type=int, help="only the first N patients")
    download.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="print what would be fetched, fetch nothing"
    )
    download.add_argument("--yes", action="store_true", help="start without asking")
    download.set_defaults(run=_download)


def _add_verify(commands: Commands[argparse.ArgumentParser]) -> None:
    verify = commands.add_parser("verify", help="read every header and voxel and list all faults at once")
    verify.add_argument("--dataset_dir", required=True, help="folder of the volumes or images")
    verify.add_argument("--manifest", help="data manifest: a path, or the name of a packaged one such as lidc_idri")
    verify.add_argument("--datalist", help="CSV or JSON that names images, classes, subjects and splits")
    verify.add_argument(
        "--class-folders", "--class_folders", action="store_true", help="the folders in dataset_dir are the classes"
    )
    verify.add_argument("--classes", nargs="+", help="the classes in the order of their labels")
    for role, meaning in (("image", "images"), ("label", "classes"), ("subject", "patients")):
        verify.add_argument(
            f"--{role}-column", f"--{role}_column", help=f"column of the datalist that names the {meaning}"
        )
    verify.add_argument(
        "--images", action="store_true", help="flat images such as PNG, not volumes; a manifest of images implies it"
    )
    verify.add_argument("--channels", type=int, choices=(1, 3), help="1 for grey images, 3 for colour; default: either")
    verify.add_argument(
        "--convert-channels",
        "--convert_channels",
        type=str.lower,
        choices=("true", "false"),
        nargs="?",
        const="true",
        default="false",
        help="the other kind is welcome, to be converted",
    )
    verify.add_argument("--headers-only", action="store_true", help="leave the voxels unread")
    verify.add_argument("--allow-planar", action="store_true", help="volume files of depth 1 are welcome")
    verify.set_defaults(run=_verify)


def _list(arguments: argparse.Namespace) -> None:
    from medical_diffusion.data.listing.describe import summary
    from medical_diffusion.data.listing.manifest import load_manifest, packaged_manifests

    rows = [summary(load_manifest(name)) for name in packaged_manifests()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))


def _describe(arguments: argparse.Namespace) -> None:
    from medical_diffusion.data.listing.describe import describe_manifest
    from medical_diffusion.data.listing.manifest import load_manifest

    print(describe_manifest(load_manifest(arguments.name)))


def _phantoms(arguments: argparse.Namespace) -> None:
    from medical_diffusion.data.phantoms import PHANTOM_KINDS, PHANTOM_LABELS, write_phantoms

    name = _phantom_kind(arguments.name)
    kind = PHANTOM_KINDS[name]
    size = arguments.size or (PLANAR_SIZE if kind.planar else VOLUME_SIZE)
    folder = write_phantoms(name, arguments.output, arguments.count, size, arguments.seed)
    print(folder)
    if kind.classes:
        print(f"classes {', '.join(kind.classes)}: {folder / PHANTOM_LABELS}")


def _phantom_kind(name: str) -> str:
    """A kind of phantom, by its own name or by the data set that it stands in for."""
    from medical_diffusion.data.listing.manifest import load_manifest, packaged_manifests
    from medical_diffusion.data.phantoms import PHANTOM_KINDS

    if name in PHANTOM_KINDS:
        return name
    if name not in packaged_manifests():
        known = {*PHANTOM_KINDS, *packaged_manifests()}
        raise UserError("phantoms are named by a data set or a kind", name, did_you_mean(name, known))
    kind = load_manifest(name).fields.get("phantoms")
    if kind not in PHANTOM_KINDS:
        remedy = f"Known: {', '.join(sorted(PHANTOM_KINDS))}"
        raise UserError(f"the phantoms of {name} must be a known kind", str(kind), remedy)
    return str(kind)


def _download(arguments: argparse.Namespace) -> None:
    from medical_diffusion.data.acquisition.download import IdcStore, download
    from medical_diffusion.data.acquisition.plan import plan_download
    from medical_diffusion.data.listing.manifest import load_manifest
    from medical_diffusion.files import check_writable

    plan = plan_download(load_manifest(arguments.name), arguments.output, arguments.patients)
    print(plan)
    if arguments.dry_run:
        print(plan.table())
        return
    if plan.remaining:
        plan.check_disk()
        check_writable(plan.output_dir)  # before anybody is asked
        store = IdcStore()
        if not arguments.yes and not _agreed(plan):
            print("Nothing was fetched.")
            return
        download(plan, store)
    options = f"--manifest {plan.manifest.name} --dataset_dir {plan.output_dir}"
    print(f"Complete. Next: python -m medical_diffusion data verify {options}")


def _agreed(plan: DownloadPlan) -> bool:
    """Whether the person at the keyboard wants it; an end of input (Ctrl-D) is a no.

    Raises:
        UserError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise UserError("a download must be agreed to", "no terminal to ask at", "Pass --yes to accept the licence")
    count = len(plan.remaining)
    try:
        answer = input(f"Fetch {count} series under this licence? [y/N] ")
    except EOFError:
        print()
        return False
    return answer.strip().lower() in ("y", "yes")


def _verify(arguments: argparse.Namespace) -> int:
    from medical_diffusion.data.listing.manifest import load_manifest
    from medical_diffusion.data.verify import verify_dataset

    options = {name: value for name, value in vars(arguments).items() if name in _PASSED_ON}
    options["convert_channels"] = arguments.convert_channels == "true"
    is_planar = arguments.images or (arguments.manifest is not None and load_manifest(arguments.manifest).planar)
    report = verify_dataset(planar=is_planar, **options)
    print(report)
    return 1 if report.faults else 0


def _text(size: tuple[int, ...]) -> str:
    return " ".join(map(str, size))
