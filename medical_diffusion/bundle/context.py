"""The running bundle: its folder, its configuration, and overrides that nothing would read.

Configs are plain MONAI configs, so the workflow that evaluates an expression is found by walking up the call frames:
that works for the command line and for calls from Python alike, from any current directory.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import ensure_tuple

from medical_diffusion.errors import UserError, did_you_mean

META_KEY = "_meta_"


def running_workflow() -> ConfigWorkflow | None:
    """The MONAI workflow whose configuration is being evaluated, if there is one."""
    return _search_frames(lambda local: _as(local.get("self"), ConfigWorkflow))


def running_parser() -> ConfigParser | None:
    """The parser whose configuration is being evaluated, if there is one."""
    workflow = running_workflow()
    return (
        workflow.parser if workflow is not None else _search_frames(lambda local: _as(local.get("self"), ConfigParser))
    )


def config_item(config_id: str, default: Any = None) -> Any:
    """The unresolved configuration text under ``config_id``, overrides included."""
    parser = running_parser()
    return default if parser is None else parser.get(config_id, default)


def bundle_root() -> str:
    """Absolute path of the bundle that is being run: the folder above its ``configs``."""
    workflow = running_workflow()
    if workflow is not None:
        configs = Path(workflow.config_root_path)
    else:
        file = _search_frames(lambda local: local.get("config_file"))
        configs = Path(ensure_tuple(file)[0]).parent if file else Path.cwd() / "configs"
    return str(configs.resolve().parent)


def reject_unknown_overrides() -> None:
    """Compare the running configuration with its files.

    Raises:
        UserError: an override names nothing that the files hold (MONAI would ignore it without a word).
    """
    workflow = running_workflow()
    if workflow is None:
        return
    known: dict[str, Any] = {}
    for file in _config_files(workflow):
        _merge(known, ConfigParser.load_config_file(str(file)))
    added_by_tracking = {k for settings in DEFAULT_EXP_MGMT_SETTINGS.values() for k in settings["configs"]}
    _compare(workflow.parser.get(), known, "", added_by_tracking | {META_KEY})


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _compare(running: Any, known: Any, path: str, allowed: set[str]) -> None:
    if not isinstance(running, dict) or not isinstance(known, dict):
        return
    if "_target_" in running and running.get("_target_") != known.get("_target_"):
        return  # a replaced component brings its own arguments
    for key, value in running.items():
        if key in known:
            _compare(value, known[key], f"{path}{key}#", allowed)
        elif key not in allowed and not ("_target_" in running and _accepts(running["_target_"], key)):
            raise UserError(
                "an override must name an option or an item of the bundle's configuration",
                f"--{path}{key}",
                did_you_mean(key, [k for k in known if k != META_KEY]),
            )


def _accepts(target: str, argument: str) -> bool:
    """Whether the component named ``target`` takes ``argument``: an argument its config left at the default."""
    import inspect
    from pydoc import locate

    component = locate(target) if isinstance(target, str) else target
    if argument in ("_disabled_", "_mode_", "_desc_", "_requires_"):
        return True
    try:
        parameters = inspect.signature(component).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return True
    return argument in parameters


def _config_files(workflow: ConfigWorkflow) -> list[Path]:
    """The files that were merged; where the caller kept no record of them, all files of the folder."""

    def find(local: dict[str, Any]) -> list[Path] | None:
        file = local.get("config_file") or (local.get("_args") or {}).get("config_file")
        return [Path(f) for f in ensure_tuple(file)] if file else None

    return _search_frames(find) or sorted(Path(workflow.config_root_path).glob("*.json"))


def _search_frames(pick: Any) -> Any:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        found = pick(frame.f_locals)
        if found is not None:
            return found
        frame = frame.f_back
    return None


def _as(value: Any, kind: type) -> Any:
    return value if isinstance(value, kind) else None
