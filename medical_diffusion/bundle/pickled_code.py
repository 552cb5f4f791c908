"""Which classes and functions a weights file would call while it is loaded, read from its pickle opcodes.

A pickle is a program: GLOBAL and STACK_GLOBAL fetch any importable name and REDUCE calls it. ``weights_only=True``
refuses all names but those that rebuild tensors; this lists the others without unpickling anything.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from typing import IO

ZIP_MAGIC = b"PK\x03\x04"
TENSOR_NAMES = frozenset(
    {
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "__builtin__.bytearray",
        "__builtin__.complex",
        "__builtin__.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch._tensor._rebuild_from_type_v2",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
)
TENSOR_NAME_PATTERN = re.compile(
    r"torch\.((cuda\.)?(sparse\.)?[A-Za-z0-9]*(Storage|Tensor)"
    r"|_utils\._rebuild_\w+"
    r"|(q?u?int|bits|float|bfloat|complex)[0-9][0-9a-z_]*|quint\w+|bool|per_(tensor|channel)_\w+)"
)


def unsafe_names(stream: IO[bytes]) -> list[str]:
    """Names that loading the weights in ``stream`` would fetch beyond those that rebuild tensors, sorted.

    A TorchScript archive and a stream that cannot be read to its end are named as such.
    """
    magic = stream.read(len(ZIP_MAGIC))
    stream.seek(0)
    if magic != ZIP_MAGIC:
        return sorted(_unsafe(_legacy_names(stream)))
    found: set[str] = set()
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.namelist()
            if any("/code/" in member or member.endswith("/constants.pkl") for member in members):
                found.add("a TorchScript program")
            pickles = [member for member in members if member.endswith(".pkl")]
            if not pickles:
                found.add("no data.pkl: not written by torch.save")
            for member in pickles:
                found |= _pickle_names(io.BytesIO(archive.read(member)))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        found.add(f"an unreadable archive ({error})")
    return sorted(_unsafe(found))


def _unsafe(names: set[str]) -> set[str]:
    return {name for name in names if name not in TENSOR_NAMES and not TENSOR_NAME_PATTERN.fullmatch(name)}


def _legacy_names(stream: IO[bytes]) -> set[str]:
    """The format before zip: magic number, protocol, system, content, storage keys, each a pickle; then raw bytes."""
    names: set[str] = set()
    for _ in range(5):
        names |= _pickle_names(stream)
        position = stream.tell()
        if not stream.read(1):
            break
        stream.seek(position)
    return names


def _pickle_names(stream: IO[bytes]) -> set[str]:
    """Every global that one pickle names; ``torch.save`` never builds names on the stack, so those are always named."""
    names: set[str] = set()
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.add(f"{'.'.join(strings[-2:])} (named on the stack)")
            elif opcode.name.startswith("EXT"):
                names.add("a registered extension")
            elif "UNICODE" in opcode.name or "STRING" in opcode.name:
                strings.append(str(argument))
    except Exception as error:  # pickletools raises many kinds on malformed input, none of them ours to tell apart
        names.add(f"an unreadable pickle ({type(error).__name__})")
    return names
