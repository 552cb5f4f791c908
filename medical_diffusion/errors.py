"""Errors that are meant for the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: says the rule, the value received and the remedy, and is shown as one message without a traceback.

    Args:
        rule: what must hold, as a sentence without its full stop ("image_size must be divisible by the compression").
        received: the offending value, shown with ``repr`` unless it is text.
        remedy: what to do about it, as a sentence without its full stop.
    """

    def __init__(self, rule: str, received: object = None, remedy: str | None = None) -> None:
        self.rule, self.received, self.remedy = rule, received, remedy
        parts = [_sentence(rule)]
        if received is not None:
            parts.append(_sentence(f"Received: {received if isinstance(received, str) else repr(received)}"))
        if remedy:
            parts.append(_sentence(remedy))
        super().__init__(" ".join(parts))


def _sentence(text: str) -> str:
    return text if text.endswith(("?", "!")) else text.rstrip(".") + "."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for a misspelt name: its near misses, or all known names where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}"


def find_user_error(error: BaseException | None) -> UserError | None:
    """The ``UserError`` in a chain of causes, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
