"""Latency of models on hardware one does not own: from the weights, the cache, and a device's two roofs.

A forward takes the slower of moving its bytes and doing its FLOPs, and what its layers' launches cost besides:

    seconds = overhead + layers layer_s + max(bytes / bandwidth, FLOPs / peak)

Bytes: all weights once (of experts those that some token takes), and the cache of every row once. FLOPs: 2 a weight and
token, and attention.
Williams, Waterman, Patterson 2009, doi:10.1145/1498765.1498785.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sim.decoding.model_shapes import ModelShape
from sim.latency.base import Array, PlainLatency, actor_of
from sim.latency.uncertain import Moved
from traces.fits.calibration import group_of
from traces.schema import Actor, OpKind, OpShape


class DataSheet(NamedTuple):
    """What a device's maker promises: dense 16-bit products, no sparsity."""

    bandwidth_bytes_per_s: float
    peak_flops_per_s: float
    memory_bytes: float


DEVICES: Mapping[str, DataSheet] = {
    "a100-40gb": DataSheet(1.555e12, 312e12, 40e9),
    "a100-80gb": DataSheet(2.039e12, 312e12, 80e9),
    "h100": DataSheet(3.35e12, 989e12, 80e9),
    "h200": DataSheet(4.8e12, 989e12, 141e9),
    "b200": DataSheet(8.0e12, 2250e12, 180e9),
    "l4": DataSheet(0.3e12, 121e12, 24e9),
    "l40s": DataSheet(0.864e12, 362e12, 48e9),
    "rtx4090": DataSheet(1.008e12, 165e12, 24e9),
    "mi300x": DataSheet(5.3e12, 1307e12, 192e9),
}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A device's two roofs, as a forward reaches them, and its memory. overhead_s: of one forward. layer_s: of one layer,
    however little it moves: launches, dependencies, and collectives between several devices.
    """

    name: str
    bandwidth_bytes_per_s: float
    peak_flops_per_s: float
    memory_bytes: float = float("inf")
    overhead_s: float = 0.0
    layer_s: float = 0.0

    def __post_init__(self) -> None:
        roofs, costs = (
            (self.bandwidth_bytes_per_s, self.peak_flops_per_s, self.memory_bytes),
            (self.overhead_s, self.layer_s),
        )
        if not (min(roofs) > 0 and min(costs) >= 0):
            raise ValueError(
                f"{self.name}: bandwidth, peak and memory must be positive and the overheads at least 0; got {self}."
            )

    @classmethod
    def named(
        cls,
        name: str,
        *,
        num_devices: int = 1,
        bandwidth_share: float = 0.9,
        peak_share: float = 0.7,
        overhead_s: float = 0.0,
        layer_s: float = 2e-5,
    ) -> Hardware:
        """One of DEVICES, or several that split every matrix evenly, at a share of the data sheet.

        The defaults follow one H100 (0.9 of its bandwidth in a long read, 19 and 26 us a layer of graphs of Triton kernels),
        but for peak_share, which is not measured.

        >>> Hardware.named("h100", num_devices=2, bandwidth_share=0.5).bandwidth_bytes_per_s / 1e12
        3.35
        """
        sheet = DEVICES.get(name)
        if sheet is None:
            raise ValueError(f"no device is called {name!r}; choose one of {', '.join(DEVICES)}.")
        if num_devices < 1:
            raise ValueError(f"{name}: at least 1 device is needed, but got {num_devices}.")
        for what, share in (("bandwidth_share", bandwidth_share), ("peak_share", peak_share)):
            if not 0 < share <= 1:
                raise ValueError(f"{name}: {what} must lie in (0, 1], but got {share}.")
        return cls(
            name=name if num_devices == 1 else f"{num_devices} x {name}",
            bandwidth_bytes_per_s=num_devices * bandwidth_share * sheet.bandwidth_bytes_per_s,
            peak_flops_per_s=num_devices * peak_share * sheet.peak_flops_per_s,
            memory_bytes=num_devices * sheet.memory_bytes,
            overhead_s=overhead_s,
            layer_s=layer_s,
        )


@dataclass(frozen=True, kw_only=True)
class RooflineLatency(PlainLatency):
    """A pair on two devices (the same one twice where they share it). bytes_per_weight: 2 for 16 bits, 0.5 for 4.
    uncertainty: of every number of the devices and the host, relative, as the half-width of its interval.

    Without overheads it is a bound from below: nothing is faster. A 7 B model in 16 bits at 2 TB/s reads 13 GB, so that a
    token takes 6.6 ms and 5 tokens hardly more:

    >>> model = ModelShape(num_layers=32, hidden_size=4096, intermediate_size=11008, num_heads=32, num_kv_heads=32,
    ...                    head_dim=128, vocab_size=32000)
    >>> device = Hardware(name="2 TB/s", bandwidth_bytes_per_s=2e12, peak_flops_per_s=300e12)
    >>> latency = RooflineLatency(target=model, draft=model, target_hardware=device, draft_hardware=device)
    >>> latency.mean_array(OpKind.VERIFY, [1, 5, 1000], 1, 0).round(4).tolist()
    [0.0066, 0.0066, 0.0449]
    """

    target: ModelShape
    draft: ModelShape
    target_hardware: Hardware
    draft_hardware: Hardware
    host_s: float = 0.0
    bytes_per_weight: float = 2.0
    bytes_per_kv: float = 2.0
    uncertainty: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.uncertainty < 1:
            raise ValueError(f"uncertainty must lie in [0, 1), but got {self.uncertainty}.")
        if not 0 <= self.host_s < float("inf"):
            raise ValueError(f"host_s must be at least 0 seconds, but got {self.host_s}.")
        if not (0 < self.bytes_per_weight < float("inf") and 0 < self.bytes_per_kv < float("inf")):
            raise ValueError(
                f"bytes_per_weight and bytes_per_kv must be positive, but got {self.bytes_per_weight} and {self.bytes_per_kv}."
            )

    def moved(self) -> list[Moved]:
        """Bandwidth, peak and a layer's time of each device, and the host's time, at each end of its interval."""
        moves = []
        for group, place in (("verify", "target_hardware"), ("draft", "draft_hardware")):
            device = getattr(self, place)
            for term in ("bandwidth_bytes_per_s", "peak_flops_per_s", "layer_s"):
                for value, end in self._ends(getattr(device, term)):
                    latency = replace(self, **{place: replace(device, **{term: end})})
                    moves.append(Moved(group, term, value, end, latency))
        moves += [
            Moved("host", "host_s", value, end, replace(self, host_s=end)) for value, end in self._ends(self.host_s)
        ]
        return moves

    def _ends(self, value: float) -> list[tuple[float, float]]:
        """A number beside each end of its interval, if they differ."""
        ends = ((1 - self.uncertainty) * value, (1 + self.uncertainty) * value)
        return [(value, end) for end in dict.fromkeys(ends) if end != value]

    def mean_s(self, op: OpShape) -> float:
        mean_s = self.mean_array(op.kind, op.num_tokens, op.num_branches, op.context_tokens, actor=op.actor)
        return float(mean_s)

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        return self.mean_s(op)

    def mean_array(
        self,
        kind: OpKind,
        num_tokens: ArrayLike,
        num_branches: ArrayLike,
        context_tokens: ArrayLike,
        *,
        actor: Actor | None = None,
    ) -> Array:
        actor = actor or actor_of(kind)
        group_of(actor, kind)
        new, rows, context = np.broadcast_arrays(num_tokens, num_branches, context_tokens)
        if actor == Actor.HOST:
            return np.full(new.shape, self.host_s)
        model, device = (
            (self.target, self.target_hardware) if actor == Actor.TARGET else (self.draft, self.draft_hardware)
        )
        num_layers = model.num_layers
        num_bytes = (
            model.num_read(rows * new) * self.bytes_per_weight
            + rows * (context + new) * model.kv_numbers * self.bytes_per_kv
        )
        pairs = rows * new * (context + (new + 1) / 2)  # causal: token i of the new ones sees the context and i others
        num_flops = 2.0 * model.num_active * rows * new + 4.0 * num_layers * model.num_heads * model.head_dim * pairs
        seconds: Array = (
            device.overhead_s
            + num_layers * device.layer_s
            + np.maximum(num_bytes / device.bandwidth_bytes_per_s, num_flops / device.peak_flops_per_s)
        )
        return seconds

    def held_bytes(self, actor: Actor, num_tokens: int) -> float:
        """Memory of one model: its weights, and keys and values of so many tokens."""
        model = self.target if actor == Actor.TARGET else self.draft
        return model.num_parameters * self.bytes_per_weight + num_tokens * model.kv_numbers * self.bytes_per_kv


def check_memory(latency: RooflineLatency, num_tokens: int, *, is_shared: bool) -> None:
    """Refuse a pair that does not fit with num_tokens in the cache of each model. is_shared: both on the target's devices."""
    need = {actor: latency.held_bytes(actor, num_tokens) for actor in (Actor.TARGET, Actor.DRAFT)}
    wanted = [
        ("the target", need[Actor.TARGET], latency.target_hardware),
        ("the draft", need[Actor.DRAFT], latency.draft_hardware),
    ]
    if is_shared:
        wanted = [("the pair", sum(need.values()), latency.target_hardware)]
    for who, num_bytes, device in wanted:
        if num_bytes > device.memory_bytes:
            raise ValueError(
                f"{who} needs {num_bytes / 1e9:.0f} GB with {num_tokens} tokens in the cache, but {device.name} has "
                f"{device.memory_bytes / 1e9:.0f} GB: give more devices, fewer bits or a shorter context."
            )
