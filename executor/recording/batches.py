"""Steps of batches, timed: each model alone in this process, as a server runs them in turn, on any engine.

A part of `executor.recording.sweep`. `traces.fits.batched_ops` fits step costs to its operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from executor.models.engines.base import Engine
from executor.models.engines.batched import batch_of
from executor.models.engines.prompt_lookup import PromptLookupEngine
from executor.models.loading import load_engine
from executor.models.settings import PairSettings
from executor.pair import resolve_pair
from traces.schema import Actor, Op, OpKind, OpShape, op_of

MAX_BATCH = 1024
MAX_CACHED = 1 << 22  # tokens of all requests
_WARM_UPS = 2


@dataclass(frozen=True, kw_only=True)
class BatchGrid:
    """Each number of requests with each context, and steps of each width: new tokens of every request.

    contexts: cached tokens of a request. num_repeats: of each, after a warm-up of two.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    widths: tuple[int, ...] = (1, 2, 4, 8)
    contexts: tuple[int, ...] = (64, 256, 768)
    num_repeats: int = 10

    def __post_init__(self) -> None:
        check_amounts(self, "batches", "widths", "contexts")
        if self.num_repeats < 1:
            raise ValueError(f"num_repeats of a sweep must be at least 1, but got {self.num_repeats}.")
        if max(self.batches) > MAX_BATCH:
            raise ValueError(f"a sweep takes batches of at most {MAX_BATCH} requests, but got {max(self.batches)}.")
        if max(self.batches) * self.longest > MAX_CACHED:
            raise ValueError(
                f"{max(self.batches)} requests of {self.longest} tokens are more than the {MAX_CACHED} that a sweep caches."
            )

    @property
    def longest(self) -> int:
        """Tokens of a request, the new ones included."""
        return max(self.contexts) + max(self.widths)


def check_amounts(grid: object, *names: str) -> None:
    """Refuse a grid in which one of these fields is empty or goes below 1. Raises ValueError."""
    for name in names:
        values = getattr(grid, name)
        if not values or min(values) < 1:
            raise ValueError(f"{name} of a sweep must be numbers of at least 1, but got {values}.")


def made_up_tokens(engine: Engine, num: int) -> list[int]:
    """Token ids that mean nothing, none of them among the first, which are often special."""
    return [7 + position % (engine.vocab_size - 8) for position in range(num)]


Timed = Callable[[Actor, int, list[Op]], None]


def time_batches(pair: PairSettings, grid: BatchGrid, take: Timed, *, first_request: int) -> None:
    """Time the grid with each of the two models; take(actor, context, operations) is called after each context.

    Operations belong to the requests first_request, first_request + 1, ..., one each call, and their times are those of
    time.perf_counter. Raises ValueError for a draft that is a lookup: it has no forwards.
    """
    resolved = resolve_pair(pair)
    request_id = first_request
    for actor, path, settings in (
        (Actor.TARGET, resolved.target, resolved.target_engine),
        (Actor.DRAFT, resolved.draft, resolved.engine),
    ):
        engine = load_engine(path, settings)
        if isinstance(engine, PromptLookupEngine):
            raise ValueError("a draft that is a lookup runs no forwards, so that no batch of it can be timed.")
        for context in grid.contexts:
            ops: list[Op] = []
            for batch in grid.batches:
                ops += _steps(engine, actor, grid, batch, context, request_id, f"{settings.device}:{actor.value}")
            take(actor, context, ops)
            request_id += 1


@torch.inference_mode()
def _steps(
    engine: Engine, actor: Actor, grid: BatchGrid, batch: int, context: int, request_id: int, device: str
) -> list[Op]:
    """Every width in turn, so that a slow spell of the machine meets all of them."""
    tokens = made_up_tokens(engine, context + max(grid.widths))
    caches = batch_of(engine, [tokens[:context]] * batch, max_width=max(grid.widths))
    kind = OpKind.VERIFY if actor is Actor.TARGET else OpKind.DRAFT
    ops = []
    for index in range(grid.num_repeats + _WARM_UPS):
        for width in grid.widths:
            new = [tokens[context : context + width]] * batch
            _wait(engine)
            start_s = time.perf_counter()
            caches.step(new).argmax(-1)
            _wait(engine)
            end_s = time.perf_counter()
            if index >= _WARM_UPS:
                shape = OpShape(actor, kind, width, 1, context)
                ops.append(op_of(request_id, 0, device, shape, start_s, end_s)._replace(batch=batch))
    return ops


def _wait(engine: Engine) -> None:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
