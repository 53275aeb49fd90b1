"""What is wrong with values that somebody typed, in words for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

_OF_THE_WHOLE = ("value_error", "missing", "missing_argument", "json_invalid", "unexpected_keyword_argument")


def first_mistake(error: ValidationError) -> str:
    """The place of the first mistake, what should stand there, and what does; without a stop at the end."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    got = "" if first["type"] in _OF_THE_WHOLE else f", but got {first['input']!r:.60}"
    return f"{place + ': ' if place else ''}{message}{got}"


def parse_json(text: str | bytes, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text that we did not write ourselves: every text that is none raises ValueError.

    json.JSONDecodeError (a ValueError) with the place where it can be named, UnicodeDecodeError (one, too) for bytes that are
    no text, and plain ValueError where Python gives up for depth, which the standard library raises as RecursionError.
    """
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)  # noqa: TID251 - the one place
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class TwiceError(ValueError):
    """A setting is given twice in a text, where the last one would win silently."""

    def __init__(self, name: object) -> None:
        self.name = str(name)
        super().__init__(f"{self.name[:60]!r} is given twice; which one is meant?")


def unique_json(text: str | bytes) -> Any:
    """`parse_json` of what users write or change: a name that an object gives twice raises `TwiceError`, a ValueError."""
    return parse_json(text, object_pairs_hook=_object_of)


def check_once(names: Sequence[Hashable]) -> None:
    """Raise `TwiceError` for the first name that comes again."""
    if len(set(names)) < len(names):
        raise TwiceError(next(name for name in names if names.count(name) > 1))


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    check_once([name for name, _ in pairs])
    return dict(pairs)
