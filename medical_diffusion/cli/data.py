"""``python -m medical_diffusion data verify``."""

from __future__ import annotations

import argparse

from medical_diffusion.cli import GROUPS


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group's commands."""
    group = subparsers.add_parser("data", help=GROUPS["data"], description=GROUPS["data"].capitalize() + ".")
    commands = group.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="read every header and voxel and list all faults at once")
    verify.add_argument("--dataset_dir", required=True, help="folder of the volumes")
    verify.add_argument("--manifest", help="data manifest: a path, or the name of a packaged one such as lidc_idri")
    verify.add_argument("--headers-only", action="store_true", help="leave the voxels unread")
    verify.add_argument("--allow-planar", action="store_true", help="images of depth 1 are welcome")
    verify.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from medical_diffusion.data.verify import verify_dataset

    report = verify_dataset(
        arguments.dataset_dir,
        arguments.manifest,
        headers_only=arguments.headers_only,
        allow_planar=arguments.allow_planar,
    )
    print(report)
    return 1 if report.faults else 0
