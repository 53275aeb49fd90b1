"""Latency of models on hardware one does not own: from the weights, the cache, and a device's two roofs.

A forward takes the slower of moving its bytes and doing its FLOPs, and what its layers' launches cost besides:

    seconds = overhead + layers layer_s + max(bytes / bandwidth, FLOPs / peak)

Bytes: all weights once, and the cache of every row once. FLOPs: 2 a weight and token, and attention.
Williams, Waterman, Patterson 2009, doi:10.1145/1498765.1498785.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sim.decoding.model_shapes import ModelShape
from sim.latency.base import Array, PlainLatency, actor_of
from traces.fits.calibration import Calibration, LatencyFit, group_of
from traces.fits.latency import TERMS
from traces.schema import Actor, OpKind, OpShape

LARGEST_WIDTH = 32768  # tokens of one forward up to which a roofline is written down as a calibration


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
        num_weights, num_layers = model.num_step_parameters, model.num_layers
        num_bytes = num_weights * self.bytes_per_weight + rows * (context + new) * model.kv_numbers * self.bytes_per_kv
        pairs = rows * new * (context + (new + 1) / 2)  # causal: token i of the new ones sees the context and i others
        num_flops = 2.0 * num_weights * rows * new + 4.0 * num_layers * model.num_heads * model.head_dim * pairs
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


def as_calibration(latency: RooflineLatency, *, context_tokens: int = 512, uncertainty: float = 0.2) -> Calibration:
    """The same latencies as a calibration, for everything that takes one.

    Exact where a step is bound by its bytes, and at every width at context_tokens; in between within a few per cent.
    uncertainty: of every coefficient, relative, as the half-width of its interval: what a study's sensitivity moves.
    """
    if not 0 <= uncertainty < 1:
        raise ValueError(f"uncertainty must lie in [0, 1), but got {uncertainty}.")
    groups = {
        "draft": (Actor.DRAFT, OpKind.DRAFT),
        "verify": (Actor.TARGET, OpKind.VERIFY),
        "draft_prefill": (Actor.DRAFT, OpKind.PREFILL),
        "target_prefill": (Actor.TARGET, OpKind.PREFILL),
        "host": (Actor.HOST, OpKind.HOST),
    }
    fits = {
        group: _fit_of(latency, actor, kind, 0 if kind == OpKind.PREFILL else context_tokens, uncertainty)
        for group, (actor, kind) in groups.items()
    }
    return Calibration(fits=fits, round_check=None, num_requests=0, num_unclean=0)


def _fit_of(latency: RooflineLatency, actor: Actor, kind: OpKind, context: int, uncertainty: float) -> LatencyFit:
    """The law of small forwards from differences, and a table of what wide ones take beside it."""

    def seconds(num_tokens: ArrayLike, num_branches: int, context_tokens: int) -> Array:
        return latency.mean_array(kind, num_tokens, num_branches, context_tokens, actor=actor)

    base, far = float(seconds(1, 1, 0)), max(context, 1)
    of_context = (float(seconds(1, 1, far)) - base) / far
    of_rows = float(seconds(1, 2, 0)) - base
    of_both = (float(seconds(1, 2, far)) - base - of_rows) / far - of_context
    coefficients = dict(base=base, context=of_context, more_branches=of_rows, context_more_branches=of_both)
    known = tuple(coefficients.get(term, 0.0) for term in TERMS)
    widths: tuple[tuple[int, float], ...] = ()
    if actor != Actor.HOST:
        wide = np.unique(np.geomspace(1, LARGEST_WIDTH, 200).round().astype(int))
        factors = seconds(wide, 1, context) / (base + of_context * context)
        widths = tuple(zip(wide.tolist(), factors.tolist(), strict=True))
    return LatencyFit(
        coefficients=known,
        intervals=tuple(((1 - uncertainty) * value, (1 + uncertainty) * value) for value in known),
        ratios=(1.0,),
        least=0 if actor == Actor.HOST else 1,
        left_out=tuple(term for term, value in zip(TERMS, known, strict=True) if value == 0),
        r2=None,
        error=0.0,
        num_ops=0,
        num_requests=0,
        widths=widths,
    )
