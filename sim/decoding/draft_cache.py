"""What each model forwards: how many new tokens, on how many cached ones. Counting only, no times and no tokens.

The draft's cache lags behind the sequence: the token it proposed last was never its own input. A forward processes the
whole lag at once, so its shape follows from the outcomes alone: after a full acceptance without a look two tokens (the
last draft token and the target's), after a rejection one, after a hit that was kept whole one. After a trimmed hit the
lag is 0: the draft's law is known, and its first token is free. The executor crops and forwards by the same rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from traces.schema import Actor, OpKind, OpShape

_DRAFT, _TARGET, _HOST = Actor.DRAFT, Actor.TARGET, Actor.HOST
_PREFILL, _DRAFTING, _LOOK, _BRANCH = OpKind.PREFILL, OpKind.DRAFT, OpKind.LOOK, OpKind.BRANCH
_VERIFY, _HOSTING = OpKind.VERIFY, OpKind.HOST


class Forwards(NamedTuple):
    """`num_forwards` forwards of one model, one after another.

    The first processes `first_tokens` new tokens on `context_tokens` cached ones, every later one a single token more.
    num_branches: rows in the batch; 1 unless hedges are extended.
    """

    actor: Actor
    kind: OpKind
    num_forwards: int
    first_tokens: int
    num_branches: int
    context_tokens: int

    def shapes(self) -> Iterator[OpShape]:
        """The shape of each forward, in order."""
        num_tokens, context = self.first_tokens, self.context_tokens
        for _ in range(self.num_forwards):
            yield OpShape(self.actor, self.kind, num_tokens, self.num_branches, context)
            num_tokens, context = 1, context + num_tokens


class DraftCache:
    """How much of one request's sequence the draft has in its cache.

    num_sequence: prompt and committed tokens. num_pending: draft tokens after them. num_cached: tokens in the cache;
    a prefill leaves out the prompt's last token, which is the first round's input.
    """

    __slots__ = ("num_cached", "num_hedged", "num_pending", "num_sequence")

    def __init__(self, num_prompt_tokens: int) -> None:
        self.num_sequence = num_prompt_tokens
        self.num_cached = num_prompt_tokens - 1
        self.num_pending = 0
        self.num_hedged = 0  # tokens of each branch after its first

    @property
    def lag(self) -> int:
        """Tokens that the next forward must process; 0 when the law after the last one is known already."""
        return self.num_sequence + self.num_pending - self.num_cached

    def draft(self, num_tokens: int) -> Forwards:
        """Draft tokens after the pending ones; the first costs no forward when its law is known."""
        lag, cached = self.lag, self.num_cached
        self.num_pending += num_tokens
        self.num_cached = self.num_sequence + self.num_pending - 1
        if lag:
            return Forwards(_DRAFT, _DRAFTING, num_tokens, lag, 1, cached)
        return Forwards(_DRAFT, _DRAFTING, num_tokens - 1, 1, 1, cached)

    def submit(self, num_pending: int) -> Forwards:
        """Withdraw what is not submitted; gives the target's verification."""
        sequence = self.num_sequence
        self.num_pending, self.num_hedged = num_pending, 0
        if self.num_cached > sequence + num_pending:
            self.num_cached = sequence + num_pending
        return Forwards(_TARGET, _VERIFY, 1, num_pending + 1, 1, sequence - 1)

    def look(self) -> Forwards:
        """Forward the last pending token, so that the law after it is known."""
        forwards = Forwards(_DRAFT, _LOOK, 1, self.lag, 1, self.num_cached)
        self.num_cached = self.num_sequence + self.num_pending
        return forwards

    def branch(self, num_branches: int, num_steps: int) -> Forwards:
        """Extend hedges: their first tokens come from known laws, each later one needs a forward of the batch.

        Rows fork at different depths; the batch is counted at its longest context, that of all pending tokens.
        """
        self.num_hedged = num_steps
        return Forwards(_DRAFT, _BRANCH, num_steps, 1, num_branches, self.num_cached)

    def settle(self, num_accepted: int, num_emitted: int, is_hit: bool) -> None:
        """Commit an outcome. On a hit the row's tokens but the last are cached and its continuation is pending."""
        num_verified = self.num_sequence + num_accepted
        self.num_sequence += num_emitted
        self.num_pending = self.num_hedged if is_hit else 0
        self.num_cached = num_verified + self.num_hedged if is_hit else min(self.num_cached, num_verified)

    def keep(self, num_pending: int) -> None:
        """Only the first `num_pending` pending tokens stay."""
        self.num_pending = num_pending
        self.num_cached = min(self.num_cached, self.num_sequence + num_pending)


def prefill(actor: Actor, num_prompt_tokens: int) -> Forwards:
    """One forward over the prompt without its last token; none for a prompt of one token."""
    return Forwards(actor, _PREFILL, int(num_prompt_tokens > 1), num_prompt_tokens - 1, 1, 0)


def host(num_pending: int, num_branches: int, num_sequence: int) -> Forwards:
    """The host's own work in a round that began with num_sequence committed tokens: decide, hand over, settle, record.
    num_branches is 0 when nothing was hedged."""
    return Forwards(_HOST, _HOSTING, 1, num_pending, num_branches, num_sequence - 1)
