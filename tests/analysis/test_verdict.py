"""One piece of code decides: a method is shown to be faster when its interval says so and nothing speaks against it."""

from __future__ import annotations

from analysis.verdict import NO_METHOD, Contender, decide, name_of, verdict_lines


def contender(policy: str, speedup: float, low: float, high: float) -> Contender:
    return Contender(policy=policy, temperature=1.0, speed=100 * speedup, speedup=speedup, interval=(low, high))


PLAIN = contender("autoregressive", 1.0, 1.0, 1.0)
FAST = contender("pearl:draft_length=6", 1.5, 1.4, 1.6)
LEVEL = contender("fixed_length:draft_length=3", 1.45, 1.35, 1.55)
SLOW = contender("fixed_length:draft_length=8", 1.02, 0.98, 1.06)


def test_the_fastest_method_is_named_with_its_interval_and_its_rivals() -> None:
    verdict = decide("T = 1", [PLAIN, SLOW, LEVEL, FAST])
    assert verdict.is_shown
    assert verdict.policy == "pearl:draft_length=6"
    assert "1.50 times" in verdict.answer
    assert "1.40 to 1.60" in verdict.answer
    assert "fixed_length 3 (1.45)" in verdict.how_sure
    assert "fixed_length 8" not in verdict.how_sure


def test_an_interval_that_holds_1_shows_nothing() -> None:
    verdict = decide("T = 1", [PLAIN, SLOW])
    assert not verdict.is_shown
    assert verdict.policy == "autoregressive"
    assert verdict.answer.startswith(NO_METHOD)


def test_times_that_support_no_claim_show_nothing_however_fast() -> None:
    verdict = decide("T = 1", [PLAIN, FAST], doubt="the machine was busy; the clock was slow")
    assert not verdict.is_shown
    assert verdict.policy == "autoregressive"
    assert "the machine was busy (and one more reason)" in verdict.answer
    assert "1.50" not in verdict.answer  # no number, and no name, after times that support none
    assert name_of(FAST.policy) not in " ".join(verdict.lines())


def test_nothing_is_said_without_a_second_method_or_without_plain_decoding() -> None:
    alone = decide("T = 1", [PLAIN, contender("probe:max_length=8,max_branches=3", 1.4, 1.3, 1.5)])
    assert "no other one was run" in alone.answer  # the probe only calibrates
    without = decide("T = 1", [Contender(policy="pearl", temperature=1.0, speed=9.0, speedup=None, interval=None)])
    assert "was not run here" in without.answer
    assert without.policy is None


def test_what_all_verdicts_share_is_said_once() -> None:
    verdicts = [decide(f"T = {value}", [PLAIN, FAST], next_step="specbranch validate") for value in (0, 1)]
    lines = verdict_lines(verdicts)
    assert sum("specbranch validate" in line for line in lines) == 1
    assert lines[0].startswith("T = 0: Use pearl")
    assert verdict_lines(verdicts[:1]) == verdicts[0].lines()


def test_many_scenarios_end_with_one_summary() -> None:
    verdicts = [decide(f"c={value}", [PLAIN, FAST if value else SLOW]) for value in range(4)]
    assert "Across 4 scenarios the answer is: pearl in 3, plain decoding in 1." in verdict_lines(verdicts)


def test_programs_get_the_same() -> None:
    verdict = decide("T = 1", [PLAIN, FAST], next_step="go")
    assert verdict.as_dict()["policy"] == "pearl:draft_length=6"
    assert verdict.as_dict()["interval"] == (1.4, 1.6)
    assert set(verdict.as_dict()) >= {"answer", "how_sure", "would_change", "next_step", "speedup", "is_shown"}
