"""Prove a policy lossless: the exact law of what it emits on a tiny pair, by going through every random outcome.

    pair = random_pair(np.random.default_rng(0), vocab_size=2)
    law = sequence_law(MyPolicy(), Rule.SHARED_NOISE, pair, length=5)
    assert total_variation(law.probs, autoregressive_law(pair, 5)) < 1e-12

The real step machine runs along each path of a tree whose branches are the answers of a world
made of next-token tables (`tests.laws.enumerated.world`). A length of at least the policy's longest draft + 2 covers a token
after a bonus token and after a correction. The check is exact up to rounding: a TV distance above 1e-12 is a defect of
the policy under that rule, not bad luck.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from sim.decoding.machine import Close
from sim.decoding.policies.base import Policy
from sim.decoding.verification import Floats, transform
from sim.decoding.world import drive
from tests.laws.enumerated.draws import PrivateNoise, SharedNoise
from tests.laws.enumerated.outcome_tree import Chance
from tests.laws.enumerated.world import ClassesOf, EnumeratedWorld, Tokens
from tests.laws.verification_laws import Rule, check_pairing
from traces.schema import Sampling

Law: TypeAlias = dict[Tokens, float]


@dataclass(frozen=True, eq=False)
class TinyPair:
    """Target and draft as tables: the next-token law given the last `order` tokens. Before the first token stand zeros.

    target_probs: (vocab,) * order + (vocab,), rows sum to 1; any order, 0 for independent tokens.
    draft_probs:  the same, with an order of its own.
    """

    target_probs: Floats
    draft_probs: Floats

    def __post_init__(self) -> None:
        for name in ("target_probs", "draft_probs"):
            table = getattr(self, name)
            if set(table.shape) != {self.vocab_size}:
                raise ValueError(
                    f"{name} must have every axis as long as the vocabulary, but its shape is {table.shape}."
                )
            if (table < 0).any() or not np.allclose(table.sum(axis=-1), 1, atol=1e-9):
                raise ValueError(f"{name} must hold laws along its last axis: not negative, sum 1.")

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self.target_probs.shape[-1])

    def target_law(self, prefix: Tokens) -> tuple[float, ...]:
        """The target's next-token law after the generated tokens `prefix`."""
        return self._target_rows[_context(prefix, self.target_probs.ndim - 1)]

    def draft_law(self, prefix: Tokens) -> tuple[float, ...]:
        """The draft's."""
        return self._draft_rows[_context(prefix, self.draft_probs.ndim - 1)]

    def sampled(self, sampling: Sampling) -> TinyPair:
        """The pair under temperature, top-k and top-p, on both models alike."""
        with np.errstate(divide="ignore"):
            logs = np.log(self.target_probs), np.log(self.draft_probs)
        return TinyPair(*(np.exp(transform(log_probs, sampling)) for log_probs in logs))

    @functools.cached_property
    def _target_rows(self) -> dict[Tokens, tuple[float, ...]]:
        return dict(_rows(self.target_probs))

    @functools.cached_property
    def _draft_rows(self) -> dict[Tokens, tuple[float, ...]]:
        return dict(_rows(self.draft_probs))


class SequenceLaw(NamedTuple):
    """What a policy does on a tiny pair, exactly.

    probs: of each emitted sequence. The rest are expectations per request: num_rounds, num_submitted, num_rejected,
    num_hits. num_paths: leaves of the tree.
    """

    probs: Law
    num_rounds: float
    num_submitted: float
    num_rejected: float
    num_hits: float
    num_paths: int


def random_pair(
    rng: np.random.Generator,
    vocab_size: int,
    *,
    target_order: int = 1,
    draft_order: int = 1,
    concentration: float = 1.0,
    similarity: float = 0.5,
) -> TinyPair:
    """A pair with Dirichlet rows. Of the draft's law a share `similarity` is the target's, averaged over what the draft
    cannot see, and the rest its own."""
    flat = np.full(vocab_size, concentration)
    target = rng.dirichlet(flat, size=(vocab_size,) * target_order)
    seen = target.mean(axis=tuple(range(max(0, target_order - draft_order))))
    own = rng.dirichlet(flat, size=(vocab_size,) * draft_order)
    return TinyPair(target, np.asarray(similarity * seen + (1 - similarity) * own))


def autoregressive_law(pair: TinyPair, length: int, *, eos: int | None = None) -> Law:
    """The target's own law over sequences of `length` tokens, or shorter ones that end in `eos`."""
    laws: Law = {(): 1.0}
    for _ in range(length):
        longer: Law = {}
        for prefix, probability in laws.items():
            if prefix and prefix[-1] == eos:
                longer[prefix] = probability
                continue
            for token, chance in enumerate(pair.target_law(prefix)):
                if chance > 0:
                    longer[*prefix, token] = probability * chance
        laws = longer
    return laws


def total_variation(first: Mapping[Tokens, float], second: Mapping[Tokens, float]) -> float:
    """Half the sum of |differences|: the largest difference in the probability of any event."""
    return sum(abs(first.get(key, 0.0) - second.get(key, 0.0)) for key in first.keys() | second.keys()) / 2


def sequence_law(
    policy: Policy,
    rule: Rule,
    pair: TinyPair,
    length: int,
    *,
    classes: ClassesOf | None = None,
    eos: int | None = None,
    margin_edges: tuple[float, ...] = (1.0,),
    max_paths: int = 1_000_000,
    noise: type[SharedNoise] | type[PrivateNoise] | None = None,
) -> SequenceLaw:
    """The exact law of the `length` tokens (or up to `eos`) that `policy` emits under `rule`.

    classes: H-RAD's class probabilities as a function of the committed tokens, for policies that read them.
    margin_edges: under shared noise policies see the noisy margin rounded to bins with these edges; a policy that
        compares it with one of them sees all it needs.
    noise: another model of the draws, for tests that break it on purpose.
    Raises ValueError for a pairing that `check_pairing` refuses, and when the tree has more than max_paths leaves.
    """
    check_pairing(rule, policy)
    if policy.needs.classes and classes is None:
        raise ValueError(
            f"{type(policy).__name__} reads H-RAD's classes; give `classes`, a function of the tokens so far."
        )
    kind = noise or (SharedNoise if rule is Rule.SHARED_NOISE else PrivateNoise)
    chance = Chance()
    model = kind(pair, rule, chance, margin_edges)
    probs: Law = {}
    sums = np.zeros(4)
    num_paths = 0
    while True:
        model.restart()
        world = EnumeratedWorld(model, policy.needs, length, classes, eos)
        counts = np.zeros(4)
        for command in drive(policy, world, request_id=0, max_new_tokens=length):
            if isinstance(command, Close):
                round_ = command.round
                counts += (1, round_.num_pending, round_.num_rejected, round_.is_hit)
        tokens = tuple(world.committed)
        probs[tokens] = probs.get(tokens, 0.0) + chance.probability
        sums += chance.probability * counts
        num_paths += 1
        if num_paths > max_paths:
            raise ValueError(
                f"more than {max_paths} paths; take a shorter length, a smaller vocabulary or fewer margin_edges."
            )
        if not chance.advance():
            rounds, submitted, rejected, hits = sums.tolist()
            return SequenceLaw(probs, rounds, submitted, rejected, hits, num_paths)


def _context(prefix: Tokens, order: int) -> Tokens:
    return ((0,) * order + prefix)[len(prefix) :]


def _rows(table: Floats) -> Iterator[tuple[Tokens, tuple[float, ...]]]:
    for context in np.ndindex(*table.shape[:-1]):
        yield tuple(context), tuple(table[context].tolist())
