"""The plain answer that every deciding command ends with, and the report begins with: one piece of code for all of them.

A method is shown to beat plain decoding when the 95% interval of its speed-up lies above 1 and nothing speaks against the
times. "No method is shown to beat plain decoding here" is an answer, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from analysis.check.comparison import ComparedPolicy
from analysis.check.validation import Validation
from analysis.cli.tables import pasted_label, short_label
from sim.decoding.policies.catalog import PolicyError
from traces.metrics.speeds import Speed, doubt_of

PLAIN = "autoregressive"
MIN_SUMMARISED = 3  # scenarios
MAX_DETAILED = 4
PROBE = "probe"  # a policy that only calibrates
NO_METHOD = "No method is shown to beat plain decoding here"


def method_of(policy: str) -> str:
    """The method of a label, also of one that the catalog does not know."""
    return policy.partition(":")[0]


def name_of(policy: str) -> str:
    """A policy for people, with the settings that are not at their defaults; the label itself where the catalog does not know
    it, as of a run that other code wrote."""
    try:
        return short_label(policy)
    except PolicyError:
        return policy


def label_for(policy: str) -> str:
    """A policy as `--policy` takes it, without the settings that are at their defaults where the catalog knows them."""
    try:
        return pasted_label(policy)
    except PolicyError:
        return policy


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """An answer under one set of conditions, in whole sentences; empty where there is nothing to say.

    where: the conditions, such as "T = 1". answer: which method with which settings, and how much faster than plain decoding.
    how_sure, would_change, next_step: as named. policy: the label to use, which `--policy` reads; plain decoding's where no
    method is shown to beat it, None where the question was another one. is_shown: whether a method is.
    """

    where: str
    answer: str
    how_sure: str = ""
    would_change: str = ""
    next_step: str = ""
    policy: str | None = None
    speedup: float | None = None
    interval: tuple[float, float] | None = None
    is_shown: bool = False

    def lines(self) -> list[str]:
        """For people, the answer first."""
        rest = (
            ("How sure: ", self.how_sure),
            ("What would change it: ", self.would_change),
            ("What to run next: ", self.next_step),
        )
        return [
            f"{self.where}: {self.answer}" if self.where else self.answer,
            *(f"  {name}{text}" for name, text in rest if text),
        ]

    def as_dict(self) -> Mapping[str, Any]:
        """For programs."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A policy that may be the answer. predicted: its predicted speed-up, where the other numbers were measured."""

    policy: str
    temperature: float
    speed: float
    speedup: float | None
    interval: tuple[float, float] | None
    predicted: float | None = None


def decide(
    where: str,
    contenders: Sequence[Contender],
    *,
    doubt: str = "",
    is_measured: bool = True,
    how_sure: str = "",
    would_change: str = "",
    next_step: str = "",
) -> Verdict:
    """The answer among contenders of one scenario. doubt: why the times support no claim; empty where nothing speaks against
    them. how_sure: what is known beside the intervals, in sentences."""
    methods = [each for each in contenders if method_of(each.policy) not in (PLAIN, PROBE) and each.speedup is not None]
    said = Verdict(
        where=where, answer="", how_sure=how_sure, would_change=would_change, next_step=next_step, policy=PLAIN
    )
    if not methods:
        if any(each.policy == PLAIN for each in contenders):
            answer = f"{NO_METHOD}: no other one {'was run' if is_measured else 'was tried'}."
        else:
            answer = "Nothing can be said against plain decoding, which was not run here."
        return replace(said, answer=answer, policy=None)
    best = max(methods, key=lambda each: each.speed)
    assert best.speedup is not None
    low, high = best.interval or (float("nan"), float("nan"))
    name, gain = name_of(best.policy), f"{best.speedup:.2f} times the speed of plain decoding"
    verb = "measured" if is_measured else "predicted"
    span = f"95%: {low:.2f} to {high:.2f}" if best.interval else "without an interval"
    if doubt:  # then no method is named, and no price at which it would change
        return replace(said, answer=f"{NO_METHOD}: {_in_short(doubt)}.", would_change="")
    said = replace(said, speedup=best.speedup, interval=best.interval)
    if not best.interval or low <= 1:
        return replace(said, answer=f"{NO_METHOD}. The fastest was {name}, {verb} at {gain} ({span}).")
    told = f"; predicted {best.predicted:.2f}" if is_measured and best.predicted else ""
    return replace(
        said,
        answer=f"Use {name}: {verb} at {gain} ({span}{told}).",
        is_shown=True,
        policy=best.policy,
        how_sure=" ".join(filter(None, [_rivals_of(best, methods), how_sure])),
    )


def _in_short(doubt: str) -> str:
    """The first of several reasons, and how many more there are; the commands print all of them beside their tables."""
    first, *others = doubt.rstrip(".").split("; ")
    more = f" (and {len(others)} more reasons)" if len(others) > 1 else " (and one more reason)" if others else ""
    return first + more


