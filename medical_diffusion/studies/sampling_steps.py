"""Quality of samples against steps and seconds, for several samplers of one trained run.

Every pair of sampler and steps is a folder of samples with the same seeds, so that the arms differ in nothing else. An
interrupted study continues: samples that are there are not drawn again, and their seconds come from the record that was
written, batch by batch, when they were drawn.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medical_diffusion import __version__
from medical_diffusion.data.image_set import ImageSet
from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.evaluation.features import create_extractor, extract_features
from medical_diffusion.evaluation.input_checks import check_apart, differ
from medical_diffusion.evaluation.report.figures import distance_figures, energies, floor_figures, sharpness_figure
from medical_diffusion.files import check_writable, content_hash, write_json, write_text
from medical_diffusion.pictures import write_png
from medical_diffusion.studies.line_figure import Point, draw_lines
from medical_diffusion.studies.sampling_runner import BundleSampler, Drawn, SampleFormat, SampleRunner
from medical_diffusion.synthesis import intensity_of_samples

logger = logging.getLogger(__name__)

SAMPLERS = ("ddpm", "ddim", "dpmpp")
STEPS = (10, 20, 50, 100)
FIGURES = ("kid", "fid", "precision", "recall", "high_frequency_ratio")
FEWEST_SAMPLES = 4
"""That KID can be computed of."""
OWN_OPTIONS = ("sampler", "num_steps", "num_samples", "output_dir", "run_dir", "dataset_dir")


@dataclass(frozen=True)
class Arm:
    """One sampler with one number of steps; in the order of the samplers, then of the steps."""

    sampler: str
    steps: int

    def __lt__(self, other: Arm) -> bool:
        return (SAMPLERS.index(self.sampler), self.steps) < (SAMPLERS.index(other.sampler), other.steps)

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.sampler}_{self.steps}"


def run_sampling_study(
    bundle: str | Path,
    run_dir: str | Path,
    real_dir: str | Path,
    output_dir: str | Path,
    samplers: Sequence[str] = SAMPLERS,
    steps: Sequence[int] = STEPS,
    num_samples: int = 50,
    features: str = "random",
    weights: str | None = None,
    dataset_dir: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    runner: SampleRunner | None = None,
) -> Path:
    """Draw, measure, and write ``table.md``, ``table.csv``, ``figure.png`` and ``study.json``.

    Arms of an earlier call in the same folder stay in the tables where nothing but samplers and steps differs.

    Args:
        bundle: folder of a bundle with ``configs/inference.json``.
        run_dir: of the trained run.
        real_dir: real images, held out; cropped, resized and mapped to [-1, 1] as in training.
        output_dir: folder of the study; samples lie in ``samples/<sampler>_<steps>``.
        samplers: of ``ddpm``, ``ddim`` and ``dpmpp``.
        steps: of each sampler.
        num_samples: of each arm.
        features: extractor, as :func:`~medical_diffusion.evaluation.features.create_extractor` takes it.
        weights: its file, where it needs one.
        dataset_dir: what the run was trained on, where inference needs it.
        options: options of the bundle's inference for all arms, such as ``device``, ``batch_size`` and ``seed``.
        runner: draws samples; the bundle by default.

    Returns:
        path of ``table.md``.

    Raises:
        UserError: samplers or steps that are none or twice there, more steps than the run has timesteps, fewer than
            four samples, options that the study sets itself, an output inside of the real images, voxels of another
            size than the run's, or what inference and the real images are refused for.
    """
    arms, options = _checked(samplers, steps, num_samples, dict(options or {}))
    check_apart({"output": output_dir}, [real_dir])
    output = check_writable(output_dir)
    runner = runner or BundleSampler(bundle)
    given = {} if dataset_dir is None else {"dataset_dir": str(dataset_dir)}
    common = {**options, **given, "run_dir": str(Path(run_dir).resolve()), "num_samples": num_samples}
    form = runner.prepare(_options(output, arms[0], common))
    most = max(steps)
    if most > form.timesteps:
        raise UserError(f"a sampler takes at most the {form.timesteps} timesteps of training", f"{most} steps")
    images: dict[str, Any] = {
        "image_size": form.image_size[: 2 if form.planar else 3],
        "channels": form.channels,
        "planar": form.planar,
    }
    crop = None if form.crop_size is None else form.crop_size[: 2 if form.planar else 3]
    window = form.window if form.intensity == "window" else None
    real = ImageSet(
        real_dir, form.intensity, window, crop_size=crop, cache_dir=output / "cache", option="--real", **images
    )
    if form.spacing is not None and real.stored_spacing is not None and differ(real.stored_spacing, form.spacing):
        own, wanted = (" x ".join(f"{length:.3g}" for length in s) for s in (real.stored_spacing, form.spacing))
        raise UserError(f"real images must have voxels of the run's spacing, {wanted} mm", f"{own} mm", "Resample them")
    extractor = create_extractor(features, 2 if form.planar else 3, form.channels, weights)
    seed = int(options.get("seed", 0))
    measure = _Measure(real, extractor, output / "cache" / "features", seed)
    common_report = measure.report(Path(real_dir), common, extractor.protocol)
    rows = _finished(output, common_report)
    for arm in arms:
        record = output / "seconds" / f"{arm.name}.json"
        logger.info("%s, %d steps", arm.sampler, arm.steps)
        runner.draw(_options(output, arm, common), _Clock(record))
        samples = _samples(_folder(output, arm), form, images, range(seed, seed + num_samples), output / "cache")
        rows[arm] = {**asdict(arm), "samples": num_samples, **timing(record), "figures": measure(*samples)}
        _write(output, [rows[arm] for arm in sorted(rows)], common_report, measure.floor)
    return output / "table.md"


def _checked(
    samplers: Sequence[str], steps: Sequence[int], num_samples: int, options: dict[str, Any]
) -> tuple[list[Arm], dict[str, Any]]:
    for name in samplers:
        if name not in SAMPLERS:
            raise UserError(f"a sampler must be one of {', '.join(SAMPLERS)}", name, did_you_mean(name, SAMPLERS))
    for what, values in (("samplers", samplers), ("steps", steps)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"a study needs {what}, each once", list(values))
    if min(steps) < 1:
        raise UserError("the number of steps must be at least 1", min(steps))
    if num_samples < FEWEST_SAMPLES:
        raise UserError(f"a study needs at least {FEWEST_SAMPLES} samples of each arm", num_samples)
    own = [name for name in OWN_OPTIONS if name in options]
    if own:
        raise UserError("the study sets these options of the bundle itself", ", ".join(own), "Leave them out")
    return [Arm(sampler, count) for sampler in samplers for count in sorted(steps)], options


def _folder(output: Path, arm: Arm) -> Path:
    return output / "samples" / arm.name


def _options(output: Path, arm: Arm, common: Mapping[str, Any]) -> dict[str, Any]:
    folder = str(_folder(output, arm).resolve())
    return {**common, "sampler": arm.sampler, "num_steps": arm.steps, "output_dir": folder}


def _finished(output: Path, common: Mapping[str, Any]) -> dict[Arm, dict[str, Any]]:
    """Arms of an earlier call that agrees in all but samplers and steps; none, with a line that says so, of another."""
    try:
        before = json.loads((output / "study.json").read_text(encoding="utf-8"))
        rows = {Arm(str(row["sampler"]), int(row["steps"])): row for row in before["arms"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    rows = {arm: row for arm, row in rows.items() if arm.sampler in SAMPLERS}
    now = json.loads(json.dumps({key: value for key, value in common.items() if key != "floor"}))
    if any(before.get(key) != value for key, value in now.items()):
        logger.warning("%d arms of an earlier study here are left out: other images or options", len(rows))
        return {}
    return rows


class _Clock:
    """Appends every batch to a file, which so holds the seconds of all samples however often the study stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, drawn: Drawn) -> None:
        write_json(self.path, [*_batches(self.path), asdict(drawn)])


