"""How long to measure: until the speed-ups are known well enough, or the time is used up."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import pandas as pd

from traces.metrics.machine_speed import machine_speed_of
from traces.metrics.speeds import Speed, measured_speeds

MIN_BLOCKS = 12  # before the first look: fewer prompts cannot tell how much they differ
FEWEST_BLOCKS = 6  # whatever the time
GROWTH = 1.2  # from one look to the next, so that looking takes little of the time


@dataclass(frozen=True, kw_only=True)
class Effort:
    """When to stop measuring. precision: half the 95% interval of a speed-up over it, of the worst-known policy; None goes on.
    max_s: seconds of measuring; None has no end of its own."""

    precision: float | None = None
    max_s: float | None = None

    @classmethod
    def of(cls, precision: str, max_seconds: float) -> Effort:
        """As options say it: a percentage or a fraction, empty for none, and seconds, 0 for no end. Raises ValueError.

        >>> Effort.of("3%", 0)
        Effort(precision=0.03, max_s=None)
        """
        return cls(precision=parse_precision(precision) if precision else None, max_s=max_seconds or None)

    def __post_init__(self) -> None:
        if self.precision is not None and not 0 < self.precision < 1:
            raise ValueError(f"precision must lie between 0% and 100%, but got {self.precision:.3%}; 3% is usual.")
        if self.max_s is not None and not self.max_s > 0:
            raise ValueError(f"the seconds to measure must be positive, but got {self.max_s}.")


@dataclass
class Watch:
    """Decides after every block of a recording. old_prompts: those that only calibrate."""

    effort: Effort
    old_prompts: Collection[str] = ()
    now: Callable[[], float] = time.monotonic
    _began_s: float | None = field(default=None, init=False)
    _next_look: int = field(default=MIN_BLOCKS, init=False)

    def __call__(self, num_blocks: int, tables: Callable[[], tuple[pd.DataFrame, pd.DataFrame]]) -> bool:
        """Whether it is enough. tables: requests and rounds up to now."""
        if self._began_s is None:
            self._began_s = self.now()  # one block late, which is shorter than the last one is over time
        if num_blocks < FEWEST_BLOCKS:
            return False
        if self.effort.max_s is not None and self.now() - self._began_s >= self.effort.max_s:
            return True
        if self.effort.precision is None or num_blocks < self._next_look:
            return False
        self._next_look = max(num_blocks + 2, round(GROWTH * num_blocks))
        requests, rounds = tables()
        adjusted = machine_speed_of(requests, rounds).adjusted(rounds)
        tested = requests[~requests.prompt_id.isin(list(self.old_prompts))]
        widest = widest_interval(measured_speeds(tested, adjusted)) if len(tested) else None
        return widest is not None and widest <= self.effort.precision


def widest_interval(speeds: Sequence[Speed]) -> float | None:
    """Half the widest 95% interval of a speed-up, over that speed-up; None where there is none."""
    known = [(speed.speedup, speed.speedup_interval) for speed in speeds if speed.speedup and speed.speedup_interval]
    return max(((high - low) / 2 / speedup for speedup, (low, high) in known), default=None)


def parse_precision(text: str) -> float:
    """A share as a percentage or a fraction. Raises ValueError.

    >>> parse_precision("3%"), parse_precision("0.03")
    (0.03, 0.03)
    """
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"--precision must be a percentage such as 3%, but got {text!r}.") from None
    if not 0 < value < 1:
        raise ValueError(f"--precision must lie between 0% and 100%, but got {text!r}; 3% is usual.")
    return value
