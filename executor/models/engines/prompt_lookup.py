"""Prompt lookup: a draft without weights, that continues as the text did where its last tokens occurred before.

It stands behind the interface of a model, so that the step loop, the recorder and replay need not know: the law after a
sequence is a point on the token that followed the earlier occurrence, and the uniform law when there is none. What it
proposes depends on the tokens alone, not on where a round began, hence the alignment trace answers every what-if.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from executor.models.engines.base import check_adoption, check_extension, check_growth, check_roll_back, check_starts
from executor.models.names import Lookup

# Between the token found and all others: more than Gumbel noise (at most 26 between two tokens) at any temperature below
# 380, and finite, so that margins can be averaged and fitted.
_GAP = 1e4


class PromptLookupEngine:
    """A lookup behind `executor.models.engines.base.Engine`. It has no layers, no features and no embeddings.

    The index knows, for every n-gram of the line, the place after its first occurrence. Since that is the first one, it
    answers for every shorter line, too: an occurrence that lies beyond a branch's start has none before it.
    """

    num_layers = hidden_size = num_feature_layers = 0
    head_tokens: Tensor | None = None

    def __init__(self, lookup: Lookup, *, vocab_size: int, capacity: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size, self.capacity, self.device = vocab_size, capacity, torch.device(device)
        self.dtype = torch.float32  # of the logits: there are no weights
        self.features = torch.empty(0, 0, 0, device=self.device)
        self._sizes = range(lookup.max_ngram, lookup.min_ngram - 1, -1)
        self._line: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        self._new: list[list[tuple[int, ...]]] = []  # n-grams that occurred first at the end of each token of the line
        self._starts: list[int] = []
        self._tails: list[list[int]] = []

    @property
    def length(self) -> int:
        """Tokens in the line."""
        return len(self._line)

    def reset(self) -> None:
        """Forget everything: a new request."""
        self._line, self._places, self._new, self._starts, self._tails = [], {}, [], [], []

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Nothing of each token."""
        return torch.empty(len(tokens), 0, device=self.device)

    def extend(self, tokens: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Append tokens to the line; close open branches."""
        check_extension(length=self.length, num_new=len(tokens), capacity=self.capacity)
        self._starts, self._tails = [], []
        laws = []
        for index, token in enumerate(tokens, 1):
            self._append(token)
            if not last_only or index == len(tokens):
                laws.append(self._next(self.length, ()))
        return self._laws(laws)

    def roll_back(self, length: int) -> None:
        """Cut the line; close open branches."""
        check_roll_back(length=self.length, wanted=length)
        self._starts, self._tails = [], []
        for keys in self._new[length:]:
            for key in keys:
                del self._places[key]
        del self._line[length:], self._new[length:]

    def open_branches(self, starts: Sequence[int]) -> None:
        """Begin branches on the line."""
        check_starts(starts, length=self.length)
        self._starts, self._tails = list(starts), [[] for _ in starts]

    def grow(self, tokens: Sequence[int]) -> Tensor:
        """One more token for every row."""
        num_grown = len(self._tails[0]) if self._tails else 0
        check_growth(tokens, starts=self._starts, num_grown=num_grown, capacity=self.capacity)
        for tail, token in zip(self._tails, tokens, strict=True):
            tail.append(token)
        return self._laws([self._next(start, tail) for start, tail in zip(self._starts, self._tails, strict=True)])

    def adopt(self, row: int, num_tokens: int) -> None:
        """Make the first tokens of one row's tail the line's next ones."""
        check_adoption(row, num_tokens, starts=self._starts, num_grown=len(self._tails[row]) if self._tails else 0)
        start, tail = self._starts[row], self._tails[row][:num_tokens]
        self.roll_back(start)
        for token in tail:
            self._append(token)

    def _append(self, token: int) -> None:
        self._line.append(token)
        length = len(self._line)
        self._new.append([])
        for size in self._sizes:
            key = tuple(self._line[length - size :])
            if size <= length and key not in self._places:
                self._places[key] = length
                self._new[-1].append(key)

    def _next(self, start: int, tail: Sequence[int]) -> int | None:
        """The token that followed the first occurrence of the longest n-gram that line[:start] and a tail end with."""
        length, first = start + len(tail), max(0, start - self._sizes[0])
        recent = [*self._line[first:start], *tail]  # holds every n-gram that ends within the tail
        for size in self._sizes:
            if size > length:
                continue
            key = tuple(recent[-size:])
            place = self._places.get(key, length)
            if place > start:  # it does not end in line[:start]; perhaps within the tail
                ends = range(max(start + 1, size), length)
                place = next((end for end in ends if tuple(recent[end - size - first : end - first]) == key), length)
            if place < length:
                return recent[place - first] if place >= first else self._line[place]
        return None

    def _laws(self, tokens: Sequence[int | None]) -> Tensor:
        """Logits (n, vocab): a point on each token, or nothing preferred."""
        logits = torch.zeros(len(tokens), self.vocab_size, device=self.device)
        for row, token in enumerate(tokens):
            if token is not None:
                logits[row] = -_GAP
                logits[row, token] = 0.0
        return logits
