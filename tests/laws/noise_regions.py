"""Sets of shared noise with exact probabilities: what remains possible once orders and choices have been seen.

A Gumbel vector g is -log E with independent exponentials E, so that the noisy order of a law q is the order of
E_i / q_i, smallest first. Such comparisons do not depend on the length of E, and E / sum(E) is uniform on the simplex.
So everything that drafts, targets and margins can show of the noise is a set of simplices, and its probability is a
share of volume: exact up to rounding, for any small vocabulary.

A plane cuts a simplex with vertices on both sides at the point w of an edge (a, b): with a replaced by w and with b
replaced by w there are two simplices, whose volumes are as |wb| to |aw|, and each has one crossing edge less.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Cut: TypeAlias = tuple[float, int, float, int]  # (a, i, b, j): the plane a x_i = b x_j
Options: TypeAlias = list[tuple[float, tuple[int, ...], "Region"]]

_ROUNDING = 64 * float(np.finfo(np.float64).eps)  # relative to the two terms of a comparison


class Region:
    """A set of noise vectors. pieces: simplices, vertices (vocab, vocab) one a row, each with its probability."""

    __slots__ = ("_known", "mass", "pieces")

    def __init__(self, pieces: Sequence[tuple[Floats, float]]) -> None:
        self.pieces = tuple(pieces)
        self.mass = float(sum(mass for _, mass in pieces))
        self._known: dict[Hashable, Options] = {}

    def options(self, question: Hashable, ask: Callable[[Region], Options]) -> Options:
        """The answers to a question with their probabilities given this region; worked out once."""
        found = self._known.get(question)
        if found is None:
            found = self._known[question] = ask(self)
        return found


def everything(vocab_size: int) -> Region:
    """All noise vectors, probability 1."""
    return Region([(np.eye(vocab_size), 1.0)])


def cut(region: Region, plane: Cut) -> tuple[Region, Region]:
    """The parts with a x_i < b x_j and with a x_i > b x_j; what is left between them has probability 0."""
    below: list[tuple[Floats, float]] = []
    above: list[tuple[Floats, float]] = []
    a, i, b, j = plane
    todo = list(region.pieces)
    while todo:
        vertices, mass = todo.pop()
        left, right = a * vertices[:, i], b * vertices[:, j]
        heights = left - right
        heights[np.abs(heights) <= _ROUNDING * (left + right)] = 0
        low, high = int(heights.argmin()), int(heights.argmax())
        if heights[high] <= 0:
            below.append((vertices, mass))
        elif heights[low] >= 0:
            above.append((vertices, mass))
        else:
            share = float(-heights[low] / (heights[high] - heights[low]))  # of the edge, from low to w
            point = vertices[low] + share * (vertices[high] - vertices[low])
            # Exactly on the plane, so that a later comparison of the same two never sees it aside. The coordinate with
            # the larger factor is the one to move: the other way rounding errors would grow by the ratio.
            if a >= b:
                point[i] = b * point[j] / a
            else:
                point[j] = a * point[i] / b
            for replaced, part in ((high, share), (low, 1 - share)):
                piece = vertices.copy()
                piece[replaced] = point
                todo.append((piece, mass * part))
    return Region(below), Region(above)


def by_order(region: Region, probs: Sequence[float], depth: int) -> Options:
    """Which `depth` tokens lead the noisy order of `probs`, best first: (probability, tokens, region).

    Tokens of probability 0 come last, lower ids first.
    """
    depth = min(depth, len(probs))
    return region.options(("order", tuple(probs), depth), lambda known: _orders(known, probs, depth))


def by_margin(region: Region, probs: Sequence[float], edges: Sequence[float]) -> Options:
    """In which bin of increasing `edges` the noisy margin of `probs` lies: (probability, (bin,), region).

    The margin is log(q_1 / E_1) - log(q_2 / E_2) of the two leading tokens. The last bin holds infinite margins too.
    """
    return region.options(("margin", tuple(probs), tuple(edges)), lambda known: _margins(known, probs, edges))


def _orders(region: Region, probs: Sequence[float], depth: int) -> Options:
    parts: list[tuple[tuple[int, ...], Region]] = [((), region)]
    for _ in range(depth):
        parts = [((*order, best), part) for order, known in parts for best, part in _best(known, probs, order)]
    return [(part.mass / region.mass, order, part) for order, part in parts]


def _best(region: Region, probs: Sequence[float], taken: Sequence[int]) -> list[tuple[int, Region]]:
    """The best token that is not taken: a tournament, each match a cut."""
    pieces: dict[int, list[tuple[Floats, float]]] = {}
    left = [token for token in range(len(probs)) if token not in taken]
    standing = [(left[0], region)]
    for rival in left[1:]:
        matches = []
        for champion, known in standing:
            if probs[rival] == 0:
                matches.append((champion, known))
                continue
            wins, loses = cut(known, (probs[rival], champion, probs[champion], rival))
            matches += [(token, part) for token, part in ((champion, wins), (rival, loses)) if part.mass > 0]
        standing = matches
    for champion, known in standing:
        pieces.setdefault(champion, []).extend(known.pieces)
    if len(pieces) == 1:
        return [(next(iter(pieces)), region)]
    return [(token, Region(found)) for token, found in pieces.items()]


def _margins(region: Region, probs: Sequence[float], edges: Sequence[float]) -> Options:
    bins: dict[int, list[tuple[Floats, float]]] = {}
    for _, (best, second), known in by_order(region, probs, 2):
        if probs[second] == 0:
            bins.setdefault(len(edges), []).extend(known.pieces)
            continue
        for index, edge in enumerate(edges):
            # The margin is below the edge where E_2 / q_2 < exp(edge) E_1 / q_1.
            inside, known = cut(known, (probs[best], second, float(np.exp(edge)) * probs[second], best))
            bins.setdefault(index, []).extend(inside.pieces)
        bins.setdefault(len(edges), []).extend(known.pieces)
    parts = [(index, Region(pieces)) for index, pieces in sorted(bins.items()) if pieces]
    return [(part.mass / region.mass, (index,), part) for index, part in parts]
