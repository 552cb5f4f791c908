"""``python -m medical_diffusion {bundle,data,evaluate,study} ...``; ``monai.bundle run`` trains and samples."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from medical_diffusion.cli import GROUPS
from medical_diffusion.errors import UserError

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 plus the number of SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 after a :class:`UserError` (one message, no traceback)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser = build_parser(arguments[0] if arguments else "")
        parsed, rest = parser.parse_known_args(arguments)
        if rest and "options" not in parsed:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if "options" in parsed:
            parsed.options = rest
        status: int | None = parsed.run(parsed)
        sys.stdout.flush()
        return status or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of a pipe has seen enough; Python would complain once more while it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser(group: str) -> argparse.ArgumentParser:
    """Parser that knows every group by name and the commands of ``group`` only, whose module is imported."""
    parser = argparse.ArgumentParser(
        prog="python -m medical_diffusion",
        description="Synthesis of medical volumes as MONAI bundles.",
        epilog="Training and sampling: python -m monai.bundle run --config_file bundles/NAME/configs/train.json",
    )
    subparsers = parser.add_subparsers(metavar="{" + ",".join(GROUPS) + "}", required=True)
    for name, summary in GROUPS.items():
        if name == group:
            importlib.import_module(f"medical_diffusion.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


if __name__ == "__main__":
    sys.exit(main())