def _batches(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def timing(record: Path) -> dict[str, Any]:
    """Mean seconds of a sample, of how many, and on which devices; None where none was timed."""
    batches = _batches(record)
    timed = sum(batch["samples"] for batch in batches)
    seconds = sum(batch["seconds"] for batch in batches) / timed if timed else None
    devices = sorted({batch["device"] for batch in batches})
    return {"seconds_per_sample": seconds, "timed_samples": timed, "device": " and ".join(devices)}


def _samples(
    folder: Path, form: SampleFormat, reading: Mapping[str, Any], seeds: range, cache: Path
) -> tuple[ImageSet, list[int]]:
    """The samples of a folder, and which of them have the seeds of the study."""
    intensity, window = intensity_of_samples(form.planar, form.intensity, form.window)
    samples = ImageSet(folder, intensity, window, cache_dir=cache, **reading)
    place = {name.split(".")[0]: n for n, name in enumerate(samples.names)}
    missing = [seed for seed in seeds if f"sample_{seed}" not in place]
    if missing:
        raise UserError("every sample must be there and readable", f"{len(missing)} of {len(seeds)} not in {folder}")
    return samples, [place[f"sample_{seed}"] for seed in seeds]


class _Measure:
    """Figures of samples against the real images."""

    def __init__(self, real: ImageSet, extractor: Any, cache: Path, seed: int) -> None:
        self.real, self.extractor, self.cache, self.seed = real, extractor, cache, seed
        self.features = extract_features(real, extractor, cache, description="Features, real")
        self.energies = energies(real)
        self.floor = floor_figures(self.features, seed=seed, extractor=extractor.name)

    def __call__(self, samples: ImageSet, chosen: Sequence[int]) -> dict[str, Any]:
        features = extract_features(samples, self.extractor, self.cache, description="Features, samples")[list(chosen)]
        figures = distance_figures(self.features, features, seed=self.seed, extractor=self.extractor.name)
        own = np.array(energies(samples))[list(chosen)]
        figures["high_frequency_ratio"] = sharpness_figure(own, self.energies, self.seed)
        return {name: figures[name] for name in FIGURES}

    def report(self, real_dir: Path, common: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, Any]:
        """What all arms have in common."""
        return {
            "real": {
                "folder": str(real_dir),
                "images": len(self.real),
                "protocol": self.real.protocol,
                "content": content_hash(self.real.keys),
            },
            "extractor": dict(protocol),
            "options": dict(common),
            "seed": self.seed,
            "medical_diffusion": __version__,
            "floor": {name: self.floor[name] for name in FIGURES if name in self.floor},
        }


def _write(
    output: Path, rows: Sequence[Mapping[str, Any]], common: Mapping[str, Any], floor: Mapping[str, Any]
) -> None:
    write_json(output / "study.json", {**common, "arms": list(rows)})
    stream = io.StringIO()
    writer = csv.writer(stream)
    ends = ("value", "low", "high")
    fixed = ("sampler", "steps", "samples", "seconds_per_sample", "timed_samples", "device")
    names = [name if end == "value" else f"{name}_{end}" for name in FIGURES for end in ends]
    writer.writerow([*fixed, *names])
    for row in rows:
        writer.writerow(
            [*(row[key] for key in fixed), *(row["figures"][name][end] for name in FIGURES for end in ends)]
        )
    write_text(output / "table.csv", stream.getvalue())
    write_text(output / "table.md", _markdown(rows, common, floor))
    write_png(output / "figure.png", _figure(rows, floor["kid"]["value"]))


def _markdown(rows: Sequence[Mapping[str, Any]], common: Mapping[str, Any], floor: Mapping[str, Any]) -> str:
    head = ["sampler", "steps", "seconds a sample", *FIGURES]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head))]
    for row in rows:
        seconds = "not timed" if row["seconds_per_sample"] is None else f"{row['seconds_per_sample']:.3g}"
        cells = [row["sampler"], str(row["steps"]), seconds, *(_text(row["figures"][name]) for name in FIGURES)]
        lines.append("| " + " | ".join(cells) + " |")
    floors = [
        _text({**floor[name], "low": None}) if floor.get(name, {}).get("value") is not None else "" for name in FIGURES
    ]
    lines.append("| " + " | ".join(["real against real", "", "", *floors]) + " |")
    devices = sorted({row["device"] for row in rows if row["device"]})
    extractor = common["extractor"].get("extractor", "given")
    told = (
        f"{rows[0]['samples']} samples of each, of the same seeds, against {common['real']['images']} real images; "
        f"features: {extractor}; seconds to draw, decode and write on {' and '.join(devices) or 'no device'}. "
        "Intervals are of 95 %."
    )
    return f"# Quality against steps and seconds\n\n{told}\n\n" + "\n".join(lines) + "\n"


