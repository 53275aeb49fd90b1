"""At which prices the answer flips: the simulator times the same rounds again with one price moved until another method wins.

Prices are those that differ most between machines: a verification of several tokens, a draft forward, the host's work in a
round. Rounds do not depend on times, so that every policy is replayed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.explore.work.evaluation import Timing, Workload, speeds_under
from analysis.tuning.measured import typical_context
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import label_of
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.latency.base import LatencyModel
from sim.latency.placement import AdjustedLatency, cost_ratio_of
from sim.latency.varied import VariedLatency
from traces.schema import Actor, OpKind, OpShape, RequestTrace

WIDTH = 4  # tokens of the verification that is spoken of
NUM_STEPS = 12  # in each direction
MAX_WIDENING = 4.0  # a verification of WIDTH tokens as dear as WIDTH of one token
MAX_FACTOR = 8.0  # of the draft's price
MAX_HOST = 1.0  # target forwards a round


@dataclass(frozen=True, kw_only=True)
class Lever:
    """One price. name, unit: for sentences. value: today's. points: at which it was tried, rising. speeds: (points, policies)
    tokens/s."""

    name: str
    unit: str
    value: float
    points: NDArray[np.float64]
    speeds: NDArray[np.float64]

    @property
    def today(self) -> int:
        """The point that is today's price."""
        return int(np.argmin(abs(self.points - self.value)))


@dataclass(frozen=True, kw_only=True)
class Flip:
    """The price nearest to today's at which another method is faster than the chosen one. becomes: its label."""

    name: str
    unit: str
    value: float
    flips_at: float
    becomes: str

    @property
    def distance(self) -> float:
        """How far the price has to move, as a logarithm."""
        return abs(math.log(max(self.flips_at, 1e-12) / max(self.value, 1e-12)))

    def sentence(self, name_of: Callable[[str], str] = str) -> str:
        """In words. name_of: from a label to a name."""
        winner = "plain decoding" if self.becomes == "autoregressive" else name_of(self.becomes)
        price = f"{self.flips_at:.3g} {self.unit} instead of {self.value:.3g}"
        return f"The answer flips to {winner} if {self.name} costs {price}."


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What was tried. policies: labels, the chosen one first, plain decoding among them."""

    policies: tuple[str, ...]
    levers: tuple[Lever, ...]

    def speedups(self, lever: Lever) -> NDArray[np.float64]:
        """(points, policies) speed over that of plain decoding at the same price."""
        plain = self.policies.index("autoregressive")
        return lever.speeds / lever.speeds[:, [plain]]

    @property
    def preferred(self) -> str:
        """The fastest policy at today's prices."""
        lever = self.levers[0]
        return self.policies[int(lever.speeds[lever.today].argmax())]

    def flips(self) -> list[Flip]:
        """The nearest flip of each price in each direction, between methods: other settings of one method are no flip."""
        return [flip for lever in self.levers for flip in self._flips_of(lever)]

    def _flips_of(self, lever: Lever) -> list[Flip]:
        methods = [label.partition(":")[0] for label in self.policies]
        own = np.array([method == methods[0] for method in methods])
        # Above 0 where another method is faster than the best setting of the chosen one.
        lead = np.log(lever.speeds[:, ~own].max(axis=1) / lever.speeds[:, own].max(axis=1))
        others = np.flatnonzero(~own)[lever.speeds[:, ~own].argmax(axis=1)]
        today = lever.today
        if lead[today] > 0:  # another method is faster already, on mean times
            return []
        flips = []
        for step in (-1, 1):
            places = range(today, len(lever.points) if step > 0 else -1, step)
            found = next((place for place in places if lead[place] > 0), None)
            if found is not None:
                before, after = lead[found - step], lead[found]
                share = float(-before / (after - before))
                at = lever.points[found - step] + share * (lever.points[found] - lever.points[found - step])
                flips.append(
                    Flip(
                        name=lever.name,
                        unit=lever.unit,
                        value=lever.value,
                        flips_at=float(at),
                        becomes=self.policies[int(others[found])],
                    )
                )
        return flips


def vary_prices(
    traces: Sequence[RequestTrace], latency: LatencyModel, policies: Sequence[Policy], chosen: Policy
) -> Prices:
    """Time the policies at other prices, mean latencies on two devices. traces: of one temperature, with what the policies
    need."""
    policies = list(dict.fromkeys([chosen, *policies, Autoregressive()]))
    context = typical_context(traces)

    def seconds(actor: Actor, kind: OpKind, tokens: int) -> float:
        return latency.mean_s(OpShape(actor, kind, tokens, 1, context))

    target_s = seconds(Actor.TARGET, OpKind.VERIFY, 1)
    widening = seconds(Actor.TARGET, OpKind.VERIFY, WIDTH) / target_s
    ratio = cost_ratio_of(latency, context)
    host_s = seconds(Actor.HOST, OpKind.HOST, 1)
    tries: list[tuple[str, str, float, NDArray[np.float64], Callable[[float], LatencyModel]]] = [
        (
            f"verifying {WIDTH} tokens",
            "times the verification of one",
            widening,
            _around(widening, min(1.0, widening), max(MAX_WIDENING, widening)),
            lambda point: VariedLatency(base=latency, verify_further_s=(point - widening) * target_s / (WIDTH - 1)),
        ),
        (
            "a draft forward",
            "of a target forward",
            1 / ratio,
            np.exp(_around(np.log(1 / ratio), np.log(1 / ratio / MAX_FACTOR), np.log(MAX_FACTOR / ratio))),
            lambda point: AdjustedLatency(latency, point * ratio),
        ),
        (
            "the host's work in a round",
            "ms",
            1e3 * host_s,
            1e3 * _around(host_s, 0.0, host_s + MAX_HOST * target_s),
            lambda point: VariedLatency(base=latency, host_further_s=point / 1e3 - host_s),
        ),
    ]
    workload = Workload(traces=tuple(traces), latency=latency, timings=(Timing(),))
    models = [make(float(point)) for _, _, _, points, make in tries for point in points]
    speeds = speeds_under(workload, Timing(), policies, models)
    levers, first = [], 0
    for name, unit, value, points, _ in tries:
        part = speeds[first : first + len(points)]
        levers.append(Lever(name=name, unit=unit, value=float(value), points=points, speeds=part))
        first += len(points)
    return Prices(policies=tuple(map(label_of, policies)), levers=tuple(levers))


def _around(value: float, low: float, high: float) -> NDArray[np.float64]:
    """Points from low to high, evenly on both sides of the value, which is one of them."""
    below = np.linspace(low, value, NUM_STEPS + 1)[:-1] if low < value else np.empty(0)
    return np.concatenate([below, np.linspace(value, high, NUM_STEPS + 1)])
