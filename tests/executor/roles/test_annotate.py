"""What a recorder notes of the target's laws besides the alignment."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from executor.roles.annotate import _scored
from executor.roles.scoring import Scores
from traces.schema import Sampling

LAWS = np.array([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]], np.float32)


class TargetOfKnownLaws:
    def score(self, sequence: object, num_prompt: int, sampling: Sampling) -> Iterator[Scores]:
        for laws in (LAWS[:2], LAWS[2:]):
            yield Scores(laws, np.zeros((len(laws), 2), np.float32), np.zeros((0, 3), np.float32))


def test_the_second_log_moment_and_the_overlap_are_those_of_the_laws() -> None:
    draft = np.array([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.5, 0.5], [0.3, 0.7, 0.0, 0.0]], np.float32)
    asked = np.array([[1, 3], [2, 2], [0, 1]])
    columns, found, classes = _scored(TargetOfKnownLaws(), [1, 2, 3, 0], 1, Sampling(), draft, asked)  # type: ignore[arg-type]
    assert found.tolist() == [[0.5, 0.0], [0.25, 0.25], [1.0, 0.0]]
    assert columns["target_log_moment"] == pytest.approx([np.log(2) ** 2, np.log(4) ** 2, 0.0], rel=1e-6)
    assert columns["overlap"] == pytest.approx([0.3, 0.5, 0.3])
    assert classes == ()
