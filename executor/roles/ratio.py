"""The serial loop under the rules of serving engines: a draft that draws for itself, and a target that tests by ratio.

The rules are those of `sim.decoding.rules`. Every number is a function of (seed, request, position, purpose), and of the
round for the draft's draws: a position that is drafted again needs fresh noise, unlike under shared noise. The target's test
needs the draft's laws, whole rows of the vocabulary; both roles therefore live in one process, and nothing overlaps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from executor.models.engines.base import Engine
from executor.noise import NoiseTable, Purpose, gumbel, uniform
from executor.request import Request
from executor.roles.draft_side import DraftSide
from executor.roles.target import TargetVerdict
from executor.roles.target_side import TargetSide
from executor.verification import check_finite, noisy_scores
from sim.decoding.policies.base import Needs
from sim.decoding.verification import Settlement
from traces.schema import Rule


class RatioDraft(DraftSide):
    """Draws its tokens from q by noise of its own (or takes the most probable one, under the point-mass rule), and keeps q."""

    def __init__(self, engine: Engine, rule: Rule) -> None:
        super().__init__(engine)
        self._rule = rule
        self._laws_at: dict[int, Tensor] = {}

    def make_noise(self, request: Request) -> NoiseTable | None:
        """Nothing is shared."""
        return None

    def begin(self, request: Request, needs: Needs, noise: NoiseTable | None) -> None:
        """Start a request, without noise that the target knows."""
        super().begin(request, needs, None)
        self._request, self._round = request, 0
        self._laws_at = {}

    def laws(self, first: int, count: int) -> Tensor:
        """(count, vocab) float32: what the pending tokens at generated positions first, ... were drawn from."""
        return torch.cat([self._laws_at[position] for position in range(first, first + count)])

    def settle(self, num_accepted: int, next_token: int) -> tuple[int, bool, tuple[()]]:
        """Commit an outcome; the next round draws anew."""
        self._round += 1
        self._laws_at = {}
        rank, is_hit, _ = super().settle(num_accepted, next_token)
        return rank, is_hit, ()

    def _score(self, logits: Tensor, positions: list[int]) -> Tensor:
        """What the draft takes the argmax of, one row; its law is kept for the test."""
        plain = noisy_scores(logits, self._sampling, None)
        if self._sampling.temperature == 0:
            return plain
        (position,) = positions
        law = torch.softmax(plain, -1)
        if self._rule is Rule.POINT_MASS:
            law = torch.zeros_like(law).scatter_(-1, plain.argmax(-1, keepdim=True), 1.0)
        head, vocab_size = self._engine.head_tokens, self._engine.vocab_size
        if head is not None:  # what the head lacks is never drawn
            law = law.new_zeros((1, vocab_size)).index_copy_(1, head, law)
        self._laws_at[position] = law
        if self._rule is Rule.POINT_MASS:
            return plain
        request = self._request
        return plain + gumbel(
            request.seed,
            request.noise_key,
            positions,
            vocab_size,
            Purpose.DRAFT,
            plain.device,
            head,
            attempt=self._round,
        )


class RatioTarget(TargetSide):
    """Keeps a draft token x with min(1, p(x) / q(x)), and draws its own token from what is owed then."""

    def __init__(self, engine: Engine, draft: RatioDraft) -> None:
        super().__init__(engine)
        self._draft = draft

    def begin(self, request: Request, *, predicts: bool = False) -> None:
        """Cache the prompt but its last token."""
        super().begin(request, predicts=predicts)
        self._request = request

    def submit(self, pending: Sequence[int], *, last: int, num_cached: int) -> None:
        """One forward over the newest committed token, `last`, and the pending ones, and the test of each of these."""
        if self._sampling.temperature == 0:
            super().submit(pending, last=last, num_cached=num_cached)
            return
        start = time.perf_counter()
        self._engine.roll_back(num_cached)
        plain = noisy_scores(self._engine.extend([last, *pending]), self._sampling, None)
        check_finite(plain.amax(-1).tolist(), "target", first_position=num_cached, dtype=self._engine.dtype)
        first, count, request = num_cached + 1 - self._num_prompt, len(pending), self._request
        probs = torch.softmax(plain, -1)
        drawn_from = self._draft.laws(first, count) if count else probs[:0]

        def numbers(purpose: Purpose) -> Tensor:
            positions = range(first, first + count + 1)
            return uniform(request.seed, request.noise_key, positions, 1, purpose, plain.device)[:, 0]

        settled = settle_by_ratio(probs, drawn_from, pending, numbers(Purpose.ACCEPT), numbers(Purpose.RESIDUAL))
        self._verdict = TargetVerdict(*settled, start, time.perf_counter(), 0.0, None)


def settle_by_ratio(
    target_probs: Tensor, draft_probs: Tensor, pending: Sequence[int], accept_uniforms: Tensor, own_uniforms: Tensor
) -> Settlement:
    """Test pending tokens in turn; after the first rejection, or after the last of them, draw the target's own token.

    target_probs: (L + 1, vocab). draft_probs: (L, vocab), the rows that the pending tokens were drawn from.
    accept_uniforms, own_uniforms: (L + 1,) in [0, 1), a pair for each position, of which each serves once. Sums run in
    float64. Leviathan et al. 2023, arXiv:2211.17192, Algorithm 1 (there p is the target, q the draft).
    """
    num = len(pending)
    target, draft = target_probs.double(), draft_probs.double()
    tokens = torch.tensor(pending, dtype=torch.int64, device=target.device)[:, None]
    # Strictly below p / q, and without dividing: a token that the target never emits fails even for u = 0.
    is_kept = accept_uniforms[:num] * draft.gather(-1, tokens)[:, 0] < target[:num].gather(-1, tokens)[:, 0]
    num_accepted = int(is_kept.long().cumprod(0).sum())
    owed = target[num_accepted]
    if num_accepted < num:
        over = (owed - draft[num_accepted]).clamp(min=0)
        owed = over if float(over.sum()) > 0 else owed  # p = q: nothing is rejected but by rounding
    cumulative = owed.cumsum(-1)
    own = torch.searchsorted(cumulative, own_uniforms[num_accepted] * cumulative[-1], right=True)
    return Settlement(num_accepted, int(own))
