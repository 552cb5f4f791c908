"""One clear message instead of a traceback when a run ends for a reason that its user can mend."""

from __future__ import annotations

import sys
from types import TracebackType

from medical_diffusion.errors import UserError

_previous = sys.excepthook


def install() -> None:
    """Make ``UserError`` end the process with its message and status 1, wherever in MONAI or ignite it was raised."""
    sys.excepthook = _show


def find_user_error(error: BaseException | None) -> UserError | None:
    """The ``UserError`` in a chain of causes, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    user_error = find_user_error(error)
    if user_error is None:
        _previous(kind, error, traceback)
    else:
        print(f"\nerror: {user_error}", file=sys.stderr)
