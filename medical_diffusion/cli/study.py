"""``python -m medical_diffusion study {compression,label-efficiency,sampling-steps}``."""

from __future__ import annotations

import argparse
import logging
import sys

from medical_diffusion.cli import GROUPS
from medical_diffusion.errors import UserError

Commands = argparse._SubParsersAction


def add_parser(subparsers: Commands[argparse.ArgumentParser]) -> None:
    """Add the group's commands."""
    group = subparsers.add_parser("study", help=GROUPS["study"], description=GROUPS["study"].capitalize() + ".")
    commands = group.add_subparsers(required=True, metavar="{compression,label-efficiency,sampling-steps}")
    _add_compression(commands)
    _add_label_efficiency(commands)
    _add_sampling_steps(commands)


def _add_compression(commands: Commands[argparse.ArgumentParser]) -> None:
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


def _add_label_efficiency(commands: Commands[argparse.ArgumentParser]) -> None:
    study = commands.add_parser(
        "label-efficiency",
        help="segmentation by pre-training and share of labels: Dice table, figure, overlays",
        description="Fine-tunes a segmentation network without pre-training and from each file of pre-trained weights, "
        "on growing shares of the labelled subjects, and evaluates all on the same test subjects (Figures 4 and 5 of "
        "Medical Diffusion). The same command continues an interrupted study; more arms, fractions or repeats extend "
        "it.",
        epilog="Any option of the bundle may follow, for all runs: --steps 2000 --image_size 96 ...",
    )
    study.add_argument("--dataset_dir", metavar="DIR", help="labelled volumes; phantoms with masks without it")
    study.add_argument(
        "--pretrained",
        metavar="[NAME=]PATH",
        action="append",
        default=[],
        help="pre-trained weights, an arm; may be given several times. The arm 'none' is always there",
    )
    study.add_argument(
        "--fractions",
        metavar="P",
        type=float,
        nargs="+",
        default=[5, 10, 20, 40, 80, 100],
        help="percent of the labelled training subjects (default 5 10 20 40 80 100)",
    )
    study.add_argument("--repeats", metavar="N", type=int, default=3, help="seeds of subset and training (default 3)")
    study.add_argument("--output", metavar="DIR", default="label_efficiency_study", help="folder of the study")
    study.add_argument("--shard", metavar="I/N", help="run the I-th of N parts only, such as 2/4; all write one folder")
    study.add_argument(
        "--bundle",
        metavar="NAME_OR_PATH",
        default="swin_unetr_finetune",
        help="bundle that fine-tunes (default swin_unetr_finetune)",
    )
    study.add_argument(
        "--keep-weights", "--keep_weights", action="store_true", help="leave the weights of finished runs"
    )
    study.set_defaults(run=run_label_efficiency, options=[])  # what is left over is the bundle's


def _add_sampling_steps(commands: Commands[argparse.ArgumentParser]) -> None:
    study = commands.add_parser(
        "sampling-steps",
        help="quality of samples against steps and seconds, for several samplers of one trained run",
        description="Draws the same seeds of one trained model with each sampler and number of steps and measures them "
        "against real images: table and figure of KID, FID and sharpness against steps and seconds. The same command "
        "continues an interrupted study; samples that are there are not drawn again.",
        epilog="Any option of the bundle's inference may follow, for all arms: --device cuda --batch_size 8 ...",
    )
    add = study.add_argument
    add("--bundle", metavar="NAME_OR_PATH", default="lidc_ldm", help="bundle (default lidc_ldm)")
    add("--run_dir", metavar="DIR", required=True, help="of the trained run")
    add("--dataset_dir", metavar="DIR", help="what the run was trained on, if inference asks for it")
    add("--real", metavar="DIR", required=True, help="real images, held out; prepared as in training")
    add("--samplers", metavar="NAME", nargs="+", default=["ddpm", "ddim", "dpmpp"], help="default ddpm ddim dpmpp")
    add("--steps", metavar="N", type=int, nargs="+", default=[10, 20, 50, 100], help="default 10 20 50 100")
    add("--num_samples", metavar="N", type=int, default=50, help="of each sampler and number of steps (default 50)")
    add("--features", metavar="random|inception|medicalnet|FILE", default="random", help="extractor (default random)")
    add("--weights", metavar="FILE", help="published weights of inception or medicalnet")
    add("--output", metavar="DIR", default="sampling_steps_study", help="folder of the study")
    study.set_defaults(run=run_sampling_steps, options=[])  # what is left over is the bundle's


def run_compression(arguments: argparse.Namespace) -> None:
    """Run the study."""
    from medical_diffusion.cli.bundle import find_bundle
    from medical_diffusion.studies.compression import run_compression_study

    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    options = bundle_options(arguments.options)
    if arguments.dataset_dir is not None:
        options["dataset_dir"] = arguments.dataset_dir
    run_compression_study(find_bundle(arguments.bundle), arguments.output, arguments.compressions, options)


def run_label_efficiency(arguments: argparse.Namespace) -> None:
    """Run the study."""
    from medical_diffusion.cli.bundle import find_bundle
    from medical_diffusion.studies.label_efficiency import parse_shard, run_label_efficiency_study

    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    logging.getLogger("medical_diffusion").setLevel(logging.INFO)
    options, shard = bundle_options(arguments.options), parse_shard(arguments.shard)
    table = run_label_efficiency_study(
        find_bundle(arguments.bundle),
        arguments.output,
        arguments.pretrained,
        arguments.fractions,
        arguments.repeats,
        shard,
        arguments.dataset_dir,
        options,
        arguments.keep_weights,
    )
    print(table.read_text(encoding="utf-8"))


def run_sampling_steps(arguments: argparse.Namespace) -> None:
    """Run the study."""
    from medical_diffusion.cli.bundle import find_bundle
    from medical_diffusion.studies.sampling_steps import run_sampling_study

    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    options = bundle_options(arguments.options)
    table = run_sampling_study(
        find_bundle(arguments.bundle),
        arguments.run_dir,
        arguments.real,
        arguments.output,
        arguments.samplers,
        arguments.steps,
        arguments.num_samples,
        arguments.features,
        arguments.weights,
        arguments.dataset_dir,
        options,
    )
    print(table.read_text(encoding="utf-8"))


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
