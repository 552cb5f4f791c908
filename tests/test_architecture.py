"""The house keeps its shape: floors, lazy imports, file sizes, and a package list that matches the folders."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "medical_diffusion"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS_BY_FLOOR = {
    1: {"data", "networks", "diffusion", "losses"},
    2: {"training", "synthesis", "evaluation"},
    3: {"bundle", "studies", "cli", "__main__"},
}
FLOOR_OF_ROOM = {room: floor for floor, rooms in ROOMS_BY_FLOOR.items() for room in rooms}
# the command line is the door of its floor: it alone looks into the rooms beside it
DOORS = {("cli", "bundle"), ("cli", "studies"), ("__main__", "cli")}
# slow to import, or optional: inside functions only
LAZY = {
    "SimpleITK",
    "diffusers",
    "idc_index",
    "lpips",
    "matplotlib",
    "mlflow",
    "sklearn",
    "torch_fidelity",
    "torchio",
    "torchvision",
}
MAX_LINES = 400


def room_of(module: str) -> str:
    """Folder of the package that a module lies in, or the name of a file beside the folders."""
    return module.split(".")[1] if "." in module else ""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def imports(tree: ast.AST, module: str) -> Iterator[tuple[str, int]]:
    """Every module that a file imports anywhere, functions and TYPE_CHECKING included, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            # `from medical_diffusion import networks` names its room in the list
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "medical_diffusion" else [base]
            yield from ((name, node.lineno) for name in names)


def breaches(source: str, module: str) -> list[str]:
    own = room_of(module)
    own_floor = FLOOR_OF_ROOM.get(own, 0)
    found = []
    for name, line in imports(ast.parse(source), module):
        if name.split(".")[0] != "medical_diffusion":
            continue
        room = room_of(name)
        floor = FLOOR_OF_ROOM.get(room, 0)
        if room != own and floor >= own_floor and floor > 0 and (own, room) not in DOORS:
            found.append(f"{module}:{line} (floor {own_floor}) imports {name} (floor {floor})")
    return found


def test_every_folder_has_a_floor() -> None:
    rooms = {path.parent.relative_to(PACKAGE).parts[0] for path in SOURCES if path.parent != PACKAGE}
    assert rooms <= set(FLOOR_OF_ROOM)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: module_of(path))
def test_a_file_imports_lower_floors_or_its_own_folder(path: Path) -> None:
    assert breaches(path.read_text(encoding="utf-8"), module_of(path)) == []


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("medical_diffusion.networks.unet", "from medical_diffusion.data.listing.manifest import Manifest", False),
        ("medical_diffusion.networks.unet", "def f():\n    import medical_diffusion.training.ema", False),
        ("medical_diffusion.networks.unet", "from medical_diffusion import diffusion", False),
        ("medical_diffusion.networks.unet", "from ..losses import ssim", False),
        ("medical_diffusion.networks.unet", "from .blocks import Block", True),
        ("medical_diffusion.networks.unet", "from medical_diffusion.errors import UserError", True),
        ("medical_diffusion.training.ema", "from medical_diffusion.networks import UNet", True),
        ("medical_diffusion.errors", "from medical_diffusion.networks import UNet", False),
        ("medical_diffusion.cli.bundle", "from medical_diffusion.bundle.pack import pack_bundle", True),
        ("medical_diffusion.bundle.pack", "from medical_diffusion.cli import GROUPS", False),
    ],
)
def test_the_walk_sees_a_breach(module: str, source: str, allowed: bool) -> None:
    assert (breaches(source, module) == []) is allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: module_of(path))
def test_slow_and_optional_packages_are_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {name.split(".")[0] for name, _ in imports(tree, module_of(path))} & LAZY == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: module_of(path))
def test_a_file_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_setup_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = {module_of(path.parent) for path in SOURCES}
    assert listed == folders | {"medical_diffusion.data_manifests"}


def test_constraints_pin_every_requirement_of_the_core_and_the_tests() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    lines = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    required = {re.split(r"[<>=!~\[]", line)[0].lower() for line in lines.split("\n") if line.strip()}
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower() for line in pins if "==" in line and not line.startswith("#")}
    assert required - pinned == set()