def _rivals_of(best: Contender, methods: Iterable[Contender]) -> str:
    """Which others may be as fast: those whose interval reaches the best one's speed-up."""
    assert best.speedup is not None
    level = [
        each
        for each in sorted(methods, key=lambda each: -each.speed)
        if each is not best and each.interval and each.interval[1] >= best.speedup
    ]
    if not level:
        return "Its speed-up lies above the interval of every other method."
    names = ", ".join(f"{name_of(each.policy)} ({each.speedup:.2f})" for each in level[:3])
    more = f" and {len(level) - 3} more" if len(level) > 3 else ""
    return f"Within their intervals as fast: {names}{more}."


def of_validation(
    validation: Validation, *, would_change: Mapping[float, str] | None = None, next_step: str = ""
) -> list[Verdict]:
    """One a temperature, from measured policies. would_change: by temperature."""
    verdicts = []
    for temperature in dict.fromkeys(check.temperature for check in validation.policies):
        contenders = [
            Contender(
                policy=check.policy,
                temperature=temperature,
                speed=check.speed,
                speedup=check.speedup,
                interval=check.best_speedup_interval,
                predicted=check.predicted_speedup,
            )
            for check in validation.policies
            if check.temperature == temperature
        ]
        verdicts.append(
            decide(
                f"T = {temperature:g}",
                contenders,
                doubt="" if validation.is_claim else validation.note or "the times of this run support no claim",
                how_sure=_noise_sentence(validation),
                would_change=(would_change or {}).get(temperature, ""),
                next_step=next_step,
            )
        )
    return verdicts


def _noise_sentence(validation: Validation) -> str:
    floor = validation.same_policy_difference
    return "" if floor is None else f"One policy, measured twice, differs from itself by {floor:.1%}."


def of_comparison(
    rows: Sequence[ComparedPolicy], *, would_change: Mapping[float, str] | None = None, next_step: str = ""
) -> list[Verdict]:
    """One a temperature, from the table of `specbranch compare`."""
    verdicts = []
    for temperature in dict.fromkeys(row.temperature for row in rows):
        here = [row for row in rows if row.temperature == temperature]
        contenders = [
            Contender(
                policy=row.policy,
                temperature=temperature,
                speed=row.adjusted_tokens_per_s or row.tokens_per_s,
                speedup=row.speedup_over_autoregressive,
                interval=row.speedup_interval,
            )
            for row in here
        ]
        doubt = "; ".join(dict.fromkeys(row.note for row in here if row.note))
        changes = (would_change or {}).get(temperature, "")
        verdicts.append(
            decide(f"T = {temperature:g}", contenders, doubt=doubt, would_change=changes, next_step=next_step)
        )
    return verdicts


def of_speeds(
    speeds: Sequence[Speed], *, is_measured: bool, would_change: Mapping[float, str] | None = None, next_step: str = ""
) -> list[Verdict]:
    """One a temperature, from speeds that were measured or simulated."""
    verdicts = []
    for temperature in dict.fromkeys(speed.temperature for speed in speeds):
        here = [speed for speed in speeds if speed.temperature == temperature]
        doubt = doubt_of(sum(each.num_unclean for each in here), sum(each.num_requests for each in here))
        verdicts.append(
            decide(
                f"T = {temperature:g}",
                [contender_of(speed) for speed in here],
                doubt=doubt,
                is_measured=is_measured,
                would_change=(would_change or {}).get(temperature, ""),
                next_step=next_step,
            )
        )
    return verdicts


def contender_of(speed: Speed) -> Contender:
    """A speed as a contender."""
    return Contender(
        policy=speed.policy,
        temperature=speed.temperature,
        speed=speed.tokens_per_s,
        speedup=speed.speedup,
        interval=speed.speedup_interval,
    )


def verdict_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """All verdicts for people; what is the same for all of them is said once, at the end. Of many scenarios the first few
    answers stand here, without what is said of each: --json and the report hold everything."""
    parts = ("how_sure", "would_change", "next_step")
    shared = {
        name: getattr(verdicts[0], name)
        for name in parts
        if len(verdicts) > 1 and len({getattr(each, name) for each in verdicts}) == 1
    }
    is_many = len(verdicts) > MAX_DETAILED
    none: dict[str, Any] = dict.fromkeys(parts if is_many else shared, "")
    lines = [line for each in verdicts[:MAX_DETAILED] for line in replace(each, **none).lines()]
    lines += [f"{len(verdicts) - MAX_DETAILED} more scenarios are answered in --json."] if is_many else []
    lines += _across(verdicts)
    return [*lines, *Verdict(where="", answer="", **shared).lines()[1:]] if shared else lines


def _across(verdicts: Sequence[Verdict]) -> list[str]:
    """Of several conditions: how often each method is the answer, in one line."""
    if len(verdicts) < MIN_SUMMARISED:
        return []
    counts = Counter(method_of(each.policy) if each.is_shown and each.policy else PLAIN for each in verdicts)
    told = ", ".join(
        f"{'plain decoding' if name == PLAIN else name} in {count}" for name, count in counts.most_common()
    )
    return [f"Across {len(verdicts)} scenarios the answer is: {told}."]
