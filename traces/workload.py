"""A workload: when requests arrive, and how long their prompts and outputs are; plain arrays, whatever they came from.

Readers of traffic files (`traces.importers.traffic`) and generators (`sim.serving.workload`) both give this record. A million
requests are three arrays of eight megabytes each, and no object a request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lengths:
    """How long requests are, without when they arrive.

    prompt_tokens, output_tokens: (n,) at least 1 each; read-only. source: one line on where this came from, for people.
    Raises ValueError where any of this does not hold, with the first request at fault.
    """

    prompt_tokens: Counts
    output_tokens: Counts
    source: str = ""

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "prompt_tokens", _counts("prompt_tokens", self.prompt_tokens))
        set_field(self, "output_tokens", _counts("output_tokens", self.output_tokens))
        if len(self.prompt_tokens) != len(self.output_tokens) or not len(self.prompt_tokens):
            raise ValueError(
                "prompt_tokens and output_tokens must be equally long and not empty, but have "
                f"{len(self.prompt_tokens)} and {len(self.output_tokens)} entries."
            )

    @property
    def num_requests(self) -> int:
        return len(self.prompt_tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """Requests in the order in which they become ready to be sent.

    arrival_s: (n,) seconds from the start, at least 0 and never falling; when each request is ready to be sent.
    prompt_tokens, output_tokens: (n,) at least 1 each.
    max_concurrency: at most so many requests are in the server at once; the others wait at the client, in order, as behind the
    semaphore of `vllm bench serve`. A request that waits there has not been sent, so TTFT does not count that wait. None: no
    bound.
    prefix_blocks: for each request the ids of the blocks of its prompt, from the first token on; two requests that begin with
    equal ids have equal beginnings. None: nothing is known of shared beginnings. prefix_block_tokens: tokens in one block, 0
    where prefix_blocks is None; the last block may hold fewer.
    source: one line on where this came from, for people.

    The arrays are read-only. Raises ValueError where any of this does not hold, with the first request at fault.
    """

    arrival_s: Floats
    prompt_tokens: Counts
    output_tokens: Counts
    max_concurrency: int | None = None
    prefix_blocks: tuple[tuple[int, ...], ...] | None = None
    prefix_block_tokens: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "arrival_s", _arrivals(self.arrival_s))
        set_field(self, "prompt_tokens", _counts("prompt_tokens", self.prompt_tokens))
        set_field(self, "output_tokens", _counts("output_tokens", self.output_tokens))
        lengths = (len(self.arrival_s), len(self.prompt_tokens), len(self.output_tokens))
        if len(set(lengths)) > 1:
            raise ValueError(
                "arrival_s, prompt_tokens and output_tokens must be equally long, but have "
                f"{lengths[0]}, {lengths[1]} and {lengths[2]} entries."
            )
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(
                f"max_concurrency must be at least 1, or None for no bound, but got {self.max_concurrency}."
            )
        _check_prefix_blocks(self)

    @property
    def num_requests(self) -> int:
        return len(self.arrival_s)

    @property
    def lengths(self) -> Lengths:
        return Lengths(prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens, source=self.source)

    @property
    def arrivals_per_s(self) -> float:
        """Requests over the seconds from 0 to the last arrival; infinite where all are ready at 0.

        A finite run of `vllm bench serve` has exactly the rate that was asked for by this definition.
        """
        last_s = float(self.arrival_s[-1])
        return self.num_requests / last_s if last_s > 0 else math.inf

    def sliced(self, from_s: float, to_s: float = math.inf) -> Workload:
        """The requests that arrive in [from_s, to_s), with from_s as the new 0.

        Raises ValueError where none does.
        """
        if not 0 <= from_s < to_s:
            raise ValueError(f"a slice must satisfy 0 <= from_s < to_s, but got from_s = {from_s} and to_s = {to_s}.")
        start, stop = np.searchsorted(self.arrival_s, [from_s, to_s], side="left")
        if start == stop:
            raise ValueError(
                f"no request arrives from {from_s} s to before {to_s} s; "
                f"arrivals lie between {self.arrival_s[0]:g} s and {self.arrival_s[-1]:g} s."
            )
        return replace(self._kept(np.s_[start:stop]), arrival_s=self.arrival_s[start:stop] - from_s)

    def scaled(self, rate_factor: float) -> Workload:
        """The same requests, arriving rate_factor times as fast: every arrival is divided by it."""
        if not (rate_factor > 0 and math.isfinite(rate_factor)):
            raise ValueError(f"rate_factor must be a number above 0, but got {rate_factor}.")
        return replace(self, arrival_s=self.arrival_s / rate_factor)

    def with_lengths(
        self,
        *,
        min_prompt_tokens: int = 1,
        max_prompt_tokens: int | None = None,
        min_output_tokens: int = 1,
        max_output_tokens: int | None = None,
    ) -> Workload:
        """The requests whose lengths lie within the bounds, ends included; their arrivals stay.

        Raises ValueError where none does.
        """
        kept = (self.prompt_tokens >= min_prompt_tokens) & (self.output_tokens >= min_output_tokens)
        if max_prompt_tokens is not None:
            kept &= self.prompt_tokens <= max_prompt_tokens
        if max_output_tokens is not None:
            kept &= self.output_tokens <= max_output_tokens
        if not kept.any():
            raise ValueError(
                f"no request has {_bounds(min_prompt_tokens, max_prompt_tokens)} prompt tokens and "
                f"{_bounds(min_output_tokens, max_output_tokens)} output tokens; prompts have "
                f"{self.prompt_tokens.min()} to {self.prompt_tokens.max()}, outputs {self.output_tokens.min()} to "
                f"{self.output_tokens.max()}."
            )
        return self._kept(kept)

    def first(self, num_requests: int) -> Workload:
        """The first so many requests, or all where there are fewer."""
        if num_requests < 1:
            raise ValueError(f"num_requests must be at least 1, but got {num_requests}.")
        return self._kept(np.s_[:num_requests])

    def _kept(self, kept: slice | NDArray[np.bool_]) -> Workload:
        """The requests at these places."""
        blocks = self.prefix_blocks
        if blocks is not None:
            blocks = blocks[kept] if isinstance(kept, slice) else tuple(blocks[place] for place in np.flatnonzero(kept))
        return replace(
            self,
            arrival_s=self.arrival_s[kept],
            prompt_tokens=self.prompt_tokens[kept],
            output_tokens=self.output_tokens[kept],
            prefix_blocks=blocks,
        )


def _arrivals(values: Floats) -> Floats:
    """A read-only view of arrivals that pass."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"arrival_s must hold one number a request, of at least one, but has shape {array.shape}.")
    if (wrong := ~(np.isfinite(array) & (array >= 0))).any():
        place = int(np.argmax(wrong))
        raise ValueError(f"arrival_s must be at least 0 and finite, but request {place} has {array[place]}.")
    if (wrong := array[1:] < array[:-1]).any():
        place = int(np.argmax(wrong)) + 1
        raise ValueError(
            f"arrival_s must never fall, but request {place} has {array[place]} after {array[place - 1]}; "
            "sort the requests by arrival."
        )
    return _read_only(array)


