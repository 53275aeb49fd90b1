"""Lengths follow the laws that they name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sim.serving.workload.lengths import (
    ConstantLengths,
    EmpiricalLengths,
    LognormalLengths,
    RecordedLengths,
    instructcoder_lengths,
)
from traces.workload import Lengths

RECORDED = Lengths(prompt_tokens=np.array([10, 20, 30, 40]), output_tokens=np.array([1, 2, 3, 4]), source="a file")


def test_constant_lengths_are_constant() -> None:
    drawn = ConstantLengths(prompt_tokens=145, output_tokens=200).draw(3, np.random.default_rng(0))
    assert (drawn.prompt_tokens.tolist(), drawn.output_tokens.tolist()) == ([145] * 3, [200] * 3)


def test_recorded_lengths_come_in_order_and_never_more_than_there_are() -> None:
    law = RecordedLengths(RECORDED)
    drawn = law.draw(3, np.random.default_rng(0))
    assert (drawn.prompt_tokens.tolist(), drawn.output_tokens.tolist()) == ([10, 20, 30], [1, 2, 3])
    with pytest.raises(ValueError, match="num_requests is 5, but 4 were recorded; use EmpiricalLengths"):
        law.draw(5, np.random.default_rng(0))


def test_drawn_lengths_keep_prompt_and_output_together_and_are_uniform() -> None:
    num = 40_000
    drawn = EmpiricalLengths(RECORDED).draw(num, np.random.default_rng(0))
    assert (drawn.prompt_tokens == 10 * drawn.output_tokens).all()
    counts = np.bincount(drawn.output_tokens, minlength=5)[1:]
    assert np.abs(counts - num / 4).max() <= 4 * math.sqrt(num * 0.25 * 0.75)


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0])
def test_lognormal_lengths_have_the_mean_and_the_spread_asked_for(cv: float) -> None:
    num = 200_000
    law = LognormalLengths(mean_prompt_tokens=1155, mean_output_tokens=211, prompt_cv=cv, output_cv=cv)
    drawn = law.draw(num, np.random.default_rng(3))
    for tokens, mean in ((drawn.prompt_tokens, 1155.0), (drawn.output_tokens, 211.0)):
        stderr = tokens.std() / math.sqrt(num)
        error = tokens.mean() - mean
        assert abs(error) <= 4 * stderr, f"{error=:.3f} is {error / stderr:.1f} standard errors off"
        logs = np.log(tokens)
        assert logs.std() == pytest.approx(math.sqrt(math.log1p(cv**2)), rel=0.02)
        assert abs(((logs - logs.mean()) ** 3).mean() / logs.std() ** 3) < 0.1  # symmetric in the logarithm
    correlation = np.corrcoef(np.log(drawn.prompt_tokens), np.log(drawn.output_tokens))[0, 1]
    assert abs(correlation) <= 4 / math.sqrt(num)


def test_short_lengths_are_at_least_1_and_long_ones_cut() -> None:
    law = LognormalLengths(
        mean_prompt_tokens=1, mean_output_tokens=100, prompt_cv=2.0, output_cv=2.0, max_output_tokens=128
    )
    drawn = law.draw(5000, np.random.default_rng(0))
    assert drawn.prompt_tokens.min() == 1
    assert (drawn.output_tokens.max(), (drawn.output_tokens == 128).sum() > 500) == (128, True)


def test_instructcoder_varies_prompts_only() -> None:
    drawn = instructcoder_lengths(mean_prompt_tokens=145, output_tokens=200).draw(20_000, np.random.default_rng(0))
    assert set(drawn.output_tokens.tolist()) == {200}
    assert abs(drawn.prompt_tokens.mean() - 145) <= 4 * drawn.prompt_tokens.std() / math.sqrt(20_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean_prompt_tokens": 0.5}, "mean_prompt_tokens must be at least 1, but got 0.5"),
        ({"mean_output_tokens": math.nan}, "mean_output_tokens must be at least 1, but got nan"),
        ({"mean_output_tokens": math.inf}, "mean_output_tokens must be at least 1, but got inf"),
        ({"prompt_cv": -0.1}, "prompt_cv must be a number of at least 0, but got -0.1"),
        ({"output_cv": math.nan}, "output_cv must be a number of at least 0, but got nan"),
        ({"max_output_tokens": -3}, "max_output_tokens must be at least 1, but got -3"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens must be at least 1, but got 0"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LognormalLengths(**({"mean_prompt_tokens": 10, "mean_output_tokens": 10} | changes))
    with pytest.raises(ValueError, match="output_tokens must be at least 1, but got 0"):
        ConstantLengths(prompt_tokens=1, output_tokens=0)
