"""The what-if panel: which method wins at other costs, acceptance and draft lengths, on a grid that the simulator computed.

Outcomes are drawn from this pair's own law of acceptance (clustered, as recorded), moved to other means; times are constant,
with a verification that gets dearer with its width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.explore.flips import WIDTH
from analysis.explore.work.evaluation import Timing, Workload, speeds_under
from analysis.report.charts import GREY, colour, layout, method_name
from analysis.report.elements import Panel, Section
from analysis.report.material import Arm
from analysis.tuning.measured import typical_context
from sim.decoding.acceptance_models import AcceptanceModel, Chained, Geometric, sample_requests
from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import Saguaro
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.latency.constant import ConstantLatency
from sim.latency.placement import cost_ratio_of
from sim.latency.varied import VariedLatency
from traces.fits.acceptance.chain import fit_hazard
from traces.schema import Actor, OpKind, OpShape, RequestTrace

ACCEPTANCES = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
RATIOS = (1.5, 2.5, 4.0, 6.0, 9.0, 13.0, 20.0, 30.0, 50.0)
WIDENINGS = (1.0, 1.25, 1.6, 2.5)  # a verification of WIDTH tokens over that of one
WINDOWS = (1, 2, 3, 4, 6, 8, 12)
METHODS: dict[str, Callable[[int], Policy]] = {
    "fixed_length": FixedLength,
    "pearl": Pearl,
    "saguaro": Saguaro,
    "specbranch": lambda length: SpecBranch(length, uses_hrad=False),
}
NUM_REQUESTS = 16
NUM_TOKENS = 150
MARGIN = 0.01  # of speed over plain decoding, to win


@dataclass(frozen=True, kw_only=True)
class PairPrices:
    """ratio: target over draft forward. widening: verification of WIDTH tokens over that of one. branch: of each further row,
    in draft forwards. host: a round, in target forwards."""

    ratio: float
    widening: float
    branch: float
    host: float


def what_if_section(arm: Arm) -> Section | None:
    """The panel, at the first temperature of the traces; it starts where this pair stands."""
    if not arm.temperatures:
        return None
    traces = [trace for trace in arm.traces if trace.temperature == arm.temperatures[0]]
    model_of, how = _models(traces)
    acceptance = float(np.mean([rank == 0 for trace in traces for rank in trace.ranks]))
    prices = _prices_of(arm, traces)
    ratio, widening = prices.ratio, prices.widening
    grid = what_if_grid(model_of, prices, tail_depth=min((trace.tail_depth for trace in traces), default=0))
    methods = [method for method in METHODS if method in grid]
    axes = [
        {"name": "acceptance", "title": "Acceptance", "points": ACCEPTANCES, "start": acceptance, "is_share": True},
        {
            "name": "ratio",
            "title": "Target forward, in draft forwards",
            "points": RATIOS,
            "start": ratio,
            "is_log": True,
        },
        {
            "name": "widening",
            "title": f"Verifying {WIDTH} tokens, in times of one",
            "points": WIDENINGS,
            "start": widening,
        },
        {
            "name": "window",
            "title": "Drafts of up to",
            "points": WINDOWS,
            "start": 8,
            "is_step": True,
            "unit": " tokens",
        },
    ]
    data: dict[str, Any] = {
        "axes": [{"is_log": False, "is_step": False, "is_share": False, "unit": ""} | axis for axis in axes],
        "methods": [{"name": method_name(method), "colour": colour(method)} for method in methods],
        "speedups": [np.round(grid[method], 3).ravel() for method in methods],
        "here": {"acceptance": acceptance, "ratio": ratio},
        "margin": MARGIN,
        "plain_colour": GREY,
        "map_note": "Which method wins, over cost and acceptance, at the verification and the draft length of the sliders. "
        "The star is this pair, the ring the sliders.",
        "bars": layout("speed-up over plain decoding", "", y={"type": "category", "showgrid": False}, showlegend=False),
        "map": layout(
            "target forward, in draft forwards",
            "acceptance",
            x={"type": "log", "tickvals": [2, 3, 5, 10, 20, 50], "showgrid": False},
            y={"tickformat": ".0%", "showgrid": False},
        ),
    }
    note = (
        f"Simulated {how} at T = {arm.temperatures[0]:g}, on two devices. A further branch costs {prices.branch:.2f} draft "
        f"forwards and the host {prices.host:.2f} target forwards a round{', as calibrated' if arm.latency else ''}. Between "
        "the points of the grid speed-ups are taken to be straight lines."
    )
    lead = "Move the sliders to another machine or another pair; the page answers from a grid that was simulated beforehand."
    panel = Panel(name="what-if-grid", kind="what-if", data=data, note=note)
    return Section(name="what-if", title="What if", lead=lead, elements=[panel])


def what_if_grid(
    model_of: Callable[[float], AcceptanceModel], prices: PairPrices, *, tail_depth: int
) -> dict[str, NDArray[np.float64]]:
    """Speed-up over plain decoding of each method: (acceptances, ratios, widenings, windows). tail_depth: of the model's
    traces; windows that look further after a wrong token are as good as the longest that does not."""
    policies: list[Policy] = [Autoregressive()]
    fitting = {
        name: [length for length in WINDOWS if make(length).needs.tail_depth <= tail_depth]
        for name, make in METHODS.items()
    }
    kept = [name for name, lengths in fitting.items() if lengths]
    policies += [METHODS[name](min(length, fitting[name][-1])) for name in kept for length in WINDOWS]
    latencies = [
        VariedLatency(
            base=ConstantLatency(draft_s=1 / ratio, verify_s=1.0, branch_s=prices.branch / ratio, host_s=prices.host),
            verify_further_s=(widening - 1) / (WIDTH - 1),
        )
        for ratio in RATIOS
        for widening in WIDENINGS
    ]
    found = []
    for acceptance in ACCEPTANCES:
        traces = sample_requests(model_of(acceptance), NUM_REQUESTS, NUM_TOKENS, seed=0)
        workload = Workload(traces=tuple(traces), latency=latencies[0], timings=(Timing(),))
        speeds = speeds_under(workload, Timing(), policies, latencies)
        found.append(speeds[:, 1:] / speeds[:, [0]])
    # (acceptances, ratios, widenings, methods, windows)
    whole = np.array(found).reshape(len(ACCEPTANCES), len(RATIOS), len(WIDENINGS), len(kept), len(WINDOWS))
    return {name: whole[:, :, :, index] for index, name in enumerate(kept)}


def _models(traces: Sequence[RequestTrace]) -> tuple[Callable[[float], AcceptanceModel], str]:
    """From a mean acceptance to a model: this pair's own law where the traces have signals and both outcomes."""
    ranks = [rank for trace in traces for rank in trace.ranks]
    if len({rank == 0 for rank in ranks}) < 2 or not all(trace.signals for trace in traces):
        return (lambda alpha: Geometric(alpha=alpha)), "with independent acceptance"
    chain = fit_hazard(traces)
    return (lambda alpha: Chained(chain.shifted_to(alpha), traces)), "with this pair's own clustering of acceptance"