def _counts(name: str, values: Counts) -> Counts:
    """A read-only view of counts of tokens that pass."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} must hold one whole number a request, but has shape {array.shape} and type {array.dtype}."
        )
    if (wrong := array < 1).any():
        place = int(np.argmax(wrong))
        raise ValueError(f"{name} must be at least 1, but request {place} has {array[place]}.")
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit 64 bits with a sign, but the largest is {array.max()}.")
    return _read_only(array.astype(np.int64, copy=False))


def _read_only(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """A view that cannot be written to; the caller's own array stays as it is."""
    view = array.view()
    view.flags.writeable = False
    return view


def _check_prefix_blocks(workload: Workload) -> None:
    """Raises ValueError where blocks are not given a request, or cannot lie in its prompt."""
    blocks, size = workload.prefix_blocks, workload.prefix_block_tokens
    if blocks is None:
        if size:
            raise ValueError(f"prefix_block_tokens is {size}, but prefix_blocks is None; give both or neither.")
        return
    if size < 1:
        raise ValueError(f"prefix_block_tokens must be at least 1 where prefix_blocks is given, but got {size}.")
    if len(blocks) != workload.num_requests:
        raise ValueError(
            f"prefix_blocks must have one entry a request, but has {len(blocks)} for {workload.num_requests} requests."
        )
    num_blocks = np.fromiter((len(each) for each in blocks), dtype=np.int64, count=len(blocks))
    if (wrong := (num_blocks - 1) * size >= workload.prompt_tokens).any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"request {place} has {num_blocks[place]} prefix blocks of {size} tokens, more than its prompt of "
            f"{workload.prompt_tokens[place]} tokens can hold."
        )


def _bounds(lowest: int, highest: int | None) -> str:
    return f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
