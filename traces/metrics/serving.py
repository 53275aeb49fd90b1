"""Metrics of requests under load: when tokens came, whether that met the objectives, and whether the queue settled.

TTFT is from sending to the first token, queueing included. TPOT is (last - first) / (output tokens - 1), one value a request;
a request of one token has none. ITL is the gap between two deliveries, which bring several tokens each under speculation,
so it is not TPOT. Goodput counts requests that meet every objective.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BATCH = 5  # requests of one mean in the warm-up rule
_NUM_BLOCKS = 12  # of a run, that must not rise from one to the next
_Z_OF_TREND = 3.1  # one-sided, 0.1%


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """Service-level objectives of one request, in seconds; None does not matter.

    >>> Objectives.parse(["ttft:500", "tpot:20"])
    Objectives(ttft_s=0.5, tpot_s=0.02, e2el_s=None)
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"{field.name.removesuffix('_s')} must be more than 0 milliseconds, but got {1e3 * value:g}."
                )

    @classmethod
    def parse(cls, parts: Sequence[str]) -> Objectives:
        """From NAME:MILLISECONDS as `vllm bench serve --goodput` reads them; names are ttft, tpot and e2el."""
        seconds: dict[str, float] = {}
        for part in (piece for text in parts for piece in text.split()):
            name, _, text = part.partition(":")
            if name not in ("ttft", "tpot", "e2el"):
                raise ValueError(
                    f"objective {part!r}: unknown name {name!r}; known are ttft, tpot and e2el, such as ttft:500."
                )
            if f"{name}_s" in seconds:
                raise ValueError(f"objective {part!r}: {name} is given twice; give it once.")
            try:
                seconds[f"{name}_s"] = float(text) / 1e3
            except ValueError:
                raise ValueError(
                    f"objective {part!r}: {text!r} is not a number of milliseconds; write {name}:500."
                ) from None
        return cls(**seconds)

    def label(self) -> str:
        """As it is written on a command line; empty without objectives."""
        known = [(field.name.removesuffix("_s"), getattr(self, field.name)) for field in fields(self)]
        return " ".join(f"{name}:{1e3 * value:g}" for name, value in known if value is not None)


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestTimes:
    """Requests as they were served, (requests,) each, in the order of their sending. Times in seconds; NaN: it did not come.

    sent_s, first_s, last_s: sent, first token, last token. num_output: tokens.
    """

    sent_s: Floats
    first_s: Floats
    last_s: Floats
    num_output: Ints

    @property
    def ttft_s(self) -> Floats:
        """Time to the first token."""
        return self.first_s - self.sent_s

    @property
    def e2el_s(self) -> Floats:
        """Time to the last token."""
        return self.last_s - self.sent_s

    @property
    def tpot_s(self) -> Floats:
        """Time of each further token; NaN for requests of one."""
        further = np.where(self.num_output > 1, self.num_output - 1, np.nan)
        times: Floats = (self.last_s - self.first_s) / further
        return times

    def meets(self, objectives: Objectives) -> NDArray[np.bool_]:
        """Whether each request was finished and met every objective."""
        met = np.isfinite(self.last_s)
        for limit, values in (
            (objectives.ttft_s, self.ttft_s),
            (objectives.tpot_s, np.where(self.num_output > 1, self.tpot_s, 0.0)),
            (objectives.e2el_s, self.e2el_s),
        ):
            if limit is not None:
                met &= values <= limit
        return met

    def after(self, count: int) -> RequestTimes:
        """Without the first requests."""
        return RequestTimes(
            sent_s=self.sent_s[count:],
            first_s=self.first_s[count:],
            last_s=self.last_s[count:],
            num_output=self.num_output[count:],
        )


@dataclass(frozen=True, kw_only=True)
class ServingSummary:
    """A run in numbers; times in seconds, rates a second.

    num_warm_up: requests left out at the beginning by the MSER-5 rule; everything but the throughputs is of the others.
    attainment: share of requests that met every objective. is_settled: False where later requests stayed longer and longer, so
    that means and percentiles depend on how long the run was.
    """

    num_requests: int
    num_warm_up: int
    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    attainment: float
    goodput_per_s: float
    mean_ttft_s: float
    p50_ttft_s: float
    p90_ttft_s: float
    p99_ttft_s: float
    mean_tpot_s: float
    p50_tpot_s: float
    p90_tpot_s: float
    p99_tpot_s: float
    mean_e2el_s: float
    is_settled: bool


