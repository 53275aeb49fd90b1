"""Speeds and their intervals from requests and rounds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from traces.metrics.bootstrap import ratio_of_sums, resampling_weights
from traces.metrics.speeds import measured_speeds, mismatched_prompts


def _run(seconds: dict[str, list[float]], tokens: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each policy decodes prompts 0, 1, ... in the seconds given, two rounds each."""
    requests, rounds, request_id = [], [], 0
    for policy, times in seconds.items():
        for prompt, time in enumerate(times):
            requests.append((request_id, f"p{prompt}", policy, 0, 0.0, tokens, True, "hash", 0, 16))
            rounds += [(request_id, 0, 5.0, 5.0 + time / 2), (request_id, 1, 5.0 + time / 2, 5.0 + time)]
            request_id += 1
    columns = [
        *("request_id", "prompt_id", "policy", "repeat", "temperature", "num_output_tokens", "is_clean"),
        *("tokens_sha256", "seed", "max_new_tokens"),
    ]
    return (
        pd.DataFrame(requests, columns=columns),
        pd.DataFrame(rounds, columns=["request_id", "round", "start_s", "end_s"]),
    )


def test_speed_is_all_tokens_over_all_seconds() -> None:
    speeds = measured_speeds(*_run({"autoregressive": [1.0, 3.0], "fast": [0.5, 1.5]}))
    by_policy = {speed.policy: speed for speed in speeds}
    assert by_policy["autoregressive"].tokens_per_s == pytest.approx(20 / 4)
    assert by_policy["fast"].speedup == pytest.approx(2.0)
    assert by_policy["fast"].tokens_per_target_forward == pytest.approx(5.0)


def test_speedups_are_paired_by_prompt() -> None:
    rng = np.random.default_rng(0)
    times = rng.uniform(1, 20, 40)
    speeds = measured_speeds(*_run({"autoregressive": list(times), "fast": list(times / 1.5)}))
    fast = next(speed for speed in speeds if speed.policy == "fast")
    low, high = fast.speedup_interval or (0, 0)
    assert high - low < 1e-9  # the prompts differ twentyfold, the ratio does not
    assert fast.interval[1] / fast.interval[0] > 1.2


def test_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        times = rng.gamma(4.0, 0.25, 30)
        ((low, high),) = ratio_of_sums(times[None], np.ones((1, 30)), resampling_weights(30, seed=2)).intervals()
        covered += low <= 1.0 <= high
    assert 170 <= covered <= 200


def test_a_disturbed_repeat_does_not_count() -> None:
    requests, rounds = _run({"autoregressive": [1.0, 3.0, 1.0, 3.0, 1.0, 300.0]})
    requests["prompt_id"], requests["repeat"] = ["p0", "p1"] * 3, [0, 0, 1, 1, 2, 2]
    (speed,) = measured_speeds(requests, rounds)
    assert speed.tokens_per_s == pytest.approx(20 / 4)
    assert (speed.num_prompts, speed.num_requests) == (2, 6)


def test_sequences_of_one_prompt_are_summed_and_drawn_together() -> None:
    """A median over different sequences would pair the tokens of one with the seconds of another: 10 / 2 here."""
    requests, rounds = _run({"autoregressive": [1.0, 2.0, 9.0]})
    requests["prompt_id"], requests["num_output_tokens"] = "p0", [10, 40, 1]
    (speed,) = measured_speeds(requests, rounds)
    assert speed.tokens_per_s == pytest.approx(51 / 12)
    assert speed.interval == pytest.approx((51 / 12, 51 / 12))  # there is but one prompt to draw


def test_a_policy_without_some_prompts_is_compared_on_the_shared_ones() -> None:
    requests, rounds = _run({"autoregressive": [1.0, 3.0, 5.0], "fast": [0.5, 1.0, 1.0]})
    kept = ~((requests.policy == "fast") & (requests.prompt_id == "p0"))
    fast = next(speed for speed in measured_speeds(requests[kept], rounds) if speed.policy == "fast")
    assert fast.tokens_per_s == pytest.approx(20 / 2)
    assert fast.speedup == pytest.approx(8 / 2)


def test_a_missing_baseline_gives_no_speedup() -> None:
    (speed,) = measured_speeds(*_run({"fast": [1.0, 2.0]}))
    assert speed.speedup is None


def test_different_tokens_are_named() -> None:
    requests, _ = _run({"autoregressive": [1.0, 1.0], "fast": [1.0, 1.0]})
    assert mismatched_prompts(requests) == []
    requests.loc[3, "tokens_sha256"] = "other"
    assert mismatched_prompts(requests) == ["p1"]


def test_an_empty_run_is_refused() -> None:
    requests, rounds = _run({"fast": [1.0]})
    with pytest.raises(ValueError, match="no rounds"):
        measured_speeds(requests, rounds.iloc[:0])
