"""The common tongue: what a sampling setting, an operation, a round, a request and an alignment are.

Times are seconds as float, counted from the start of the run. Positions count generated tokens of one request from 0.
Records that are made once a round are named tuples (cheap to build, immutable); settings are frozen dataclasses.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

SCHEMA_VERSION = 3
MIN_TEMPERATURE = 1e-4  # below it logits overflow in float32
MAX_TEMPERATURE = 1e4


@dataclass(frozen=True)
class Sampling:
    """How a next-token law is made from logits; the same transform serves the draft and the target.

    temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"temperature must be 0, which is greedy decoding, or lie in [{MIN_TEMPERATURE}, {MAX_TEMPERATURE}], "
                f"but got {self.temperature}."
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, but got {self.top_k}; 0 switches the filter off.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], but got {self.top_p}; 1 switches the filter off.")


class Rule(enum.StrEnum):
    """How drafted tokens are verified (`sim.decoding.rules`). Every rule is lossless; they differ in how often the draft is
    right."""

    SHARED = "shared"  # target and draft add the same noise: tokens are those of plain decoding
    RATIO = "ratio"  # engines' rejection sampling
    POINT_MASS = "point_mass"  # engines' greedy draft at a temperature above 0


class Signal(NamedTuple):
    """What a policy may know of one draft token: how sure the draft was of it.

    max_prob: largest probability of the draft's law (after temperature and filters).
    entropy:  of that law, in nats.
    margin:   noisy margin, best minus second best of ``log q + g`` with the shared noise g; at temperature 0 of ``log q``.
    """

    max_prob: float
    entropy: float
    margin: float


UNKNOWN_SIGNAL = Signal(float("nan"), float("nan"), float("nan"))


class TokenChances(NamedTuple):
    """What rules that draw their own numbers ask about a committed token: chances under both laws, without shared noise.

    target, draft: p and q of the token. target_of_best: p of the draft's most probable token, which is how often an
    engine's greedy draft is accepted there. plain_rank: the token's place in the order of q; 0 is the most probable.
    At temperature 0 the laws are those at temperature 1.
    """

    target: float
    draft: float
    target_of_best: float
    plain_rank: int


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    EOS = "eos"
    STOP_STRING = "stop_string"
    MAX_TOKENS = "max_tokens"
    UNFINISHED = "unfinished"


class RollbackCase(enum.StrEnum):
    """What a round threw away; what SpecBranch (arXiv:2506.01979) can lose, each case counted apart."""

    NONE = "none"  # nothing drafted was lost
    PRE_VERIFY_MISS = "R0"  # nothing was pending and the guessed first token missed
    REJECTED = "R1"  # a pending token was rejected and no hedge covered it
    BRANCH_MISS = "R2"  # all pending accepted, but no branch held the next token
    SIBLINGS = "R3"  # a hedge hit: the other branches were dropped
    TRIMMED = "R4"  # a hedge hit, and the policy kept only a prefix of it


class Round(NamedTuple):
    """One turn of the step machine, without its times: plan, act, settle. Replay must reproduce every field.

    num_serial:    tokens drafted while the target waited.
    num_pending:   tokens submitted for verification (the round's draft_length, L).
    num_accepted:  of these; num_emitted adds the target's own token, both after the cut at the request's end.
    fanout:        hedged next tokens for each number of accepted tokens 0..L; empty when nothing was hedged.
    num_branches:  rows drafted for hedges; num_branch_steps: tokens drafted for each row after its first.
    num_draft_forwards: forwards of the draft in this round, a batched branch step counted once.
    next_rank:     rank of the target's token in the draft's noisy order at the settling position; -1 when unknown.
    num_kept:      tokens of the hit continuation that became pending for the next round.
    num_rejected + num_sibling + num_trimmed + num_unused: the drafted tokens lost in this round, by cause.
    predicted_class: H-RAD class after this round (0 reject, 1 confidence, 2 accept); -1 when none was predicted.
    """

    request_id: int
    round: int
    position: int
    num_serial: int
    num_pending: int
    num_accepted: int
    num_emitted: int
    fanout: tuple[int, ...]
    num_branches: int
    num_branch_steps: int
    num_drafted: int
    num_draft_forwards: int
    next_rank: int
    is_hit: bool
    num_kept: int
    num_rejected: int
    num_sibling: int
    num_trimmed: int
    num_unused: int
    rollback_case: RollbackCase
    predicted_class: int
    is_finished: bool


class RoundTimes(NamedTuple):
    """When a round ran, and how long each side worked in it, in seconds."""

    start_s: float
    end_s: float
    draft_s: float
    verify_s: float


class Actor(enum.StrEnum):
    """Who does an operation."""

    DRAFT = "draft"
    TARGET = "target"
    HOST = "host"


class OpKind(enum.StrEnum):
    """What an operation is; when it happens is said by `Op.is_beside`."""

    PREFILL = "prefill"  # the prompt, of either model
    DRAFT = "draft"  # one more pending token
    LOOK = "look"  # the draft's law right after the pending tokens
    BRANCH = "branch"  # one more token for every hedge, as one batch
    READ = "read"  # the draft's signals, after a forward
    VERIFY = "verify"  # the pending tokens and the newest committed one
    PREDICT = "predict"  # H-RAD's classes, after a verification
    HOST = "host"  # decisions, hand-over, bookkeeping


