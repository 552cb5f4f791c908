"""The command line's groups, one file each with ``add_parser(subparsers)``.

A group's parser sets ``run``, a function of the parsed arguments that returns the exit status (None is success). It
imports what it needs inside, so that ``--help`` answers at once.
"""

from __future__ import annotations

GROUPS = {
    "bundle": "describe, pack, inspect and render bundles",
    "data": "list, describe, fetch and check data sets; write phantoms",
    "evaluate": "judge synthetic images: fidelity, diversity, copies of training images, as a report",
    "study": "experiments over several training runs",
}
