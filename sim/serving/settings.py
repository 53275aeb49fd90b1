"""How a replica schedules and what memory it has, in the words of the engines; and where its draft lives."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Placement(enum.StrEnum):
    """Where the draft of a replica runs."""

    IN_TURN = "in_turn"  # on the target's device, one of them at a time: what vLLM and SGLang do
    OWN_DEVICE = "own_device"  # on a device of its own, beside the target
    SHARED_DRAFT = "shared_draft"  # on one device for all replicas, first come, first served


@dataclass(frozen=True, kw_only=True)
class Server:
    """One replica.

    max_num_seqs: requests in the batch. max_num_batched_tokens: new tokens of a step; prompts get what the running
    requests leave of it, in chunks. kv_tokens: tokens that the memory for keys and values holds, as vLLM's log says ("GPU
    KV cache size"), the draft's share taken off; None: it is never full. block_tokens: tokens of a block. watermark:
    share of the blocks that stays free when a request is let in. lookahead_tokens: slots reserved for each running request
    beyond the tokens that it verifies.
    prefill_emits: whether the last chunk of a prompt gives the first token, as in engines; otherwise the first round does,
    as in `sim.engine`. delivers_after_drafting: whether the tokens of a verification reach the client only after the next
    ones are drafted, as where one process does both.
    joins_draft_prefill: whether the draft reads a prompt as a part of its next forward, as in vLLM, or beside the target.
    schedules_ahead: whether a step is planned while the one before it runs (vLLM's async scheduling), so that a request that
    comes during a step is not in the next one but in the one after.
    prefix_caching: whether beginnings of prompts that were read before are not read again, where the workload knows them.
    client_s: time that each request spends outside of the scheduler before it is queued.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    kv_tokens: int | None = None
    block_tokens: int = 16
    watermark: float = 0.01
    lookahead_tokens: int = 0
    prefill_emits: bool = True
    delivers_after_drafting: bool = True
    joins_draft_prefill: bool = True
    schedules_ahead: bool = False
    client_s: float = 0.0
    prefix_caching: bool = False

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}.")
        if self.lookahead_tokens < 0:
            raise ValueError(f"lookahead_tokens must be at least 0, but got {self.lookahead_tokens}.")
        if self.kv_tokens is not None and self.kv_tokens < self.block_tokens:
            raise ValueError(f"kv_tokens must hold a block of {self.block_tokens} tokens, but got {self.kv_tokens}.")
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark must lie in [0, 1), but got {self.watermark}; it is a share of the memory.")
        if not 0 <= self.client_s < float("inf"):
            raise ValueError(f"client_s must be at least 0 seconds, but got {self.client_s}.")

    @property
    def num_blocks(self) -> int | None:
        """Blocks of the memory; None: without limit."""
        return None if self.kv_tokens is None else self.kv_tokens // self.block_tokens

    def check_fits(self, num_tokens: int, request: int) -> None:
        """Refuse a request that the memory could not hold even alone. num_tokens: its prompt and output."""
        blocks = self.num_blocks
        if blocks is None:
            return
        need = -(-(num_tokens + self.lookahead_tokens) // self.block_tokens)
        free = blocks - self.num_watermark_blocks
        if need > free:
            raise ValueError(
                f"request {request} needs {need} blocks of {self.block_tokens} tokens for prompt and output, but the memory "
                f"has {free} (kv_tokens={self.kv_tokens}); give more memory, or leave long requests out."
            )

    @property
    def num_watermark_blocks(self) -> int:
        """Blocks that stay free when a request is let in."""
        return int(self.watermark * (self.num_blocks or 0))


#: A replica that serves one request at a time by the rules of `sim.engine`: the two agree to the last digit.
SINGLE_STREAM = Server(
    max_num_seqs=1,
    max_num_batched_tokens=1 << 40,
    prefill_emits=False,
    delivers_after_drafting=False,
    joins_draft_prefill=False,
)
