"""What is wrong with values that somebody typed, in words for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
