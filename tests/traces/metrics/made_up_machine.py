"""Runs on a made-up machine whose speed follows a known path of time: tables as a run folder has them, and the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

SpeedPath = Callable[[float], float]
Slowness = Callable[[str, float], float]

PATHS: Mapping[str, SpeedPath] = {
    "steps": lambda t: (1.0, 0.5, 1.3)[int(t // 15) % 3],
    "waves": lambda t: 1 + 0.35 * float(np.sin(2 * np.pi * t / 60)),
    "slow decline": lambda t: max(0.4, 1.3 - 0.012 * t),
}
# Seconds of a round on a machine of speed 1, and tokens that it brings on average.
POLICIES: Mapping[str, tuple[float, float]] = {
    "autoregressive": (0.003, 1.0),
    "pearl": (0.005, 2.2),
    "saguaro": (0.006, 2.5),
    "fixed_length": (0.007, 2.8),
    "late": (0.008, 3.0),  # runs in the last third of the blocks only
}
NUM_TOKENS = 60


def made_up_run(
    path: SpeedPath,
    *,
    num_blocks: int = 60,
    seed: int = 0,
    noise: float = 0.1,
    slowness: Slowness = lambda policy, time_s: 1.0,
    policies: Sequence[str] = tuple(POLICIES),
    late: str = "late",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Requests and rounds. Each block is a prompt, decoded by every policy, by the first one twice, in random order.

    noise: standard deviation of the logarithm of a round's seconds. slowness: of a policy at a time, on its own account.
    """
    rng = np.random.default_rng(seed)
    now, requests, rounds = 0.0, [], []
    for block in range(num_blocks):
        todo = [(policy, 0) for policy in policies if policy != late or 3 * block >= 2 * num_blocks]
        todo.append((policies[0], 1))
        for index in rng.permutation(len(todo)):
            policy, repeat = todo[index]
            seconds, tokens = POLICIES[policy]
            request_id = len(requests)
            for number in range(round(NUM_TOKENS / tokens)):
                drawn = np.exp(noise * rng.standard_normal() - noise**2 / 2)
                took = float(seconds * drawn * slowness(policy, now) / path(now))
                rounds.append((request_id, number, now, now + took, 0.0, 0.0))
                now += took
            requests.append((request_id, f"p{block}", policy, repeat, 0.0, NUM_TOKENS, True, "hash", 0, 64))
    columns = [
        *("request_id", "prompt_id", "policy", "repeat", "temperature", "num_output_tokens", "is_clean"),
        *("tokens_sha256", "seed", "max_new_tokens"),
    ]
    round_columns = ["request_id", "round", "start_s", "end_s", "draft_s", "verify_s"]
    return pd.DataFrame(requests, columns=columns), pd.DataFrame(rounds, columns=round_columns)


def median_speed(path: SpeedPath, end_s: float) -> float:
    """Of the machine, over the run."""
    return float(np.median([path(time_s) for time_s in np.linspace(0, end_s, 2000)]))


def true_speed(policy: str) -> float:
    """Tokens a second on a machine of speed 1."""
    seconds, tokens = POLICIES[policy]
    return NUM_TOKENS / (round(NUM_TOKENS / tokens) * seconds)
