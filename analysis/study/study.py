"""A study: which policies to try, under which conditions, judged by what. Frozen dataclasses, read from YAML.

    policies:
      - method: specbranch
        settings: {draft_length: {first: 3, last: 8}, max_branches: [1, 2, 4], epsilon: [0.2, 0.3], uses_hrad: [false]}
      - fixed_length:draft_length=4
    conditions:
      interference: [1.2, 2.0]       # a device that both models share; two devices stand beside it
      link_latency_s: [0.0, 0.001]   # two devices
      cost_ratios: [measured, 10]
      alignments: [recorded, "geometric:alpha=0.7"]

Every mistake in a study is one line, before any work starts.
"""

from __future__ import annotations

import enum
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from analysis.study.alignments import KINDS
from sim.decoding.acceptance_models import parse_acceptance
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import PolicyError, make_policy, parse_policy, split_label
from sim.latency.placement import Placement, PlacementKind
from traces.folder.run import RunError, read_yaml
from traces.schema import Sampling

STRICT = ConfigDict(extra="forbid")
MAX_RATIO = 1e6
MAX_TRIALS = 1_000_000
MAX_POLICIES = 100_000  # of one family: beyond this the labels alone take longer than a search should
Plain: TypeAlias = bool | int | float | str


class StudyError(ValueError):
    """A study that cannot be run; the message is one line that says what to change."""


class Objective(enum.StrEnum):
    """What policies are judged by; speed is to be large, the others small (`analysis.explore.outcomes.objective_values`)."""

    SPEED = "speed"
    ROLLBACK = "rollback"
    ENERGY = "energy"
    MEMORY = "memory"


