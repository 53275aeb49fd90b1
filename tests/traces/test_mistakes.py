"""A refusal says where the mistake is, what should stand there, and what does."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from pydantic import TypeAdapter, ValidationError

from sim.decoding.policies.catalog import PolicyError, parse_policy
from traces.mistakes import first_mistake, parse_json


@dataclass(frozen=True)
class _Named:
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, but got {self.count}; leave it out.")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"count": "1e3"}', r"^count: .* integer.*, but got '1e3'$"),
        ('{"count": null}', r"^count: .*, but got None$"),
        ('{"count": 0}', r"^count must be at least 1, but got 0; leave it out$"),
        ('{"count": "' + "9" * 300 + 'x"}', r"^count: .{1,150}$"),
        ("{}", "^count: .*(missing|required)"),
        ("{", "^Invalid JSON"),
    ],
)
def test_the_first_mistake_has_place_and_value(text: str, told: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        TypeAdapter(_Named).validate_json(text)
    assert re.search(told, first_mistake(refusal.value)), first_mistake(refusal.value)


def test_a_policys_setting_is_refused_with_its_value() -> None:
    with pytest.raises(PolicyError, match=r"fixed_length: draft_length: .*, but got '1e3'\.$"):
        parse_policy("fixed_length:draft_length=1e3")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 50_000, b"[[[" * 50_000, "{", b"\xff", ""])
def test_what_is_no_json_is_a_wrong_value_however_deep(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|char|byte|column"):
        parse_json(text)
