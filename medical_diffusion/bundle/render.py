"""Bundles are rendered from templates, so that many alike share one text and a number stands once.

``templates/bundles/<name>.json`` names a family, a paper, and the values of options and metadata that are the bundle's
own; ``templates/<family>/`` holds the configurations and what they have in common, and under ``papers/`` the values of
all bundles of a paper; ``templates/shared/`` holds what all families take where they have none of their own. A test and
``bundle render --check`` tell when a bundle has drifted from its template.
"""

from __future__ import annotations

import json
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from medical_diffusion.errors import UserError
from medical_diffusion.files import write_text

TEMPLATES = files("medical_diffusion.bundle") / "templates"
OPTION_CONFIGS = ("train", "inference", "evaluate")
LINE_WIDTH = 118


def bundle_names() -> list[str]:
    """Names of the bundles that have a template."""
    return sorted(entry.name.removesuffix(".json") for entry in (TEMPLATES / "bundles").iterdir())


def render_bundle(name: str) -> dict[str, str]:
    """Contents of a bundle's rendered files by path relative to the bundle."""
    bundle = _read(TEMPLATES / "bundles" / f"{name}.json")
    family = TEMPLATES / bundle["template"]
    paper = _read(family / "papers" / f"{bundle['paper']}.json")
    bundle["metadata"] = {**paper["metadata"], **bundle["metadata"]}
    bundle["options"] = {**paper["options"], **_over(paper["options"], bundle["options"])}
    options = _options(family, bundle["options"])
    common = _read(family / "common.json")
    rendered = {
        "configs/options.json": _lines(_table(options)),
        "configs/logging.conf": _text(_own_or_shared(family, "logging.conf")),
    }
    for entry in family.iterdir():
        config = entry.name.removesuffix(".json")
        if entry.name.endswith(".json") and config not in ("options", "common", "metadata"):
            rendered[f"configs/{entry.name}"] = _lines(_compose(family, config, common, options, bundle))
    metadata = _read(family / "metadata.json")
    rendered["configs/metadata.json"] = _lines(_fill_metadata(metadata, name, bundle, options))
    filled = {"name": name, "task": bundle["metadata"]["task"], "notes": "\n".join(f"- {n}" for n in bundle["notes"])}
    readme = _text(family / "README.md")
    for key, text in filled.items():
        readme = readme.replace(f"{{{key}}}", text)
    rendered["docs/README.md"] = readme
    rendered["LICENSE"] = _text(_own_or_shared(family, "LICENSE"))
    return rendered


def render_all(check: bool = False, bundles_dir: str | Path = "bundles") -> list[str]:
    """Write every bundle, or only compare.

    Returns:
        the files that differed from their template.

    Raises:
        UserError: there is no ``bundles`` folder here.
    """
    folder = Path(bundles_dir)
    if not folder.is_dir():
        raise UserError("bundles are rendered from the project's root", str(Path.cwd()), "Change to the checkout")
    drifted = []
    for name in bundle_names():
        for relative, text in render_bundle(name).items():
            path = folder / name / relative
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                drifted.append(str(path))
                if not check:
                    write_text(path, text)
    return drifted


def _compose(
    family: Traversable, config: str, common: dict[str, Any], options: dict[str, Any], bundle: dict[str, Any]
) -> dict[str, Any]:
    """One configuration: the options it takes, the common parts it uses, its own items."""
    own = _read(family / f"{config}.json")
    base = config
    if "_extends_" in own:
        base = own.pop("_extends_")
        own = {**_read(family / f"{base}.json"), **own}
    if base not in OPTION_CONFIGS:
        return own
    names = [name for name, option in options.items() if base in option["configs"]]
    used = {key: common[key] for key in own.pop("_use_")}
    composed: dict[str, Any] = {"imports": used.pop("imports"), "bundle_root": used.pop("bundle_root")}
    composed |= {name: None if options[name].get("given") else f"$@defaults['{name}']" for name in names}
    composed |= {"device": own.pop("device"), "phantom_kind": bundle["phantom_kind"], "defaults": own.pop("defaults")}
    composed |= {**used, **own}
    composed["settings"] = {
        **used["settings"],
        "values": {n: f"@{n}" if n != "device" else "$str(@device)" for n in names},
    }
    return composed


