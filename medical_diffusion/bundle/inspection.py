"""Everything that a bundle would execute, listed before anyone runs it; nothing is executed or imported.

MONAI evaluates every value that starts with ``$``, imports and calls every ``_target_``, replaces every ``%macro`` by
the content it names, evaluates the classes and arguments of a logging configuration, and unpickles weights. Python
files travel with some bundles. All of these are listed with where they stand and with what deserves a look.
"""

from __future__ import annotations

import configparser
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Protocol

import yaml

from medical_diffusion.bundle.concerns import code_concerns, is_import, target_concerns
from medical_diffusion.bundle.pickled_code import unsafe_names
from medical_diffusion.errors import UserError

Kind = Literal["target", "expression", "import", "macro", "logging", "script", "weights", "unreadable"]
CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
LOGGING_SUFFIXES = (".conf", ".ini", ".cfg")
WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".ts", ".th")
BINARY_CODE_SUFFIXES = (".so", ".pyd", ".dll", ".dylib", ".pyc", ".exe", ".sh", ".bat")
CONFIG_BYTES = 1 << 24
"""Configurations are small; a larger file is named, not parsed."""


@dataclass(frozen=True)
class ExecutableItem:
    """One thing that running the bundle would execute.

    Attributes:
        file: path inside the bundle, with forward slashes.
        id: MONAI's id in the configuration (``train::trainer::_target_``), or the section of a logging file.
        kind: what executes it.
        text: the expression, the dotted name, or a description of the file.
        concerns: why it deserves a look; empty for what bundles are ordinarily made of.
    """

    file: str
    id: str
    kind: Kind
    text: str
    concerns: tuple[str, ...] = ()


class _Files(Protocol):
    """A bundle's files, whether they lie in a folder or in a zip."""

    def names(self) -> list[str]: ...

    def size(self, name: str) -> int: ...

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]: ...


class _FolderFiles:
    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        return (self.root / name).open("rb")


class _ZipFiles:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive

    def names(self) -> list[str]:
        return sorted({info.filename for info in self.archive.infolist() if not info.is_dir()})

    def size(self, name: str) -> int:
        return self.archive.getinfo(name).file_size

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        return self.archive.open(name)


def inspect_bundle(path: str | Path) -> list[ExecutableItem]:
    """List what the bundle in a folder or zip would execute, ordered by file and position.

    Raises:
        UserError: ``path`` is neither a folder nor a readable zip, or holds no configuration.
    """
    path = Path(path)
    if path.is_dir():
        return _inspect(_FolderFiles(path), path)
    if not path.is_file():
        raise UserError("a bundle to inspect must be a folder or a zip", str(path), "Check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            return _inspect(_ZipFiles(archive), path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"a bundle to inspect must be a folder or a complete zip ({error})", str(path), "Download it again"
        ) from error


def inspect_weights(path: str | Path) -> list[str]:
    """Names that loading this weights file would fetch beyond those that rebuild tensors; empty is what it should be.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return unsafe_names(stream)
    except OSError as error:
        raise UserError(f"weights must be readable ({error.strerror})", str(path), "Check the path") from error


def _inspect(files: _Files, path: Path) -> list[ExecutableItem]:
    names = files.names()
    if not any(name.endswith(CONFIG_SUFFIXES) for name in names):
        raise UserError("a bundle must hold JSON or YAML configurations", str(path), "Give the bundle's own folder")
    return [item for name in names for item in _file_items(files, name)]


def _file_items(files: _Files, name: str) -> Iterator[ExecutableItem]:
    suffix = PurePosixPath(name).suffix.lower()
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        yield ExecutableItem(name, "", "unreadable", "a path that leaves the bundle", ("would be written elsewhere",))
    elif suffix in WEIGHT_SUFFIXES:
        with files.open(name) as stream:
            yield from (
                ExecutableItem(name, "", "weights", unsafe, ("loading it can run code; weights_only=True refuses it",))
                for unsafe in unsafe_names(stream)
            )
    elif suffix in BINARY_CODE_SUFFIXES:
        yield ExecutableItem(name, "", "script", "executable file", ("cannot be read as text",))
    elif suffix in (*CONFIG_SUFFIXES, *LOGGING_SUFFIXES, ".py"):
        if files.size(name) > CONFIG_BYTES:
            yield ExecutableItem(name, "", "unreadable", f"{files.size(name)} bytes", ("too large to be read here",))
            return
        with files.open(name) as stream:
            content = stream.read()
        try:
            yield from _text_items(name, suffix, content.decode("utf-8-sig"))
        except (UnicodeDecodeError, ValueError, RecursionError, yaml.YAMLError, configparser.Error) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield ExecutableItem(name, "", "unreadable", reason, ("could not be read, so its content is unknown",))


def _text_items(name: str, suffix: str, text: str) -> Iterator[ExecutableItem]:
    if suffix == ".py":
        yield ExecutableItem(name, "", "script", f"{len(text.splitlines())} lines", code_concerns(text, script=True))
    elif suffix in LOGGING_SUFFIXES:
        yield from _logging_items(name, text)
    else:
        content = json.loads(text) if suffix == ".json" else yaml.load(io.StringIO(text), Loader=yaml.SafeLoader)
        yield from _config_items(name, "", content)


def _config_items(name: str, id: str, value: Any) -> Iterator[ExecutableItem]:
    if isinstance(value, dict):
        for key, child in value.items():
            child_id = f"{id}::{key}" if id else str(key)
            if key == "_target_":
                yield ExecutableItem(name, child_id, "target", str(child), target_concerns(child))
                if isinstance(child, str) and child[:1] not in ("$", "%"):
                    continue
            yield from _config_items(name, child_id, child)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _config_items(name, f"{id}::{index}" if id else str(index), child)
    elif isinstance(value, str) and value.startswith("$"):
        kind: Kind = "import" if is_import(value[1:]) else "expression"
        yield ExecutableItem(name, id, kind, value, code_concerns(value[1:]))
    elif isinstance(value, str) and value.startswith("%"):
        yield ExecutableItem(name, id, "macro", value, _macro_concerns(value[1:]))


def _macro_concerns(reference: str) -> tuple[str, ...]:
    file = PurePosixPath(reference.split("#")[0].split("::")[0].replace("\\", "/"))
    outside = file.is_absolute() or ".." in file.parts or "://" in reference
    return ("takes its content from outside the bundle",) if outside else ()


def _logging_items(name: str, text: str) -> Iterator[ExecutableItem]:
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    for section in parser.sections():
        for option in ("class", "args", "kwargs"):
            if parser.has_option(section, option):
                value = parser.get(section, option)
                # logging evaluates these beside its own module and sys, whose streams are their ordinary use
                judged = value.replace("sys.stdout", "None").replace("sys.stderr", "None")
                item = f"{option} = {value}"
                yield ExecutableItem(name, f"{section}::{option}", "logging", item, code_concerns(judged))
