"""``python -m medical_diffusion data verify``."""

from __future__ import annotations

import argparse

from medical_diffusion.cli import GROUPS

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
    "convert_channels",
    "headers_only",
    "allow_planar",
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group's commands."""
    group = subparsers.add_parser("data", help=GROUPS["data"], description=GROUPS["data"].capitalize() + ".")
    commands = group.add_subparsers(dest="command", required=True)
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
    verify.add_argument("--images", action="store_true", help="flat images such as PNG, not volumes")
    verify.add_argument("--channels", type=int, choices=(1, 3), help="1 for grey images, 3 for colour; default: either")
    verify.add_argument(
        "--convert-channels",
        "--convert_channels",
        action="store_true",
        help="the other kind is welcome, to be converted",
    )
    verify.add_argument("--headers-only", action="store_true", help="leave the voxels unread")
    verify.add_argument("--allow-planar", action="store_true", help="volume files of depth 1 are welcome")
    verify.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from medical_diffusion.data.verify import verify_dataset

    options = {name: value for name, value in vars(arguments).items() if name in _PASSED_ON}
    report = verify_dataset(planar=arguments.images, **options)
    print(report)
    return 1 if report.faults else 0
