"""What is being bought: a replica's step costs, its memory, its price."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.study.planned import Planned
from sim.serving.roofline import kv_tokens_of, step_costs_of
from traces.fits.step_costs import StepCosts

# List prices an hour move; these are round numbers to compare by, and --price overrides them. Watts: the makers' limits.
PRICES_PER_HOUR = {"h100": 3.0, "h200": 4.0, "b200": 6.0, "a100-80gb": 1.8, "a100-40gb": 1.5, "l40s": 1.0, "l4": 0.6}
WATTS = {
    "h100": 700.0, "h200": 700.0, "b200": 1000.0, "a100-80gb": 400.0, "a100-40gb": 400.0, "l40s": 350.0, "l4": 72.0,
    "rtx4090": 450.0, "mi300x": 750.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One replica.

    kv_tokens: that its memory holds without a draft, and kv_tokens_with_draft with the draft's weights and cache beside the
    target's. num_devices: of the target. price_per_hour, watts: of one device; None where unknown.
    """

    name: str
    costs: StepCosts
    kv_tokens: int
    kv_tokens_with_draft: int
    num_devices: int = 1
    price_per_hour: float | None = None
    watts: float | None = None

    def __post_init__(self) -> None:
        for name in ("kv_tokens", "kv_tokens_with_draft", "num_devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}.")
        if self.price_per_hour is not None and not 0 < self.price_per_hour < float("inf"):
            raise ValueError(f"a device's price must be more than 0 an hour, but got {self.price_per_hour}.")


def machine_of(planned: Planned, *, price_per_hour: float | None = None, kv_tokens: int | None = None) -> Machine:
    """A pair on devices by their data sheets. kv_tokens: what an engine's log says, in the place of what is computed.

    Raises ValueError for unknown hardware, and for a pair that leaves no room for a cache.
    """
    latency = planned.latency()
    is_shared = not planned.draft_hardware
    plain = kv_tokens or kv_tokens_of(latency, with_draft=False)
    drafting = kv_tokens or kv_tokens_of(latency, with_draft=is_shared)
    return Machine(
        name=latency.target_hardware.name,
        costs=step_costs_of(latency),
        kv_tokens=plain,
        kv_tokens_with_draft=drafting,
        num_devices=planned.num_devices,
        price_per_hour=price_per_hour or PRICES_PER_HOUR.get(planned.hardware),
        watts=WATTS.get(planned.hardware),
    )
