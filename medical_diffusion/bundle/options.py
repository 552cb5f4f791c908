"""A bundle's options: one table, ``configs/options.json``, in which every number stands once.

Each option has a type, a unit, a line of help and a default for each profile: ``phantom`` (no ``dataset_dir``: a small
run on procedural phantoms), ``paper`` (real data) and ``quick``, the small run on real data: the preprocessing of
``paper``, everything else, the image size included, of ``phantom``. Values arrive from the command line as text,
numbers, tuples or lists; :func:`coerce` brings each to its type or says what is wrong.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_diffusion.errors import UserError, did_you_mean

NONE_WORDS = ("none", "null", "")
STATED_PROFILES = ("phantom", "paper")
OPPOSITES = ("LR", "AP", "IS")


@dataclass(frozen=True)
class Option:
    """One option of a bundle.

    Args:
        name: as in the configuration and on the command line.
        type: ``int``, ``float``, ``flag``, ``text``, ``path``, ``size`` (three whole numbers), ``spacing`` (three
            numbers), ``ints``, ``floats``, ``texts``, ``axcodes`` (directions of the three axes) or ``choice``.
        help, unit: what ``bundle describe`` shows.
        defaults: value per profile.
        choices: allowed values of a ``choice``.
        minimum, maximum: bounds of numbers, and of each number in a list.
        optional: whether ``none`` is a value.
        stage: what the value shapes: ``data``, or a part of the method such as ``autoencoder`` (stored with the
            weights), or only the ``run`` itself.
        free: whether inference may differ from training although the value shapes a stage.
    """

    name: str
    type: str
    help: str
    unit: str
    defaults: dict[str, Any]
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    optional: bool = False
    stage: str = "run"
    free: bool = False

    @property
    def fixed(self) -> bool:
        """Whether inference and evaluation must agree with the value that the weights were trained with."""
        return self.stage != "run" and not self.free


def load_options(root: str | Path) -> dict[str, Option]:
    """The options of the bundle at ``root``.

    Raises:
        UserError: there is no ``configs/options.json``.
    """
    path = Path(root) / "configs" / "options.json"
    if not path.is_file():
        raise UserError("a bundle must hold configs/options.json", str(root), "Name the bundle's own folder")
    options = {}
    for name, entry in json.loads(path.read_text(encoding="utf-8")).items():
        default = entry.pop("default", None)
        defaults = {profile: entry.pop(profile, default) for profile in STATED_PROFILES}
        is_preprocessing = entry.get("stage") == "data" and name != "image_size"
        defaults["quick"] = defaults["paper" if is_preprocessing else "phantom"]
        choices = tuple(entry.pop("choices", ()))
        options[name] = Option(name=name, defaults=defaults, choices=choices, **entry)
    return options


def coerce(option: Option, value: Any) -> Any:
    """``value`` as the option's type.

    Raises:
        UserError: it can not be read as that type, is out of bounds, or is not a choice.
    """
    is_choice = isinstance(value, str) and value in option.choices
    if value is None or (isinstance(value, str) and value.strip().lower() in NONE_WORDS and not is_choice):
        if option.optional:
            return None
        raise UserError(f"--{option.name} needs a value: {option.help}", "none")
    try:
        result = _READERS[option.type](value)
    except (TypeError, ValueError, SyntaxError) as error:
        raise UserError(
            f"--{option.name} must be {_KINDS[option.type]} ({option.help})", value, f"For example {_example(option)}"
        ) from error
    _check_bounds(option, result)
    return result


def _check_bounds(option: Option, value: Any) -> None:
    if option.choices and value not in option.choices:
        raise UserError(
            f"--{option.name} must be one of {', '.join(option.choices)}", value, did_you_mean(value, option.choices)
        )
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if option.minimum is not None and number < option.minimum:
            raise UserError(f"--{option.name} must be at least {option.minimum:g} {option.unit}".rstrip(), value)
        if option.maximum is not None and number > option.maximum:
            raise UserError(f"--{option.name} must be at most {option.maximum:g} {option.unit}".rstrip(), value)


def _example(option: Option) -> str:
    default = option.defaults["paper"]
    shown = f'"{json.dumps(default)}"' if isinstance(default, list) else default
    return f"--{option.name} {shown}"


def _int(value: Any) -> int:
    number = float(value)
    if isinstance(value, bool) or number != int(number):
        raise ValueError(value)
    return int(number)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError(value)
    return float(value)


def _flag(value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    key = str(value).lower()
    if key not in words:
        raise ValueError(value)
    return words[key]


def _texts(value: Any) -> list[str]:
    """Names as a list, as a tuple, or as text such as ``[normal, enlarged]``, with or without quotes."""
    if isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]").split(",")
    names = [str(name).strip().strip("'\"") for name in value]
    if not names or not all(names):
        raise ValueError(value)
    return names


def _axcodes(value: Any) -> str:
    """Directions in which the axes H, W, D grow, such as RAS (right, anterior, superior)."""
    codes = str(value).strip().upper()
    pairs = [pair for code in codes for pair in OPPOSITES if code in pair]
    if len(codes) != len(OPPOSITES) or sorted(pairs) != sorted(OPPOSITES):
        raise ValueError(value)
    return codes


def _path(value: Any) -> str:
    return str(Path(str(value)).expanduser().resolve())


def _list_of(read: Callable[[Any], Any], length: int | None = None) -> Callable[[Any], list[Any]]:
    def reader(value: Any) -> list[Any]:
        if isinstance(value, str):
            value = ast.literal_eval(value)
        values = list(value) if isinstance(value, list | tuple) else [value] * (length or 1)
        if length is not None and len(values) != length:
            raise ValueError(value)
        return [read(v) for v in values]

    return reader


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": _int,
    "float": _float,
    "flag": _flag,
    "text": str,
    "choice": str,
    "path": _path,
    "size": _list_of(_int, 3),
    "spacing": _list_of(_float, 3),
    "ints": _list_of(_int),
    "floats": _list_of(_float),
    "texts": _texts,
    "axcodes": _axcodes,
}

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "flag": "true or false",
    "text": "text",
    "choice": "one of its choices",
    "path": "a path",
    "size": "one or three whole numbers (H, W, D)",
    "spacing": "one or three numbers",
    "ints": "a list of whole numbers",
    "floats": "a list of numbers",
    "texts": "a list of names",
    "axcodes": "three letters, one each of L or R, A or P, S or I",
}
