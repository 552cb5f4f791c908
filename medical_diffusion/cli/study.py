"""``python -m medical_diffusion study {compression}``."""

from __future__ import annotations

import argparse
import logging
import sys

from medical_diffusion.cli import GROUPS
from medical_diffusion.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group's commands."""
    group = subparsers.add_parser("study", help=GROUPS["study"], description=GROUPS["study"].capitalize() + ".")
    commands = group.add_subparsers(required=True, metavar="{compression}")
    compression = commands.add_parser(
        "compression",
        help="autoencoders of several compressions side by side: reconstruction table and figure",
        description="Trains the autoencoder at each compression on the same volumes and draws real volumes, "
        "reconstructions and close-ups (Figure 3 of Medical Diffusion) with the reconstruction table. The same command "
        "continues an interrupted study.",
        epilog="Any option of the bundle may follow, for all arms: --image_size 64 --autoencoder_steps 2000 ...",
    )
    compression.add_argument("--dataset_dir", metavar="DIR", help="volumes; phantoms without it")
    compression.add_argument("--output", metavar="DIR", default="compression_study", help="folder of the study")
    compression.add_argument("--bundle", metavar="NAME_OR_PATH", default="lidc_ldm", help="bundle (default lidc_ldm)")
    compression.add_argument(
        "--compressions", metavar="C", type=int, nargs="+", default=[4, 8], help="factors per axis (default 4 8)"
    )
    compression.set_defaults(run=run_compression, options=[])  # what is left over is the bundle's


def run_compression(arguments: argparse.Namespace) -> None:
    """Run the study."""
    from medical_diffusion.cli.bundle import find_bundle
    from medical_diffusion.studies.compression import run_compression_study

    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    options = bundle_options(arguments.options)
    if arguments.dataset_dir is not None:
        options["dataset_dir"] = arguments.dataset_dir
    run_compression_study(find_bundle(arguments.bundle), arguments.output, arguments.compressions, options)


def bundle_options(words: list[str]) -> dict[str, str]:
    """``--name value`` pairs.

    Raises:
        UserError: a name without a value, or a value without a name.
    """
    names, values = words[::2], words[1::2]
    for name, value in zip(names, [*values, None], strict=False):
        if not name.startswith("--") or value is None or value.startswith("--"):
            raise UserError("options of the bundle come as pairs: --name value", " ".join(words))
    return {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}
