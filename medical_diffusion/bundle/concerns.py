"""What a piece of configuration could do beyond building networks, judged from its text alone.

Nothing is imported or executed: expressions and scripts are parsed to a syntax tree, targets are read as dotted names.
An empty answer is no proof of harmlessness; it says that no known way out of the usual packages was found.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator

# what bundles are made of
FAMILIAR_PACKAGES = frozenset({"medical_diffusion", "monai", "torch", "ignite", "numpy", "np"})
# modules of the standard library that compute or name things
HARMLESS_MODULES = frozenset(
    "collections copy datetime functools glob itertools json logging math operator pathlib random re statistics time "
    "typing warnings".split()
)
POWERFUL_MODULES = frozenset(
    "asyncio atexit builtins code codeop cffi ctypes ftplib http importlib marshal mmap multiprocessing os paramiko "
    "pickle pip pkgutil pty pydoc requests runpy shelve shutil signal site smtplib socket ssl subprocess sys tempfile "
    "threading urllib webbrowser".split()
)
HARMLESS_IN_OS = frozenset({"path", "sep", "getenv", "cpu_count"})
POWERFUL_BUILTINS = frozenset(
    "__import__ breakpoint compile delattr eval exec getattr globals input locals open setattr vars".split()
)
# methods that start programs, change files, fetch or load code, whatever object they are called on
POWERFUL_METHODS = frozenset(
    "add_safe_globals chmod check_call check_output download_and_extract download_url download_url_to_file exec_module "
    "extractall import_module load_library load_module load_state_dict_from_url optional_import popen Popen rmdir "
    "rmtree run_module run_path symlink_to system unlink urlopen urlretrieve write_bytes write_text".split()
)
POWERFUL_NAMES = ("torch.hub", "torch.package", "torch.utils.cpp_extension", "monai.bundle", "monai.apps.download")

REFERENCE = re.compile(r"@\w+(?:(?:::|#)\w*)*|@(?:(?:::|#)+\w*)+")


def target_concerns(target: object) -> tuple[str, ...]:
    """Concerns about a ``_target_``: a dotted name, or a bare one that MONAI looks up among its own."""
    if not isinstance(target, str) or target[:1] in "$@%":
        return ("the target is decided while the configuration runs",)
    parts = target.split(".")
    if len(parts) == 1:
        return ("a built-in function of Python",) if hasattr(builtins, target) else ()
    outside = () if parts[0] in FAMILIAR_PACKAGES else (f"{parts[0]} is outside monai, torch and medical_diffusion",)
    return _unique([*outside, *_name_concerns(parts)])


def code_concerns(source: str, *, script: bool = False) -> tuple[str, ...]:
    """Concerns about an expression (without its ``$``) or, with ``script``, about a Python file."""
    text = source if script else REFERENCE.sub("_reference_", source)
    try:
        tree = ast.parse(text.strip() if not script else text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ("not readable as Python",)
    return _unique(concern for node in ast.walk(tree) for concern in _node_concerns(node))


def is_import(source: str) -> bool:
    """Whether an expression (without its ``$``) is an import statement."""
    try:
        body = ast.parse(REFERENCE.sub("_reference_", source).strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return bool(body) and isinstance(body[0], ast.Import | ast.ImportFrom)


def _node_concerns(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from _import_concerns(node)
    elif isinstance(node, ast.Name):
        if node.id in POWERFUL_BUILTINS:
            yield f"uses {node.id}"
    elif isinstance(node, ast.Attribute):
        yield from _name_concerns(_dotted(node))
    elif isinstance(node, ast.Call):
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if (keyword.arg, value) in (("weights_only", False), ("allow_pickle", True), ("shell", True)):
                yield f"calls something with {keyword.arg}={value!r}"


def _import_concerns(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    for alias in node.names:
        parts = [part for part in f"{module}.{alias.name}".split(".") if part]
        if parts[0] not in FAMILIAR_PACKAGES | HARMLESS_MODULES:
            yield f"imports {parts[0]}, outside monai, torch and medical_diffusion"
        yield from _name_concerns(parts[1:])


def _name_concerns(parts: list[str]) -> Iterator[str]:
    name = ".".join(parts)
    for i, part in enumerate(parts):
        following = parts[i + 1] if i + 1 < len(parts) else None
        if part == "os" and following in HARMLESS_IN_OS:
            continue
        special = part.startswith("__") and part.endswith("__") and part != "__version__"
        if special or part in POWERFUL_MODULES or part in POWERFUL_METHODS:
            yield f"reaches {part} ({name})"
    if any(name == powerful or name.startswith(powerful + ".") for powerful in POWERFUL_NAMES):
        yield f"fetches or runs other code ({name})"


def _dotted(node: ast.Attribute) -> list[str]:
    """The attribute chain as names; what it starts from is left out unless it is a plain name."""
    parts: list[str] = []
    current: ast.expr = node
    while isinstance(current, ast.Attribute):
        parts.append(current.attr)
        current = current.value
    if isinstance(current, ast.Name):
        parts.append(current.id)
    return parts[::-1]


def _unique(concerns: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(concerns))
