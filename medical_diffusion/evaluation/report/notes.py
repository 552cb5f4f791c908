"""Sentences of a report: what a reader must know beside the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medical_diffusion.evaluation.report.nearness import nearness_note


def notes(report: Mapping[str, Any]) -> list[str]:
    """Sentences that a reader must know beside the table."""
    extractor = report["protocol"]["extractor"]
    found = [f"Real images: {report['real']['images']}; {report['real']['relation']}."]
    found.append("Brackets: 95 % intervals. Real against real: mean ± standard deviation over random halves.")
    found += _count_notes(report["generators"])
    name = extractor.get("name") or extractor.get("extractor") or "given"
    found.append(f"Features: {name}; FID and KID are comparable within reports of the same protocol hash only.")
    if str(name) == "random":
        found.append(
            "The extractor is an untrained network of fixed seed: its FID is not the published Inception FID and can "
            "not be held against figures in papers."
        )
    for key in ("unreadable", "ignored", "constant"):
        for where, files in report.get(key, {}).items():
            if files:
                found.append(f"{len(files)} {key} files in {where}: {', '.join(files[:5])}.")
    for where in report.get("relative", []):
        found.append(
            f"Values of {where} are relative, 0 to 1, by the JSON beside them, and were read with that window."
        )
    for where, count in report.get("duplicates", {}).items():
        if count:
            found.append(f"{count} images of {where} are the same as another one of that set.")
    found.append(utility_note(report["utility"]))
    found += _figure_notes(report["generators"])
    memory = report.get("memorisation", {})
    if "threshold" in memory:
        alarms = memory["false_alarms"]
        found.append(
            f"Copies: threshold {memory['threshold']:.4g} from {memory['strangers']}; false alarms "
            f"{100 * alarms['value']:.2f} % of {alarms['n']} (95 % interval {100 * alarms['low']:.2f} to "
            f"{100 * alarms['high']:.2f} %); {100 * memory['sensitivity_to_planted_copies']:.0f} % of planted copies "
            f"found, AUROC {memory['auroc_planted_copies']:.4f}. copies.csv "
            "names the nearest training image of every sample."
        )
    for name, generator in report["generators"].items():
        if (entry := generator["figures"]["feature_copy_ratio"])["value"] is not None:
            found.append(nearness_note(name, entry))
    return found


def _count_notes(generators: Mapping[str, Any]) -> list[str]:
    """What stands side by side and must not be compared."""
    counts = {name: generator["images"] for name, generator in generators.items()}
    if len(set(counts.values())) < 2:
        return []
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [
        f"The generators have different numbers of images ({listed}): FID, recall and coverage depend on them, so hold "
        "these figures against one another at equal numbers only; the permutation tests take equal numbers."
    ]


def _figure_notes(generators: Mapping[str, Any]) -> list[str]:
    """Notes of single figures, each once, with the figures that it belongs to."""
    figures_of: dict[str, list[str]] = {}
    for generator in generators.values():
        for name, entry in generator["figures"].items():
            if "note" in entry and name not in figures_of.setdefault(entry["note"], []):
                figures_of[entry["note"]].append(name)
    return [f"{', '.join(names)}: {note}." for note, names in figures_of.items()]


def utility_note(utility: Mapping[str, Any]) -> str:
    """What the utility test was, or why there is none."""
    if "reason" in utility:
        return f"Utility was not measured: {utility['reason'].rstrip('.')}."
    size = " x ".join(map(str, utility["size"]))
    relation = "that are no training images" if utility["held_out"] else "(not known whether they were trained on)"
    return (
        f"Utility: AUROC of classifiers of {', '.join(utility['classes'])} on {utility['n_test']} real images "
        f"{relation}, after {utility['steps']} steps on {utility['n_train']} images of each set, at {size}."
    )


def comparison(entry: Mapping[str, Any]) -> str:
    """The p-values of two generators as a sentence."""
    first, second = entry["generators"]
    values = [
        f"{name} p = {entry[f'p_{key}']:.3g} ({' and '.join(map(str, entry[f'n_{key}']))} samples)"
        if entry[f"p_{key}"] is not None
        else f"{name}: {entry['reason']}"
        for name, key in (("FID", "fid"), ("KID", "kid"))
    ]
    several = f" One of {entry['tests']} pairs; p is not corrected for that." if entry["tests"] > 1 else ""
    return f"Do {first} and {second} differ? Permutation test of {', '.join(values)}.{several}"
