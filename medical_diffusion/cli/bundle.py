"""``python -m medical_diffusion bundle {describe,pack,inspect,render}``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medical_diffusion.cli import GROUPS
from medical_diffusion.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from medical_diffusion.bundle.inspection import ExecutableItem

WIDTH = 100
"""Characters of an expression shown; the rest is cut."""
KIND_TITLES = {
    "target": "Targets: imported and called",
    "import": "Imports",
    "expression": "Expressions: evaluated",
    "macro": "Macros: replaced by other content",
    "logging": "Logging: evaluated",
    "script": "Python files",
    "weights": "Weights: names beyond tensors",
    "unreadable": "Not readable",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group's commands."""
    group = subparsers.add_parser("bundle", help=GROUPS["bundle"], description=GROUPS["bundle"].capitalize() + ".")
    commands = group.add_subparsers(required=True, metavar="{describe,pack,inspect,render}")
    bundle = "name of a bundle in ./bundles, or its folder"

    describe = commands.add_parser("describe", help="list a bundle's options with defaults and units")
    describe.add_argument("bundle", metavar="NAME_OR_PATH", help=bundle)
    describe.set_defaults(run=run_describe)

    pack = commands.add_parser("pack", help="write the zip that `python -m monai.bundle download` fetches")
    pack.add_argument("bundle", metavar="NAME_OR_PATH", help=bundle)
    pack.add_argument("--output", metavar="DIR", required=True, help="folder for the zip")
    pack.add_argument("--run_dir", metavar="DIR", help="where training wrote, if it was given a --run_dir")
    pack.add_argument("--without-weights", action="store_true", help="pack a bundle that is not trained yet")
    pack.set_defaults(run=run_pack)

    inspect = commands.add_parser("inspect", help="list all that a bundle would execute, without executing it")
    inspect.add_argument("bundle", metavar="NAME_OR_PATH", help=f"{bundle} or zip")
    inspect.set_defaults(run=run_inspect)

    render = commands.add_parser("render", help="write the configurations of all bundles from their templates")
    render.add_argument("--check", action="store_true", help="write nothing; fail where a file has drifted")
    render.set_defaults(run=run_render)


def find_bundle(name_or_path: str) -> Path:
    """Folder of a bundle: ``./bundles/NAME``, ``./NAME`` or a path; or the current folder where it has that name.

    Raises:
        UserError: no such folder has a ``configs`` folder.
    """
    here = Path.cwd()
    candidates = [here / "bundles" / name_or_path, here / name_or_path]
    if here.name == name_or_path:
        candidates.append(here)
    for candidate in candidates:
        if (candidate / "configs").is_dir():
            return candidate.resolve()
    known = sorted(path.parent.name for path in (here / "bundles").glob("*/configs"))
    remedy = did_you_mean(name_or_path, known) if known else "Run from the folder that holds bundles/, or give a path"
    raise UserError("a bundle must be a folder with configs/, here or in ./bundles", name_or_path, remedy)


def run_describe(arguments: argparse.Namespace) -> None:
    """Print a bundle's options."""
    root = find_bundle(arguments.bundle)
    from medical_diffusion.bundle.describe import describe_bundle

    print(describe_bundle(root))


def run_pack(arguments: argparse.Namespace) -> None:
    """Write a bundle's zip; print its size and how to fetch it."""
    root = find_bundle(arguments.bundle)
    from medical_diffusion.bundle.pack import pack_bundle

    path = pack_bundle(root, arguments.output, with_weights=not arguments.without_weights, run_dir=arguments.run_dir)
    print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")
    print("Put it on a server; others fetch it with")
    print(f"  python -m monai.bundle download --name {path.stem} --url URL/{path.name} --bundle_dir DIR")
    print(f"Delete an existing DIR/{path.stem} and DIR/{path.name} first: MONAI keeps them without a word.")


def run_inspect(arguments: argparse.Namespace) -> None:
    """Print what a bundle would execute."""
    path = Path(arguments.bundle)
    path = path if path.exists() else find_bundle(arguments.bundle)
    from medical_diffusion.bundle.inspection import inspect_bundle

    print(inspection_report(inspect_bundle(path)))


def run_render(arguments: argparse.Namespace) -> int:
    """Write the bundles' configurations, or check that they are what the templates give."""
    from medical_diffusion.bundle.render import render_all

    files = render_all(check=arguments.check)
    for file in files:
        print(f"{'drifted' if arguments.check else 'written'}: {file}")
    if not files:
        print("all configurations are what their templates give")
    return 1 if files and arguments.check else 0


def inspection_report(items: list[ExecutableItem]) -> str:
    """Table of ``items`` grouped by kind and text, what deserves a look last."""
    lines = []
    for kind, title in KIND_TITLES.items():
        places: dict[str, list[str]] = {}
        for item in items:
            if item.kind == kind:
                places.setdefault(item.text, []).append(f"{item.file} {item.id}".rstrip())
        if places:
            lines += [f"{title} ({len(places)})"]
            for text, where in sorted(places.items()):
                lines += [f"  {_printable(text)}", *(f"      {_printable(place)}" for place in where)]
            lines += [""]
    concerning = [item for item in items if item.concerns]
    if not concerning:
        return "\n".join([*lines, "Nothing reaches beyond monai, torch and medical_diffusion by a known way."])
    lines += [f"WARNING: {len(concerning)} of {len(items)} deserve a look before you run this bundle"]
    for item in concerning:
        lines += [f"  {_printable(f'{item.file} {item.id}'.rstrip())}: {_printable(item.text)}"]
        lines += [f"      {_printable(concern)}" for concern in item.concerns]
    return "\n".join(lines)


def _printable(text: str) -> str:
    """One line without control characters, which a stranger's bundle could use to rewrite the terminal."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
