"""The draft's lag after every kind of outcome."""

from __future__ import annotations

from sim.decoding.draft_cache import DraftCache, Forwards, host, prefill


def after_serial_round(num_accepted: int, num_pending: int = 3) -> DraftCache:
    cache = DraftCache(num_prompt_tokens=10)
    cache.draft(num_pending)
    cache.submit(num_pending)
    cache.settle(num_accepted, num_accepted + 1, False)
    return cache


def test_lag_after_serial_rounds() -> None:
    assert DraftCache(10).lag == 1  # the prompt's last token
    assert after_serial_round(3).lag == 2  # the last draft token was no input yet, nor is the bonus token
    assert after_serial_round(2).lag == 1
    assert after_serial_round(0).lag == 1


def test_lag_grows_while_the_draft_is_not_asked() -> None:
    cache = DraftCache(10)
    for _ in range(4):
        cache.submit(0)
        cache.settle(0, 1, False)
    assert cache.draft(2) == Forwards("draft", "draft", 2, 5, 1, 9)


def test_lag_after_hedged_rounds() -> None:
    def hedged(is_hit: bool, kept: int) -> DraftCache:
        cache = DraftCache(10)
        cache.draft(2)
        assert cache.submit(2) == Forwards("target", "verify", 1, 3, 1, 9)
        assert cache.look() == Forwards("draft", "look", 1, 1, 1, 11)
        assert cache.branch(4, 3) == Forwards("draft", "branch", 3, 1, 4, 12)
        cache.settle(2, 3, is_hit)
        if is_hit:
            cache.keep(kept)
        return cache

    assert hedged(False, 0).lag == 1
    assert hedged(True, 3).lag == 1  # kept whole: its last token was no input yet
    trimmed = hedged(True, 1)
    assert trimmed.lag == 0
    assert trimmed.draft(1).num_forwards == 0  # the law is known
    assert trimmed.draft(2) == Forwards("draft", "draft", 2, 1, 1, 14)


def test_withdrawn_tokens_leave_no_lag() -> None:
    cache = DraftCache(10)
    cache.draft(4)
    cache.submit(2)
    assert cache.lag == 0
    cache.settle(2, 3, False)
    assert cache.lag == 1


def test_prefill_and_host() -> None:
    assert prefill("draft", 10) == Forwards("draft", "prefill", 1, 9, 1, 0)
    assert prefill("target", 1).num_forwards == 0
    assert host(4, 3, 20) == Forwards("host", "host", 1, 4, 3, 19)