def _text(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return f"none: {entry.get('reason', 'not finite')}"
    interval = "" if entry["low"] is None else f" [{entry['low']:.3g}, {entry['high']:.3g}]"
    return f"{entry['value']:.4g}{interval}"


def _figure(rows: Sequence[Mapping[str, Any]], floor: float | None) -> np.ndarray:
    """KID against steps, and against seconds where they were recorded, side by side."""

    def lines(key: str) -> dict[str, list[Point]]:
        names = dict.fromkeys(row["sampler"] for row in rows)
        return {name: [_point(row, key) for row in rows if row["sampler"] == name and row[key]] for name in names}

    steps, seconds = lines("steps"), lines("seconds_per_sample")
    title = "KID to real images with 95 % interval; dashed: real against real"
    places = sorted({row["steps"] for row in rows})
    pictures = [draw_lines(steps, title, "steps", {n: str(n) for n in places}, floor=floor)]
    taken = sorted(p.x for points in seconds.values() for p in points)
    if taken:
        ticks = {value: f"{value:g}" for value in round_numbers(taken[0], taken[-1])}
        pictures.append(draw_lines(seconds, title, "seconds a sample", ticks, floor=floor, dodge=0))
    return np.concatenate(pictures, axis=1)


def _point(row: Mapping[str, Any], key: str) -> Point:
    entry = row["figures"]["kid"]
    return Point(row[key], *(math.nan if entry[end] is None else entry[end] for end in ("value", "low", "high")))


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from the last one up to ``low`` to the first one from ``high``."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    first = max((v for v in values if v <= low), default=values[0])
    last = min((v for v in values if v >= high), default=values[-1])
    return [v for v in values if first <= v <= last]
