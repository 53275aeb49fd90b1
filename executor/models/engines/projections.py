"""Products with weights, in two layouts: the plain transposed matrix, and oneDNN's packed one.

Decoding on a CPU reads every weight once a step, so its time should hardly grow with the number of rows. Plain kernels
change their way through the weight between one row and several (48 ms for one row of SmolLM2-135M, 92 for four, one
AVX-512 core); the packed layout is read alike at every width (60 and 62 ms), and a row's result does not depend on the rows
beside it (but in a few shapes, in the last bit). On the other hand its one row can be slower, and its call costs some
microseconds more, which small matrices do not win back. So the layout is chosen by a measurement when a model is loaded:
plain, packed, or, where the model comes from memory in any case, a copy in each, the plain one read by few rows and the
packed one by more. A model that stays in the cache has one copy: two would fill it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from executor.models.settings import Layout

WIDTHS = (1, 2, 4, 8)  # rows at which the layouts are compared
MIN_GAIN = 0.05  # of the time over all widths, for the packed layout to be taken
MAX_LOSS = 0.02  # of the time at any width
MAX_COPIED_BYTES = 1 << 30  # weights above this have one copy
_NUM_PASSES = 7
_MAX_S = 1.5  # for the comparison of one shape, after the first pass
_LARGE_BYTES = 32 << 20  # models above this do not stay in the cache between two steps, beside another model
_FLUSHED_BYTES = 64 << 20


class Projection(Protocol):
    """x -> x W^T + b."""

    def into(self, out: Tensor, x: Tensor) -> None:
        """Write the projection of x (rows, inputs) to out (rows, outputs)."""
        ...

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual (rows, outputs) plus the projection of x (rows, inputs)."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """The projection of x (rows, inputs), (rows, outputs)."""
        ...


class PlainProjection:
    """A product with the transposed weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: (outputs, inputs), as in torch.nn.Linear."""
        self.columns = weight.t().contiguous() if weight.device.type == "cpu" else weight.t()
        self.bias = bias

    def into(self, out: Tensor, x: Tensor) -> None:
        """See `Projection`."""
        if self.bias is None:
            torch.mm(x, self.columns, out=out)
        else:
            torch.addmm(self.bias, x, self.columns, out=out)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """See `Projection`."""
        total = torch.addmm(residual, x, self.columns)
        return total if self.bias is None else total.add_(self.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """See `Projection`."""
        return torch.mm(x, self.columns) if self.bias is None else torch.addmm(self.bias, x, self.columns)


class PackedProjection:
    """A product with a weight that oneDNN has reordered for its kernels; float32 on a CPU."""

    def __init__(self, plain: PlainProjection) -> None:
        operations: Any = torch.ops.mkldnn  # made when torch is loaded, so no types are known
        self._weight = operations._reorder_linear_weight(plain.columns.t().contiguous(), None)
        self._bias = plain.bias
        self._product: Any = operations._linear_pointwise.default

    def into(self, out: Tensor, x: Tensor) -> None:
        """See `Projection`."""
        out.copy_(self(x))

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """See `Projection`."""
        return self(x).add_(residual)

    def __call__(self, x: Tensor) -> Tensor:
        """See `Projection`."""
        product: Tensor = self._product(x, self._weight, self._bias, "none", [], "")
        return product


class SplitProjection:
    """Both layouts of one weight, the plain one for at most max_plain_rows rows."""

    def __init__(self, plain: PlainProjection, packed: PackedProjection, max_plain_rows: int) -> None:
        self._plain, self._packed, self.max_plain_rows = plain, packed, max_plain_rows

    def into(self, out: Tensor, x: Tensor) -> None:
        """See `Projection`."""
        self._of(x).into(out, x)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """See `Projection`."""
        return self._of(x).added_to(residual, x)

    def __call__(self, x: Tensor) -> Tensor:
        """See `Projection`."""
        return self._of(x)(x)

    def _of(self, x: Tensor) -> PlainProjection | PackedProjection:
        return self._plain if x.shape[0] <= self.max_plain_rows else self._packed


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the packed layout exists here."""
    mkldnn: Any = torch.backends.mkldnn  # has no types
    has_operations = mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return device.type == "cpu" and dtype == torch.float32 and has_operations


def laid_out(
    projections: Sequence[PlainProjection], layout: Layout, *, model_bytes: int
) -> tuple[list[Projection], Layout]:
    """Projections of one shape, which follow one another in a forward, in the layout asked for or the fastest one.

    model_bytes: of all weights, which decides whether they are read from memory or from the cache. Returns the layout taken;
    memory of one that was not is free once the caller lets go of `projections`.
    """
    if layout is Layout.PLAIN:
        return list(projections), layout
    packed = [PackedProjection(projection) for projection in projections]
    max_plain_rows = {Layout.PACKED: 0, Layout.BOTH: 1}.get(layout)
    if max_plain_rows is None:
        times = _times(packed, projections, is_cold=model_bytes > _LARGE_BYTES)
        max_plain_rows = _fastest_split(times, may_copy=_LARGE_BYTES < model_bytes <= MAX_COPIED_BYTES)
    if max_plain_rows >= max(WIDTHS):
        return list(projections), Layout.PLAIN
    if not max_plain_rows:
        return list(packed), Layout.PACKED
    pairs = zip(projections, packed, strict=True)
    return [SplitProjection(plain, other, max_plain_rows) for plain, other in pairs], Layout.BOTH


def _fastest_split(times: Mapping[int, tuple[float, float]], *, may_copy: bool) -> int:
    """Rows up to which the plain layout is read: 0 for never, the last width for always.

    times: width -> seconds of the plain and the packed layout. The packed one takes over for good where it loses nothing at
    any width and gains over all of them; else, if two copies are allowed, from a width on that leaves the smallest sum and
    no loss.
    """
    plain = sum(one for one, _ in times.values())
    if (
        max(packed / one for one, packed in times.values()) <= 1 + MAX_LOSS
        and sum(packed for _, packed in times.values()) <= (1 - MIN_GAIN) * plain
    ):
        return 0
    sums = {
        split: sum(one if width <= split else packed for width, (one, packed) in times.items())
        for split in times
        if all(packed <= (1 + MAX_LOSS) * one for width, (one, packed) in times.items() if width > split)
    }
    best = min(sums, key=lambda split: sums[split])
    return best if may_copy and sums[best] <= (1 - MIN_GAIN) * plain else max(times)


def _times(
    packed: Sequence[Projection], plain: Sequence[PlainProjection], *, is_cold: bool
) -> dict[int, tuple[float, float]]:
    """Width -> seconds of the plain and the packed layout: the shortest of several passes over all projections, in turns.
    Times are the thread's own on a processor, so that others who want it do not decide.
    """
    num_inputs = plain[0].columns.shape[0]
    rows = torch.zeros(max(WIDTHS), num_inputs)
    other = torch.zeros(_FLUSHED_BYTES // 4 if is_cold else 0)
    best = {width: [float("inf"), float("inf")] for width in WIDTHS}
    end_s = time.thread_time() + _MAX_S
    for _ in range(_NUM_PASSES):
        for width in WIDTHS:
            for kind, projections in enumerate((plain, packed)):
                other.add_(1.0)  # what the rest of the model does to the cache
                start_s = time.thread_time()
                for projection in projections:
                    projection(rows[:width])
                best[width][kind] = min(best[width][kind], time.thread_time() - start_s)
        if time.thread_time() > end_s:
            break
    return {width: (one, two) for width, (one, two) in best.items()}