@dataclass(frozen=True, kw_only=True)
class Range:
    """first, first + step, ... up to and with last; or count values from first to last, evenly spaced."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    first: int | float
    last: int | float
    step: int | float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.first) and math.isfinite(self.last)):
            raise ValueError(f"a range has two ends, but got {self.first} to {self.last}.")
        if self.last < self.first:
            raise ValueError(f"the range from {self.first} to {self.last} is empty; last must be at least first.")
        if self.step is not None and self.count is not None:
            raise ValueError("a range has a step or a count, not both.")
        if self.step is not None and not self.step > 0:
            raise ValueError(f"step must be positive, but got {self.step}.")
        if self.count is not None and self.count < 1:
            raise ValueError(f"the range is empty: count must be at least 1, but got {self.count}.")

    @property
    def num_values(self) -> int:
        """How many values there are."""
        step = 1 if self.step is None else self.step
        return math.floor((self.last - self.first) / step + 1e-9) + 1 if self.count is None else self.count

    def values(self) -> tuple[Plain, ...]:
        """The values, rounded to 10 digits so that labels stay short."""
        if self.count is not None:
            return tuple(round(float(value), 10) for value in np.linspace(self.first, self.last, self.count))
        step = 1 if self.step is None else self.step
        values = [self.first + index * step for index in range(self.num_values)]
        return tuple(value if isinstance(value, int) else round(value, 10) for value in values)


Values: TypeAlias = Range | list[Plain] | Plain


@dataclass(frozen=True, kw_only=True)
class Family:
    """All policies of one method over a grid of its settings. is_measured: settings that follow from the trace and the
    calibration (costs, the curve from signal to acceptance, the law of ranks) are taken from there."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    method: str
    settings: Mapping[str, Values] = field(default_factory=dict)
    is_measured: bool = False

    def __post_init__(self) -> None:
        for name, values in self.settings.items():
            if isinstance(values, list) and not values:
                raise ValueError(f"{self.method}: the list of {name} is empty; give at least one value.")
        num = math.prod(values.num_values if isinstance(values, Range) else 1 for values in self.settings.values())
        num *= math.prod(len(values) for values in self.settings.values() if isinstance(values, list))
        if num > MAX_POLICIES:
            raise ValueError(
                f"{self.method}: its grid has {num} policies, more than {MAX_POLICIES}; take larger steps."
            )

    def choices(self) -> dict[str, tuple[Plain, ...]]:
        """The values of each setting."""
        return {name: _values_of(values) for name, values in self.settings.items()}

    def policies(self, measured: Mapping[str, Any] | None = None) -> list[Policy]:
        """The grid. measured: settings from measurements, for those that the study leaves open."""
        choices = self.choices()
        fixed = dict(measured or {}) if self.is_measured else {}
        return [
            _made(self.method, tuple((fixed | dict(zip(choices, combination, strict=True))).items()))
            for combination in itertools.product(*choices.values())
        ]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Where and on what the policies run. Every combination is a scenario.

    temperatures: of the recorded traces; empty for all. placements: two_devices, shared_device. interference: of a
    shared device. cost_ratios: target forward / draft forward, `measured` for the calibration's. alignments: see
    `analysis.study.alignments`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    temperatures: list[float] = field(default_factory=list)
    placements: list[PlacementKind] = field(default_factory=list)
    interference: list[float] = field(default_factory=list)
    link_latency_s: list[float] = field(default_factory=lambda: [0.0])
    cost_ratios: list[Literal["measured"] | float] = field(default_factory=lambda: ["measured"])
    alignments: list[str] = field(default_factory=lambda: ["recorded"])

    def __post_init__(self) -> None:
        for name in ("link_latency_s", "cost_ratios", "alignments"):
            if not getattr(self, name):
                raise ValueError(f"the list of {name} is empty; leave it out for the default.")
        for ratio in self.cost_ratios:
            if ratio != "measured" and not 0 < float(ratio) <= MAX_RATIO:
                raise ValueError(
                    f"cost_ratios must be positive and at most {MAX_RATIO:g}, but got {ratio}; it is target / draft forward."
                )
        for name in ("temperatures", "placements", "interference", "link_latency_s", "cost_ratios", "alignments"):
            values = getattr(self, name)
            if repeated := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{name} has {repeated[0]} twice; once is enough.")
        for temperature in self.temperatures:
            Sampling(temperature)
        for alignment in self.alignments:
            parse_acceptance(alignment, KINDS)
        self.all_placements()

    def all_placements(self) -> list[Placement]:
        """Two devices with each link, a shared device with each interference; those that the study names or implies."""
        if self.placements and self.interference and PlacementKind.SHARED_DEVICE not in self.placements:
            raise ValueError("interference is that of a shared_device, which placements leave out.")
        if self.placements and any(self.link_latency_s) and PlacementKind.TWO_DEVICES not in self.placements:
            raise ValueError("link_latency_s is that of two_devices, which placements leave out.")
        kinds = self.placements or [
            PlacementKind.TWO_DEVICES,
            *([PlacementKind.SHARED_DEVICE] if self.interference else []),
        ]
        placements = []
        for kind in kinds:
            if kind is PlacementKind.TWO_DEVICES:
                placements += [Placement(link_latency_s=latency_s) for latency_s in self.link_latency_s]
            else:
                placements += [Placement(kind=kind, interference=factor) for factor in self.interference or [2.0]]
        return placements

    def all_cost_ratios(self) -> list[float | None]:
        """None stands for the measured one."""
        return [None if ratio == "measured" else float(ratio) for ratio in self.cost_ratios]


