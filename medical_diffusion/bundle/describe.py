"""The options of a bundle as a table: name, defaults, unit, meaning."""

from __future__ import annotations

import json
from pathlib import Path

from medical_diffusion.bundle.options import Option, load_options

STAGE_TITLES = {
    "data": "Data and preprocessing",
    "autoencoder": "Stage 1: autoencoder",
    "diffusion": "Stage 2: diffusion",
    "network": "Network",
    "pretraining": "Pre-training",
    "finetuning": "Fine-tuning",
    "run": "Run",
}


def describe_bundle(root: str | Path) -> str:
    """Readable table of the bundle at ``root``.

    Raises:
        UserError: it holds no option table.
    """
    options = load_options(root)
    metadata = json.loads((Path(root) / "configs" / "metadata.json").read_text(encoding="utf-8"))
    lines = [f"{metadata['name']} {metadata['version']}: {metadata['task']}", metadata["description"], ""]
    lines += ["Defaults: on phantoms (no --dataset_dir) | on real volumes (the paper's configuration)"]
    if "profile" in options:
        lines += ["With --profile quick real volumes take the preprocessing of the second and all else of the first."]
    for stage, title in STAGE_TITLES.items():
        chosen = [option for option in options.values() if option.stage == stage]
        lines += ["", title] if chosen else []
        for option in chosen:
            lines += _describe(option)
    return "\n".join(lines)


def _describe(option: Option) -> list[str]:
    phantom, paper = (json.dumps(option.defaults[profile]) for profile in ("phantom", "paper"))
    defaults = paper if phantom == paper else f"{phantom} | {paper}"
    unit = f" [{option.unit}]" if option.unit else ""
    choices = f" ({', '.join(option.choices)})" if option.choices else ""
    return [f"  --{option.name} {defaults.replace('null', 'none')}{unit}", f"      {option.help}{choices}"]