class OpShape(NamedTuple):
    """What decides how long an operation takes: a batch of num_branches equal rows, one unless hedges are extended.

    num_tokens: new tokens a row (verify: pending + 1; host: pending). context_tokens: tokens in the cache before.
    """

    actor: Actor
    kind: OpKind
    num_tokens: int
    num_branches: int
    context_tokens: int


class Op(NamedTuple):
    """One operation of one actor, as it ran; the last fields are those of its `OpShape`.

    is_beside: whether the other model worked on the same round at the same time: a verification during which the draft
    looked or branched, and these.
    batch: requests served at once.
    """

    request_id: int
    round: int
    actor: Actor
    device: str
    kind: OpKind
    is_beside: bool
    start_s: float
    end_s: float
    num_tokens: int
    batch: int
    num_branches: int
    context_tokens: int


def op_of(
    request_id: int, index: int, device: str, shape: OpShape, start_s: float, end_s: float, *, is_beside: bool = False
) -> Op:
    """The record of one operation of this shape in the round of this index."""
    actor, kind, num_tokens, num_branches, context = shape
    return Op(request_id, index, actor, device, kind, is_beside, start_s, end_s, num_tokens, 1, num_branches, context)


class RequestRecord(NamedTuple):
    """One request as it ran. policy is the label of sim.decoding.policies.catalog; prompt_id names the prompt across runs."""

    request_id: int
    prompt_id: str
    policy: str
    repeat: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    noise_key: int
    arrival_s: float
    first_token_s: float
    finish_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    max_new_tokens: int
    finish_reason: str
    tokens_sha256: str
    is_clean: bool


@dataclass(frozen=True)
class RequestTrace:
    """Everything an outcome depends on, for one committed sequence of N tokens: one entry a position.

    An outcome depends only on the rank of the target's token in the draft's noisy order (they share their noise), and an
    adaptive policy besides on the draft's signals. On the path of the committed tokens these stand in `signals`; after
    the draft's own wrong token at position i they stand in `tails[i]`, and after the last token in `tails[N]`.

    ranks:      (N,) rank of the committed token in the draft's noisy order; 0 means the draft proposed it.
    signals:    (N,) of the draft's law at each position; empty when they were not recorded.
    tails:      position -> signals of the draft's own continuation from there, `tail_depth` of them.
    tail_depth: how many draft tokens after a wrong one (or after the last committed one) were recorded.
    class_probs: (N + 1,) H-RAD class probabilities before each position, or empty. class_window: of how many draft tokens they
    speak; 0 where that was not recorded.
    chances: (N,) of each committed token, or empty (runs before schema version 3).
    known_ranks: how many ranks the trace tells apart: smaller ones are exact, and this one stands for itself and all larger
    ones. An engine that says only what was accepted knows 1 (the draft's token, or another). None: all ranks are exact.
    """

    request_id: int
    prompt_id: str
    num_prompt_tokens: int
    max_new_tokens: int
    temperature: float
    finish_reason: FinishReason
    ranks: tuple[int, ...]
    signals: tuple[Signal, ...] = ()
    tails: Mapping[int, tuple[Signal, ...]] = field(default_factory=dict)
    tail_depth: int = 0
    class_probs: tuple[tuple[float, float, float], ...] = ()
    class_window: int = 0
    chances: tuple[TokenChances, ...] = ()
    known_ranks: int | None = None

    def __post_init__(self) -> None:
        num = len(self.ranks)
        if num < 1:
            raise ValueError(f"request {self.request_id} has no committed token; a trace needs at least one.")
        if self.signals and len(self.signals) != num:
            raise ValueError(f"request {self.request_id}: {len(self.signals)} signals for {num} positions.")
        if self.chances and len(self.chances) != num:
            raise ValueError(f"request {self.request_id}: {len(self.chances)} chances for {num} positions.")
        if self.class_probs and len(self.class_probs) != num + 1:
            raise ValueError(
                f"request {self.request_id}: class_probs has {len(self.class_probs)} entries, but {num + 1} are needed."
            )
        if self.known_ranks is not None and max(self.ranks) > self.known_ranks:
            raise ValueError(
                f"request {self.request_id} has rank {max(self.ranks)}, but known_ranks tells only {self.known_ranks} apart."
            )

    @property
    def num_tokens(self) -> int:
        """Committed tokens, N."""
        return len(self.ranks)


def num_tokens(traces: Sequence[RequestTrace]) -> int:
    """Committed tokens of all requests."""
    return sum(trace.num_tokens for trace in traces)


def without_repeats(traces: Iterable[RequestTrace]) -> list[RequestTrace]:
    """The first of each sequence: repeats of a prompt under shared noise are one and the same."""
    known: dict[tuple[float, str, tuple[int, ...]], RequestTrace] = {}
    for trace in traces:
        known.setdefault((trace.temperature, trace.prompt_id, trace.ranks), trace)
    return list(known.values())
