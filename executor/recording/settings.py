"""What to record: the settings of a run, and how a run folder's config.yaml is read back. Nothing heavy is imported here."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from executor.models.settings import PairSettings
from executor.request import check_stops
from sim.decoding.policies.catalog import parse_policies
from traces.mistakes import first_mistake
from traces.schema import Sampling

MAX_TOKENS = 1 << 20
MAX_TAIL_DEPTH = 1024


class PromptForm(enum.StrEnum):
    """How a prompt that is a text is given to the model; messages always go through the chat template, token ids never do."""

    AUTO = "auto"  # chat where the target has a chat template and every text is a question or a turn, else raw
    CHAT = "chat"  # as a user's message in the target's chat template
    RAW = "raw"  # as it stands


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Which prompts: `num` of a source (`executor.recording.prompts.load_prompts`), after the first `skip`.

    num_timed: so many of them, evenly spread, are decoded under every policy; the rest under the first one alone, which tells
    their acceptance in a fraction of the time. None: all of them.
    form: a recorded run's config says which of chat and raw it was.
    """

    source: str = "held_out"
    num: int = 16
    skip: int = 0
    num_timed: int | None = None
    form: PromptForm = PromptForm.AUTO

    def __post_init__(self) -> None:
        if self.num < 1 or self.skip < 0:
            raise ValueError(
                f"num_prompts must be at least 1 and skip_prompts at least 0, but got {self.num} and {self.skip}."
            )
        if self.num_timed is not None and not 1 <= self.num_timed <= self.num:
            raise ValueError(f"timed_prompts must lie in [1, {self.num}], but got {self.num_timed}.")

    def is_timed(self, index: int) -> bool:
        """Whether the prompt at this place, from 0, is decoded under every policy.

        >>> [PromptSettings(num=5, num_timed=2).is_timed(index) for index in range(5)]
        [False, False, True, False, True]
        """
        num = self.num if self.num_timed is None else self.num_timed
        return (index + 1) * num // self.num > index * num // self.num


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """How every prompt is decoded: under each policy (labels of `sim.decoding.policies.catalog`) at each temperature.

    acceptance: label of a synthetic acceptance (`executor.recording.synthetic`), which then decides every outcome; an empty
    one leaves that to the models.
    """

    policies: tuple[str, ...] = ("autoregressive", "probe")
    temperatures: tuple[float, ...] = (0.0, 1.0)
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 96
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    ignore_eos: bool = False
    acceptance: str = ""

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("policies is empty; name at least one, such as autoregressive.")
        check_stops(self.stop_strings)
        parse_policies(self.policies)
        if not self.temperatures:
            raise ValueError("temperatures is empty; give at least one, such as 0.")
        for temperature in self.temperatures:
            Sampling(temperature, self.top_k, self.top_p)
        if repeated := [value for value in self.temperatures if self.temperatures.count(value) > 1]:
            raise ValueError(
                f"temperature {repeated[0]} is given twice; once is enough (repeats decode everything again)."
            )
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed must lie in [0, 2^64), but got {self.seed}.")
        if not 1 <= self.max_new_tokens <= MAX_TOKENS:
            raise ValueError(f"max_new_tokens must lie in [1, {MAX_TOKENS}], but got {self.max_new_tokens}.")


@dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """Everything that a run is made of.

    repeats: times that every (prompt, temperature, policy) is decoded. aligns: whether alignment and tails are recorded.
    tail_depth: draft tokens that are recorded after each wrong one.
    """

    pair: PairSettings = field(default_factory=PairSettings)
    decoding: DecodingSettings = field(default_factory=DecodingSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    repeats: int = 1
    aligns: bool = True
    tail_depth: int = 16

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, but got {self.repeats}.")
        if not 0 <= self.tail_depth <= MAX_TAIL_DEPTH:
            raise ValueError(f"tail_depth must lie in [0, {MAX_TAIL_DEPTH}], but got {self.tail_depth}.")


# Where the settings of a flat config.yaml, as runs had it until schema version 1, stand now.
_FLAT: dict[str, tuple[str, ...]] = {
    **{name: ("pair", name) for name in ("target", "draft", "target_device", "transport", "is_pinned", "timeout_s")},
    **{name: ("pair", name) for name in ("hrad", "verify_width", "draft_sms")},
    "engine": ("pair", "engine", "kind"),
    **{name: ("pair", "engine", name) for name in ("device", "dtype", "capacity")},
    **{field.name: ("decoding", field.name) for field in fields(DecodingSettings)},
    "prompts": ("prompts", "source"),
    "num_prompts": ("prompts", "num"),
    "skip_prompts": ("prompts", "skip"),
    **{name: (name,) for name in ("repeats", "aligns", "tail_depth")},
}


def read_settings(config: Mapping[str, Any], *, where: object = "config.yaml") -> RecordSettings | None:
    """The settings behind a run's config, nested or flat as the first schema version wrote it; None if no models made it.

    where: named in errors. What a setting does not mention has its default. Raises ValueError for values that do not fit.
    """
    if not isinstance(config.get("pair"), Mapping):
        if not {"target", "draft"} & set(config):
            return None
        config = _nested(config)
    prompts = config.get("prompts")
    if isinstance(prompts, Mapping) and "form" not in prompts:  # runs of before there was a choice
        config = {**config, "prompts": {**prompts, "form": PromptForm.RAW}}
    try:
        return _ADAPTER.validate_python({name: config[name] for name in _NAMES if name in config})
    except ValidationError as error:
        raise ValueError(f"{where}: the settings of the run cannot be read: {first_mistake(error)}.") from None


def draft_of(config: Mapping[str, Any]) -> str | None:
    """The name of the draft that made a run; None if its config names none."""
    pair = config.get("pair", config)
    return pair.get("draft") if isinstance(pair, Mapping) else None


def config_of(settings: RecordSettings) -> dict[str, Any]:
    """The settings as plain values, for a run's config.yaml."""
    config: dict[str, Any] = _ADAPTER.dump_python(settings, mode="json")
    return config


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, (*folders, last) in _FLAT.items():
        if name in flat:
            place = nested
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = flat[name]
    return nested


_ADAPTER = TypeAdapter(RecordSettings)
_NAMES = tuple(each.name for each in fields(RecordSettings))
