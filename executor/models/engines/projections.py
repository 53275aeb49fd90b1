"""Products with weights, in two layouts: the plain transposed matrix, and oneDNN's packed one. A weight has one copy.

Decoding on a CPU reads every weight once a step, so its time should hardly grow with the number of rows. Plain kernels
change their way through the weight between one row and several (39 ms for one row of SmolLM2-135M, 98 for four, one
AVX-512 core); the packed layout is read alike at every width, and a row's result does not depend on the rows beside it
(but in a few shapes, in the last bit). On the other hand its call costs some microseconds more, which small matrices do
not win back, so which layout is faster is measured when a model is loaded. Two copies, one for each width, were tried
and lose: they fill the cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from executor.models.settings import Layout

WIDTHS = (1, 2, 4, 8)  # rows at which the layouts are compared
MIN_GAIN = 0.05  # of the time over all widths, for the packed layout to be taken
MAX_LOSS = 0.02  # of the time at any width
_NUM_PASSES = 7
_MAX_S = 1.5  # for the comparison of one shape, after the first pass
_LARGE_BYTES = 64 << 20  # models above this do not stay in any processor's cache between two steps


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


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the packed layout exists here."""
    mkldnn: Any = torch.backends.mkldnn  # has no types
    has_operations = mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return device.type == "cpu" and dtype == torch.float32 and has_operations


def laid_out(
    projections: Sequence[PlainProjection], layout: Layout, *, model_bytes: int
) -> tuple[list[Projection], Layout]:
    """Projections of one shape, which follow one another in a forward, in the layout asked for or the faster one.

    model_bytes: of all weights, which decides whether they are read from memory or from the cache. Returns the layout taken;
    the other one's memory is free once the caller lets go of `projections`.
    """
    if layout is Layout.PLAIN:
        return list(projections), layout
    packed = [PackedProjection(projection) for projection in projections]
    if layout is Layout.AUTO and not _is_faster(packed, projections, is_cold=model_bytes > _LARGE_BYTES):
        return list(projections), Layout.PLAIN
    return list(packed), Layout.PACKED


def _is_faster(packed: Sequence[Projection], plain: Sequence[PlainProjection], *, is_cold: bool) -> bool:
    """Whether the packed layout loses nothing at any width and gains over all of them: the shortest of several passes over
    all projections, in turns. Times are the thread's own on a processor, so that others who want it do not decide.
    """
    num_inputs = plain[0].columns.shape[0]
    rows = torch.zeros(max(WIDTHS), num_inputs)
    other = torch.zeros(_LARGE_BYTES // 4 if is_cold else 0)
    best = {(kind, width): float("inf") for kind in (0, 1) for width in WIDTHS}
    end_s = time.thread_time() + _MAX_S
    for _ in range(_NUM_PASSES):
        for width in WIDTHS:
            for kind, projections in enumerate((packed, plain)):
                other.add_(1.0)  # what the rest of the model does to the cache
                start_s = time.thread_time()
                for projection in projections:
                    projection(rows[:width])
                best[kind, width] = min(best[kind, width], time.thread_time() - start_s)
        if time.thread_time() > end_s:
            break
    ratios = [best[0, width] / best[1, width] for width in WIDTHS]
    total = sum(best[0, width] for width in WIDTHS) / sum(best[1, width] for width in WIDTHS)
    return max(ratios) <= 1 + MAX_LOSS and total <= 1 - MIN_GAIN