def summarise_requests(times: RequestTimes, objectives: Objectives, *, drop_warm_up: bool = True) -> ServingSummary:
    """Metrics of a run. Raises ValueError where no request was finished."""
    finished = np.isfinite(times.last_s)
    if not finished.any():
        raise ValueError("no request was finished, so that there is nothing to measure.")
    duration_s = float(np.nanmax(times.last_s) - times.sent_s[0])
    stays = np.where(finished, times.e2el_s, np.inf)
    num_warm_up = warm_up_length(times.e2el_s[finished]) if drop_warm_up and finished.all() else 0
    steady = times.after(num_warm_up)
    met = steady.meets(objectives)
    share = float(met.mean())
    tpot = steady.tpot_s[np.isfinite(steady.tpot_s)]
    ttft = steady.ttft_s[np.isfinite(steady.ttft_s)]

    def percentiles(values: Floats) -> list[float]:
        return np.percentile(values, [50, 90, 99]).tolist() if len(values) else [math.nan] * 3

    p50_ttft, p90_ttft, p99_ttft = percentiles(ttft)
    p50_tpot, p90_tpot, p99_tpot = percentiles(tpot)
    return ServingSummary(
        num_requests=len(times.sent_s),
        num_warm_up=num_warm_up,
        duration_s=duration_s,
        requests_per_s=int(finished.sum()) / duration_s,
        output_tokens_per_s=int(times.num_output[finished].sum()) / duration_s,
        attainment=share,
        goodput_per_s=share * int(finished.sum()) / duration_s,
        mean_ttft_s=float(ttft.mean()),
        p50_ttft_s=p50_ttft,
        p90_ttft_s=p90_ttft,
        p99_ttft_s=p99_ttft,
        mean_tpot_s=float(tpot.mean()) if len(tpot) else math.nan,
        p50_tpot_s=p50_tpot,
        p90_tpot_s=p90_tpot,
        p99_tpot_s=p99_tpot,
        mean_e2el_s=float(steady.e2el_s[np.isfinite(steady.e2el_s)].mean()),
        is_settled=is_settled(stays),
    )


def warm_up_length(values: Floats) -> int:
    """Requests to leave out at the beginning: MSER-5 (White 1997), which makes the standard error of the rest's mean least.

    At most half of them are. Means of 5 neighbours are taken first.

    >>> warm_up_length(np.array([9.0] * 10 + [1.0, 2.0] * 45))
    10
    """
    num_means = len(values) // BATCH
    if num_means < 4:
        return 0
    means = values[: num_means * BATCH].reshape(num_means, BATCH).mean(axis=1)
    counts = np.arange(num_means, 0, -1)
    sums, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    errors = (squares - sums**2 / counts) / counts.astype(float) ** 2
    return int(np.argmin(errors[: num_means // 2 + 1])) * BATCH


def is_settled(values: Floats) -> bool:
    """Whether the later requests stayed no longer than the ones before: no trend over blocks of the run.

    values: (requests,) times in the system in the order of sending; infinite where a request was never finished. A run is not
    settled where Mann and Kendall's test over 12 blocks finds a rise (0.1%) that makes the last third a half longer than
    the first, or where a request was never finished.

    >>> is_settled(np.arange(1200.0)), is_settled(np.tile([1.0, 2.0], 600))
    (False, True)
    """
    if not np.isfinite(values).all():
        return False
    size = len(values) // _NUM_BLOCKS
    if size < 1:
        return True
    means = values[len(values) - size * _NUM_BLOCKS :].reshape(_NUM_BLOCKS, size).mean(axis=1)
    later, earlier = np.triu_indices(_NUM_BLOCKS, 1)[::-1]
    score = float(np.sign(means[later] - means[earlier]).sum())
    spread = math.sqrt(_NUM_BLOCKS * (_NUM_BLOCKS - 1) * (2 * _NUM_BLOCKS + 5) / 18)
    third = _NUM_BLOCKS // 3
    return not (score / spread > _Z_OF_TREND and means[-third:].mean() > 1.5 * means[:third].mean())