_RENDERING = ("configs", "given")
"""What the table says for rendering alone: the configurations that take an option, and whether it is given by the user
or absent (its default is nothing, and the other defaults may depend on it)."""


def _over(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The bundle's ``own`` values; one that it gives for a single profile leaves the other profile's to the paper."""
    merged = {}
    for name, value in own.items():
        common = shared.get(name, {})
        profiles = dict.fromkeys(("phantom", "paper"), common["default"]) if "default" in common else common
        merged[name] = value if "default" in value else {**profiles, **value}
    return merged


def _options(family: Traversable, values: dict[str, Any]) -> dict[str, Any]:
    table = _read(family / "options.json")
    unknown = sorted(set(values) - set(table))
    if unknown:
        raise UserError("a bundle's template may set known options only", unknown)
    return {name: {**option, **values.get(name, {})} for name, option in table.items()}


def _table(options: dict[str, Any]) -> dict[str, Any]:
    return {name: {k: v for k, v in option.items() if k not in _RENDERING} for name, option in options.items()}


def _fill_metadata(
    metadata: dict[str, Any], name: str, bundle: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Shapes of ``network_data_format`` follow from the phantom profile, at which a fresh bundle runs.

    A family states its own format with options by name (``"@image_size"``); without one it is that of latents.
    """
    phantom = {n: o.get("phantom", o.get("default")) for n, o in options.items()}
    own = {**metadata, **bundle["metadata"]}
    formats = _filled(own["network_data_format"], phantom) if "network_data_format" in own else _latent_format(phantom)
    return {**metadata, "name": name, **bundle["metadata"], "network_data_format": formats}


def _filled(content: Any, values: dict[str, Any]) -> Any:
    """``content`` with every text ``"@option"`` replaced by that option's value."""
    if isinstance(content, dict):
        return {key: _filled(value, values) for key, value in content.items()}
    return values[content[1:]] if isinstance(content, str) and content.startswith("@") else content


def _latent_format(phantom: dict[str, Any]) -> dict[str, Any]:
    latent = [s // c if s > 1 else 1 for s, c in zip(phantom["image_size"], phantom["compression"], strict=True)]
    tensor = {
        "type": "image",
        "format": "latent",
        "modality": "n/a",
        "num_channels": phantom["latent_channels"],
        "spatial_shape": latent,
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": False,
        "channel_def": {str(i): f"latent channel {i}" for i in range(phantom["latent_channels"])},
    }
    timesteps = {
        "type": "vector",
        "format": "timestep",
        "modality": "n/a",
        "num_channels": 1,
        "spatial_shape": [],
        "dtype": "long",
        "value_range": [0, phantom["timesteps"]],
        "is_patch_data": False,
        "channel_def": {"0": "timestep"},
    }
    return {"inputs": {"image": tensor, "timesteps": timesteps}, "outputs": {"pred": tensor}}


def _own_or_shared(family: Traversable, file: str) -> Traversable:
    own = family / file
    return own if own.is_file() else TEMPLATES / "shared" / file


def _read(path: Traversable) -> dict[str, Any]:
    return json.loads(_text(path))


def _text(path: Traversable) -> str:
    return path.read_text(encoding="utf-8")


def _lines(content: Any) -> str:
    """JSON with every short container on one line."""
    return _json(content, 0) + "\n"


def _json(content: Any, indent: int) -> str:
    flat = json.dumps(content)
    if not isinstance(content, dict | list) or (len(flat) + indent <= LINE_WIDTH and indent > 0):
        return flat
    pad, end = " " * (indent + 2), " " * indent
    if isinstance(content, dict):
        items = [f"{pad}{json.dumps(k)}: {_json(v, indent + 2)}" for k, v in content.items()]
        return "{\n" + ",\n".join(items) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + _json(v, indent + 2) for v in content) + f"\n{end}]"