@dataclass(frozen=True, kw_only=True)
class Search:
    """grid: everything. tpe or nsga2: Optuna's samplers, `trials` policies for each scenario, asked in batches."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    kind: Literal["grid", "tpe", "nsga2"] = "grid"
    trials: int = 200
    batch: int = 20

    def __post_init__(self) -> None:
        if not (1 <= self.trials <= MAX_TRIALS and 1 <= self.batch <= MAX_TRIALS):
            raise ValueError(f"trials and batch must lie in [1, {MAX_TRIALS}], but got {self.trials} and {self.batch}.")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What `specbranch explore` answers.

    latency: `mean` times (array replay), or `drawn` ones (SimPy engine; slower, and fair to overlap where times
    scatter).
    policies_per_task: the unit of work, of resuming and of scaling out; results do not depend on the number of workers.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    policies: list[Family | str]
    conditions: Conditions = field(default_factory=Conditions)
    objectives: list[Objective] = field(default_factory=lambda: [Objective.SPEED, Objective.ROLLBACK, Objective.MEMORY])
    search: Search = field(default_factory=Search)
    latency: Literal["mean", "drawn"] = "mean"
    seed: int = 0
    policies_per_task: int = 50

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("the list of policies is empty; name at least one method or label.")
        if not self.objectives:
            raise ValueError("the list of objectives is empty; speed is the usual one.")
        if repeated := [value for value in self.objectives if self.objectives.count(value) > 1]:
            raise ValueError(f"objectives has {repeated[0]} twice; once is enough.")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed must lie in [0, 2^64), but got {self.seed}.")
        if self.policies_per_task < 1:
            raise ValueError(f"policies_per_task must be at least 1, but got {self.policies_per_task}.")
        self.all_policies()  # refuses what is not a policy

    def families(self) -> list[Family]:
        """The entries that are grids, and each label as a family of one."""
        return [entry if isinstance(entry, Family) else _family_of(entry) for entry in self.policies]

    def all_policies(self, measured: Mapping[str, Mapping[str, Any]] | None = None) -> list[Policy]:
        """Every policy of the grid once. measured: settings from measurements, by method. PolicyError for what is none."""
        policies: dict[Policy, None] = {}
        for entry in self.policies:
            if isinstance(entry, str):
                policies[parse_policy(entry)] = None
            else:
                policies |= dict.fromkeys(entry.policies((measured or {}).get(entry.method)))
        return list(policies)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for config.yaml."""
        plain: dict[str, Any] = TypeAdapter(Study).dump_python(self, mode="json")
        return plain

    def fingerprint(self) -> str:
        """One line of JSON: two studies with the same line have the same results."""
        return json.dumps(self.as_dict(), sort_keys=True)


def read_study(path: str | Path) -> Study:
    """A study from a YAML file."""
    path = Path(path)
    try:
        return make_study(read_yaml(path), where=str(path))
    except RunError as error:
        raise StudyError(str(error)) from error


def make_study(settings: Mapping[str, Any], *, where: str = "study") -> Study:
    """A study from plain values; the first mistake is named with its place."""
    try:
        return TypeAdapter(Study).validate_python(settings)
    except ValidationError as error:
        raise StudyError(f"{where}: {_explain(error)}") from None
    except PolicyError as error:
        raise StudyError(f"{where}: {error}") from None


def _explain(error: ValidationError) -> str:
    """The mistake that says most: of a choice of types the one that got furthest."""
    first = max(
        error.errors(),
        key=lambda entry: (entry["type"] in ("value_error", "unexpected_keyword_argument"), len(entry["loc"])),
    )
    skipped = ("Family", "str", "Range", "list[", "bool", "int", "float", "constrained", "literal", "function")
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(skipped))
    if first["type"] == "unexpected_keyword_argument":
        parent, _, key = place.rpartition(".")
        return f"unknown key {key!r}{' in ' + parent if parent else ''}; check its spelling."
    if first["type"] == "missing_argument" or first["type"] == "missing":
        return f"{place} is missing."
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", but got {first['input']!r:.80}"
    return f"{place + ': ' if place else ''}{message}{got}"


@lru_cache(maxsize=1 << 14)
def _made(method: str, settings: tuple[tuple[str, Any], ...]) -> Policy:
    """`make_policy`, once for each policy: a study is read, checked and answered."""
    return make_policy(method, dict(settings))


def _values_of(values: Values) -> tuple[Plain, ...]:
    if isinstance(values, Range):
        return values.values()
    return tuple(values) if isinstance(values, list) else (values,)


def _family_of(label: str) -> Family:
    name, text = split_label(label)
    settings = dict(part.split("=", 1) for part in text.split(",") if part)
    return Family(method=name, settings=settings)
