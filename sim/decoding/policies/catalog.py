"""Policies by name: what a command line, a study file or a run folder writes for a policy object.

A label is `name` or `name:setting=value,setting=value`; settings at their default may be left out. The name of a policy that
is not listed here is `module.Class` (`sim.decoding.policies.own`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from sim.decoding.policies import own
from sim.decoding.policies.base import UNNAMED_AT_DEFAULT, Policy
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.probe import Probe
from sim.decoding.policies.overlapped.saguaro import Saguaro
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.policies.serial.adaedl import AdaEdl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal, ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.policies.serial.product_rule import ProductRule
from sim.decoding.policies.serial.prompt_lookup import PromptLookup
from traces.mistakes import first_mistake

POLICIES: dict[str, type[Any]] = {
    "autoregressive": Autoregressive,
    "fixed_length": FixedLength,
    "confidence_stop": ConfidenceStop,
    "adaedl": AdaEdl,
    "product_rule": ProductRule,
    "prompt_lookup": PromptLookup,
    "pearl": Pearl,
    "saguaro": Saguaro,
    "specbranch": SpecBranch,
    "outcome_hedging": OutcomeHedging,
    "probe": Probe,
}


MAX_TOKENS_A_ROUND = 4096  # also rows of a batch of branches
MAX_NUMBER = 1e4
_SHARES = ("least_reach", "least_acceptance", "target_rate", "rate_memory", "threshold_memory")
_THRESHOLDS = ("threshold", "epsilon")
# What a threshold is held against; of the draft's largest probability, or a chance, where nothing else is said.
_SPANS = {ConfidenceSignal.MARGIN: (0, MAX_NUMBER), ConfidenceSignal.NEGATIVE_ENTROPY: (-MAX_NUMBER, 0)}
OF_VLLM = "num_speculative_tokens"  # what vLLM's users call draft_length


class PolicyError(ValueError):
    """A policy's label cannot be read; the message says what to write instead."""


def parse_policy(label: str) -> Policy:
    """The policy that a label names.

    >>> parse_policy("fixed_length:draft_length=6")
    FixedLength(draft_length=6)
    """
    name, text = split_label(label)
    settings: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise PolicyError(f"policy {label!r}: {part!r} is not a setting; write name:setting=value,setting=value.")
        if key.strip() in settings:
            raise PolicyError(f"policy {label!r}: {key.strip()} is given twice; which one is meant?")
        settings[key.strip()] = value.strip()
    return make_policy(name, settings)


def split_label(label: str) -> tuple[str, str]:
    """Name and settings of a label, or of `module:Class(settings)`.

    >>> split_label("pearl:draft_length=6"), split_label("mine:Every(draft_length=2)")
    (('pearl', 'draft_length=6'), ('mine.Every', 'draft_length=2'))
    """
    name, _, text = label.strip().partition(":")
    if name not in POLICIES:
        name, _, text = own.canonical(label.strip()).partition(":")
    return name, text


def make_policy(name: str, settings: dict[str, Any]) -> Policy:
    """A policy from its name and settings, as a study file gives them; unknown names and settings are refused."""
    kind = _kind_of(name)
    known = [field.name for field in dataclasses.fields(kind)]
    if OF_VLLM in settings and "draft_length" in known:
        if "draft_length" in settings:
            raise PolicyError(f"policy {name}: {OF_VLLM} is another name of draft_length; give one of them.")
        settings = {"draft_length" if key == OF_VLLM else key: value for key, value in settings.items()}
    for key in settings:
        if key not in known:
            settings_text = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise PolicyError(f"policy {name} has no setting {key!r:.60}; {settings_text}.")
    try:
        policy = _adapter(kind).validate_python(settings)
    except ValidationError as error:
        raise PolicyError(f"policy {name}: {first_mistake(error)}.") from None
    _check_limits(name, policy)  # first: what is beyond them may take seconds to look at
    assert isinstance(policy, Policy)
    return policy


def parse_policies(labels: Sequence[str]) -> list[Policy]:
    """The policies of several labels, each of which names another one. Raises `PolicyError`.

    >>> parse_policies(["autoregressive", "pearl:draft_length=4"])[1]
    Pearl(draft_length=4, num_further=0)
    """
    policies: dict[Policy, str] = {}
    for label in labels:
        policy = parse_policy(label)
        if policy in policies:
            same = f", as {policies[policy]}" if policies[policy] != label else ""
            raise PolicyError(f"policy {label} is given twice{same}; once is enough.")
        policies[policy] = label
    return list(policies)


def _check_limits(name: str, policy: Any) -> None:
    """Refuse what no machine could draft, before any work starts, and numbers that compare with nothing."""
    counts = {
        field.name: value
        for field in dataclasses.fields(policy)
        if isinstance(value := getattr(policy, field.name), int | float) and not isinstance(value, bool)
    }
    for setting, value in counts.items():
        high = MAX_TOKENS_A_ROUND if isinstance(value, int) else MAX_NUMBER
        low = -high
        if name in POLICIES and setting in _THRESHOLDS:
            low, high = _SPANS.get(getattr(policy, "signal", ConfidenceSignal.MAX_PROB), (0, 1))
        elif name in POLICIES and setting in _SHARES:
            low, high = 0, 1
        if not low <= value <= high:
            raise PolicyError(f"policy {name}: {setting} must lie in [{low:g}, {high:g}], but got {value}.")
    if counts.get("fan_out", 1) * counts.get("draft_length", 1) > MAX_TOKENS_A_ROUND:
        raise PolicyError(f"policy {name}: fan_out times draft_length must be at most {MAX_TOKENS_A_ROUND} rows.")


def _kind_of(name: str) -> Any:
    if name in POLICIES:
        return POLICIES[name]
    if not own.is_own(name):
        raise PolicyError(
            f"unknown policy {name!r:.80}; known are {', '.join(POLICIES)}, and module:Class for one of your own."
        )
    try:
        return own.class_of(name)
    except own.OwnPolicyError as error:
        raise PolicyError(str(error)) from None


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """The validator of a policy's settings, made once."""
    try:
        return TypeAdapter(kind)
    except PydanticUserError as error:
        raise PolicyError(
            f"policy {kind.__name__}: its settings must be numbers, words or yes and no: {error}"
        ) from None


def label_of(policy: Policy) -> str:
    """The label of a policy, all settings named (but those that came later, at their default); `parse_policy` reads it back.

    >>> label_of(FixedLength(draft_length=6))
    'fixed_length:draft_length=6'
    """
    name = next((name for name, kind in POLICIES.items() if kind is type(policy)), None)
    if name is None:
        try:
            name = own.name_of(type(policy))
        except own.OwnPolicyError as error:
            raise PolicyError(str(error)) from None
    assert dataclasses.is_dataclass(policy)
    settings = [
        f"{field.name}={getattr(policy, field.name)}"
        for field in dataclasses.fields(policy)
        if not (field.metadata == UNNAMED_AT_DEFAULT and getattr(policy, field.name) == field.default)
    ]
    return f"{name}:{','.join(settings)}" if settings else name