def _prices_of(arm: Arm, traces: Sequence[RequestTrace]) -> PairPrices:
    """Of this pair; typical ones where nothing was calibrated."""
    if arm.latency is None:
        return PairPrices(ratio=10.0, widening=1.1, branch=0.05, host=0.02)
    context, latency = typical_context(traces), arm.latency

    def seconds(actor: Actor, kind: OpKind, tokens: int, rows: int = 1) -> float:
        return latency.mean_s(OpShape(actor, kind, tokens, rows, context))

    target_s, draft_s = seconds(Actor.TARGET, OpKind.VERIFY, 1), seconds(Actor.DRAFT, OpKind.DRAFT, 1)
    try:
        further_s = (seconds(Actor.DRAFT, OpKind.BRANCH, 1, 5) - seconds(Actor.DRAFT, OpKind.BRANCH, 1, 1)) / 4
    except ValueError:  # no branches were recorded
        further_s = 0.05 * draft_s
    return PairPrices(
        ratio=cost_ratio_of(latency, context),
        widening=seconds(Actor.TARGET, OpKind.VERIFY, WIDTH) / target_s,
        branch=max(0.0, further_s / draft_s),
        host=max(0.0, seconds(Actor.HOST, OpKind.HOST, WIDTH) / target_s),
    )
