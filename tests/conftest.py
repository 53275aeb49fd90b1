"""What several test folders share: the embedded pair's session, and made-up traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from traces.schema import FinishReason, RequestTrace, Signal


@pytest.fixture(scope="session")
def light_sessions() -> Iterator[None]:
    """From the first test that asks on, sessions open at once and leave the cores to others: tests/light_sessions.py."""
    from tests.light_sessions import light_sessions

    with light_sessions():
        yield


@pytest.fixture
def bound_sessions() -> Iterator[None]:
    """Sessions bound to two cores, as users' are."""
    from tests.light_sessions import bound_sessions

    with bound_sessions():
        yield


@pytest.fixture
def real_sessions() -> Iterator[None]:
    """Sessions as users have them, for tests of the processes themselves."""
    from tests.light_sessions import real_sessions

    with real_sessions():
        yield


@pytest.fixture(scope="session")
def session(light_sessions: None) -> Iterator[object]:
    """The embedded pair, loaded once: its target in a process of its own."""
    from executor.pair import Session
    from tests.settings import pair_settings

    with Session(pair_settings(capacity=512)) as opened:
        yield opened


@pytest.fixture
def make_trace() -> Callable[..., RequestTrace]:
    """A trace with random ranks and signals; acceptance is the share of rank 0."""

    def make(
        *,
        num_tokens: int = 60,
        acceptance: float = 0.6,
        seed: int = 0,
        tail_depth: int = 16,
        temperature: float = 0.0,
        with_classes: bool = False,
    ) -> RequestTrace:
        rng = np.random.default_rng(seed)

        def signal(is_right: bool) -> Signal:
            margin = rng.exponential(2.0 if is_right else 0.7)
            return Signal(float(1 - np.exp(-margin)), float(rng.exponential(1.0)), float(margin))

        ranks = tuple(0 if rng.random() < acceptance else 1 + int(rng.geometric(0.5)) for _ in range(num_tokens))
        ranks = tuple(min(rank, 40) for rank in ranks)
        tails = {
            position: tuple(signal(bool(rng.random() < 0.4)) for _ in range(tail_depth))
            for position in [*(index for index, rank in enumerate(ranks) if rank), num_tokens]
        }
        classes = ()
        if with_classes:
            drawn = rng.dirichlet((1, 1, 1), num_tokens + 1)
            classes = tuple((float(a), float(b), float(c)) for a, b, c in drawn)
        return RequestTrace(
            request_id=seed,
            prompt_id=f"prompt-{seed}",
            num_prompt_tokens=20,
            max_new_tokens=num_tokens,
            temperature=temperature,
            finish_reason=FinishReason.MAX_TOKENS,
            ranks=ranks,
            signals=tuple(signal(rank == 0) for rank in ranks),
            tails=tails,
            tail_depth=tail_depth,
            class_probs=classes,
        )

    return make
