"""One clear message instead of a traceback when a run ends for a reason that its user can mend."""

from __future__ import annotations

import sys
from types import TracebackType

from medical_diffusion.errors import find_user_error

_previous = sys.excepthook


def install() -> None:
    """Make ``UserError`` end the process with its message and status 1, wherever in MONAI or ignite it was raised."""
    sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    user_error = find_user_error(error)
    if user_error is None:
        _previous(kind, error, traceback)
    else:
        print(f"\nerror: {user_error}", file=sys.stderr)
