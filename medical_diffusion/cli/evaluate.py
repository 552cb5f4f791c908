"""``python -m medical_diffusion evaluate``: judge any folder of synthetic images against real ones."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medical_diffusion.cli import GROUPS
from medical_diffusion.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from medical_diffusion.data.image_set import ImageSet
    from medical_diffusion.evaluation.report.utility import Labels

SEEDS = 2**32
"""Seeds are below it: all that draw take these."""
MEMORISED = 1
"""Exit status when more samples are copies than allowed."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help=GROUPS["evaluate"],
        description="Fidelity, diversity and memorisation of synthetic images or volumes of any generator, "
        "against real ones: report.html, report.md, report.json, figures.csv and pictures. "
        "What was computed once is kept in the cache: a second run takes it from there, an interrupted one goes on.",
        epilog="Example: python -m medical_diffusion evaluate --real held_out/ --synthetic ours=samples/ "
        "--synthetic gan=stylegan/ --train training/ --output report/ --fail-if-memorised 0.01",
    )
    add = parser.add_argument
    add("--real", metavar="DIR", required=True, help="real images: held out, or a reference batch (the report says)")
    add("--synthetic", metavar="[NAME=]DIR", required=True, action="append", help="samples; may be given again")
    add("--train", metavar="DIR", help="what the generators were trained on; needed to look for copies")
    add("--output", metavar="DIR", required=True, help="folder of the report")
    add(
        "--features",
        metavar="random|inception|medicalnet|FILE",
        default="random",
        help="extractor (default random: an untrained network that needs no weights; comparable within reports only)",
    )
    add("--weights", metavar="FILE", help="published weights of inception or medicalnet")
    add("--image_size", metavar="N", type=int, nargs="+", help="resize to H W [D], or one number")
    add("--crop_size", metavar="N", type=int, nargs="+", help="centre crop or pad before; 0 leaves an axis")
    add(
        "--intensity",
        choices=("auto", "stored", "window", "percentile", "minmax"),
        default="auto",
        help="map to [-1, 1]; stored and window are the same for all, percentile and minmax each image's own "
        "(default: window where given, stored for images, percentile for volumes)",
    )
    add("--window", metavar="V", type=float, nargs=2, help="limits in stored units, such as -1000 1000 for CT")
    add("--channels", type=int, choices=(1, 3), help="convert to grey (1) or RGB (3)")
    add("--max_images", metavar="N", type=int, help="of each set at most, drawn at random; all training images count")
    add(
        "--labels",
        metavar="[NAME=]folders|sidecars|FILE",
        action="append",
        default=[],
        help="classes, for the utility test: the folders of the images, the JSON beside each of our samples, or a CSV "
        "that lies in each folder; of all sets, or of one: real=, train= or a generator's name",
    )
    add("--utility_steps", metavar="N", type=int, help="training steps of each classifier of that test (default 400)")
    add("--cache_dir", metavar="DIR", help="features and figures are kept there (default OUTPUT/cache)")
    add("--seed", type=int, default=0, help="of everything drawn (default 0)")
    add("--device", default="cpu", help="of the extractor (default cpu)")
    add(
        "--fail-if-memorised",
        metavar="RATE",
        type=float,
        help="exit status 1 when the copy rate of a generator exceeds it, such as 0.01",
    )
    parser.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Write the report; 1 when the gate fires."""
    from medical_diffusion.bundle.settings import select_device
    from medical_diffusion.data.image_set import check_alike
    from medical_diffusion.evaluation.features import create_extractor
    from medical_diffusion.evaluation.input_checks import check_apart, spacing_warnings
    from medical_diffusion.evaluation.report import measure, write_report
    from medical_diffusion.evaluation.report.tables import table
    from medical_diffusion.files import check_writable

    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    limit = arguments.fail_if_memorised
    if limit is not None and not 0 <= limit < 1:
        raise UserError("--fail-if-memorised must be a rate in [0, 1)", limit)
    if limit is not None and arguments.train is None:
        raise UserError("--fail-if-memorised needs the training images", "no --train", "Pass --train DIR")
    if not 0 <= arguments.seed < SEEDS:
        raise UserError("--seed must be a whole number in [0, 2^32)", arguments.seed)
    device = select_device(arguments.device)
    folders = named_folders(arguments.synthetic)
    train_folder = {} if arguments.train is None else {"train": arguments.train}
    cache_dir = Path(arguments.cache_dir or Path(arguments.output) / "cache")
    check_apart(
        {"output": arguments.output, "cache_dir": cache_dir},
        [arguments.real, *folders.values(), *train_folder.values()],
    )
    output, cache = check_writable(arguments.output), check_writable(cache_dir)
    labels = labels_of_sets(arguments.labels, ["real", *folders, *train_folder])
    if arguments.utility_steps is not None and not labels:
        raise UserError("--utility_steps belongs to the utility test", "no --labels", "Pass --labels")

    def read(name: str, folder: str, limit: int | None, option: str) -> ImageSet:
        return _read(arguments, folder, cache, limit, labels.get(name), option)

    real = read("real", arguments.real, arguments.max_images, "--real")
    generators = {name: read(name, folder, arguments.max_images, "--synthetic") for name, folder in folders.items()}
    train = read("train", arguments.train, None, "--train") if train_folder else None
    sets = {"real": real, **generators, **({"train": train} if train is not None else {})}
    check_alike(list(sets.values()))
    extractor = create_extractor(arguments.features, 2 if real.is_planar else 3, real.channels, arguments.weights)
    for name, images in sets.items():
        if images.ignored:
            print(f"not counted: {len(images.ignored)} files of {name}, the first {images.ignored[0]}")
        if images.is_relative:
            print(f"{name}: its JSON say that values are relative, 0 to 1, and they are read with that window")
        images.check_voxels()
        for fault in images.unreadable:
            print(f"left out: {fault}")
    measurement = measure(
        real,
        generators,
        extractor,
        train,
        {**real.protocol, "max_images": arguments.max_images, "labels": sorted(set(labels.values()))},
        cache,
        arguments.seed,
        device,
        _say,
        _labels(sets, labels, arguments.utility_steps),
    )
    report = measurement.report
    report["warnings"] += spacing_warnings(real, generators)
    report["folders"] = {name: str(images.folder) for name, images in sets.items()}
    report["intensity"] = {name: images.protocol["intensity"] for name, images in sets.items()}
    report["relative"] = [name for name, images in sets.items() if images.is_relative]
    report["unreadable"] = {name: [str(fault) for fault in images.unreadable] for name, images in sets.items()}
    report["ignored"] = {name: [str(left) for left in images.ignored] for name, images in sets.items()}
    report["constant"] = {name: images.constant for name, images in sets.items()}
    report["duplicates"] = {name: images.duplicates for name, images in sets.items()}
    path = write_report(output, measurement, real, generators, train)
    print("\n".join("  ".join(row) for row in table(report)))
    for name, generator in report["generators"].items():
        print(f"{name}: {generator['verdict']}")
    for warning in report["warnings"]:
        print(f"warning: {warning}")
    print(f"report: {path}")
    memorisation = report.get("memorisation", {})
    return gate(report["generators"], limit, report["unreadable"], report["ignored"], memorisation)


def gate(
    generators: Mapping[str, Any],
    limit: float | None,
    unreadable: Mapping[str, Sequence[str]],
    ignored: Mapping[str, Sequence[str]],
    memorisation: Mapping[str, Any] | None = None,
) -> int:
    """Exit status: 1, with a sentence on stderr, when a generator copies more than ``limit`` or was not seen whole.

    Where the rate is within the limit but the upper end of its interval is not, a warning says so; the status stays 0.

    Args:
        generators: of ``report.json``.
        limit: of the copy rate; None lets everything pass.
        unreadable: samples of each set that could not be read, and why.
        ignored: files of each set that were not counted, and why.
        memorisation: of ``report.json``; where the gate fires, the share of strangers that count as copies too is told.
    """
    if limit is None:
        return 0
    status = 0
    for name, generator in generators.items():
        entry = generator["figures"]["copy_rate"]
        if missed := unreadable.get(name):
            sentence = f"{len(missed)} samples of {name} could not be read, so it is not known whether they are copies"
            print(f"not released: {sentence}. Repair or remove them", file=sys.stderr)
            status = MEMORISED
        if left := ignored.get(name):
            sentence = f"{len(left)} files of {name} were not counted, the first {left[0]}"
            print(f"not released: {sentence}. Move them out of its folder", file=sys.stderr)
            status = MEMORISED
        if entry["value"] is None:
            print(f"not released: copies of {name} could not be counted: {entry['reason']}", file=sys.stderr)
            status = MEMORISED
        elif entry["value"] > limit:
            sentence = f"{100 * entry['value']:.2f} % of its samples are copies of training images"
            print(f"memorised: {name}: {sentence}, more than the {100 * limit:g} % allowed", file=sys.stderr)
            if memorisation and memorisation["false_alarms"]["high"] > limit:
                print(f"  {_alarms(memorisation)}. Look at the nearest pairs", file=sys.stderr)
            status = MEMORISED
        elif entry["high"] > limit:
            print(f"warning: {name}: {_unproven(entry, limit)}", file=sys.stderr)
    return status


def _alarms(memorisation: Mapping[str, Any]) -> str:
    entry = memorisation["false_alarms"]
    ends = " to ".join(f"{100 * entry[end]:.2f}" for end in ("low", "high"))
    share = f"{100 * entry['value']:.2f} % count as copies too (95 % interval {ends} %)"
    return f"of {entry['n']} {memorisation['strangers']} {share}"


def _unproven(entry: Mapping[str, Any], limit: float) -> str:
    from medical_diffusion.evaluation.copy_rate import samples_to_prove

    needed = samples_to_prove(limit)
    remedy = "no number of samples can" if needed is None else f"{needed} samples without any copy would"
    return (
        f"{entry['n']} samples can not prove a copy rate of at most {100 * limit:g} %: the interval of "
        f"{100 * entry['value']:.2f} % reaches {100 * entry['high']:.2f} %; {remedy}"
    )


def named_folders(given: list[str]) -> dict[str, str]:
    """Folders by name: ``NAME=DIR``, or the folder's own name.

    Raises:
        UserError: a name twice, or one that the report uses itself.
    """
    folders: dict[str, str] = {}
    for text in given:
        name, separator, folder = text.partition("=")
        if not separator or Path(text).exists():
            name, folder = Path(text).resolve().name, text
        if name in folders or name in ("real", "train") or not name:
            raise UserError("generators need different names", name, "Pass --synthetic NAME=DIR")
        folders[name] = folder
    return folders


def labels_of_sets(given: list[str], sets: list[str]) -> dict[str, str]:
    """Where the classes of each set stand: ``WHERE`` for all sets, ``NAME=WHERE`` for one, which goes first.

    Raises:
        UserError: a name that is no set, or a set twice.
    """
    of_all: list[str] = []
    of_one: dict[str, str] = {}
    for text in given:
        name, separator, where = text.partition("=")
        if not separator or Path(text).exists():
            of_all.append(text)
        elif name not in sets:
            remedy = did_you_mean(name, sets)
            raise UserError("labels are given for real, train or the name of a generator", name, remedy)
        elif name in of_one:
            raise UserError("labels of a set are given once", f"{name} twice")
        else:
            of_one[name] = where
    if len(of_all) > 1:
        raise UserError("labels of all sets are given once", ", ".join(of_all), "Name the set: --labels NAME=FILE")
    return {name: where for name in sets for where in [of_one.get(name, *of_all)] if where is not None}


def _labels(sets: Mapping[str, ImageSet], where: Mapping[str, str], steps: int | None) -> Labels | None:
    from medical_diffusion.evaluation.report.utility import STEPS, Labels

    of = {name: [sets[name].class_names[n] for n in sets[name].labels] for name in where}
    return Labels(of, STEPS if steps is None else steps) if where else None


def _read(
    arguments: argparse.Namespace, folder: str, cache: Path, limit: int | None, labels: str | None, option: str
) -> ImageSet:
    from medical_diffusion.data.image_set import ImageSet

    sizes = {}
    for size in ("image_size", "crop_size"):
        value = getattr(arguments, size)
        sizes[size] = value[0] if value is not None and len(value) == 1 else value
    return ImageSet(
        folder,
        arguments.intensity,
        arguments.window,
        channels=arguments.channels,
        labels=labels,
        limit=limit,
        seed=arguments.seed,
        cache_dir=cache,
        check_voxels=False,
        option=option,
        **sizes,
    )


def _say(what: str) -> None:
    print(f"... {what}", flush=True)
