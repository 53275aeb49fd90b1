"""No hostile input ends in an exception that is not meant for a user, or takes long.

As many cases as one likes: SPECBRANCH_FUZZ=100000 pytest -m slow tests/analysis/test_fuzzing.py
"""

from __future__ import annotations

import os

import pytest

from executor.errors import LogitsError
from tests.analysis.fuzzing import Case, Fuzzer, Outcome, _problem_of

MAX_S = 10.0  # of the processor, for one case
NUM_FULL = int(os.environ.get("SPECBRANCH_FUZZ", "20500"))
NUM_COMMANDS = 1_000  # of them


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Fuzzer:
    return Fuzzer(tmp_path_factory.mktemp("fuzzing"))


def _check(outcomes: list[Outcome]) -> None:
    wrong = [f"{each.case}: {each.problem}" for each in outcomes if each.problem]
    assert not wrong, f"{len(wrong)} of {len(outcomes)}:\n" + "\n".join(wrong[:25])


@pytest.mark.parametrize(
    "target",
    ["prompts", "run", "calibration", "study", "served", "traffic", "advice", "settings", "policy", "command line"],
)
def test_some_hostile_inputs(fuzzer: Fuzzer, target: str) -> None:
    outcomes = [fuzzer.run(Case(target, seed)) for seed in range(12 if target == "command line" else 40)]
    _check(outcomes)
    assert any(each.is_refused for each in outcomes)


def test_a_case_is_the_same_input_again(fuzzer: Fuzzer) -> None:
    first, again = ([fuzzer.run(Case("calibration", seed)).is_refused for seed in range(60)] for _ in range(2))
    assert first == again
    assert len(set(first)) == 2


def test_what_is_not_for_users_is_seen() -> None:
    assert _problem_of(KeyError("x"))
    assert _problem_of(ValueError(""))
    assert "library" in _problem_of(_raised(lambda: int("x")))
    assert not _problem_of(OSError("no such file"))
    assert not _problem_of(LogitsError("draft", "the draft's logits hold nan"))


def _raised(call: object) -> Exception:
    try:
        call()  # type: ignore[operator]
    except ValueError as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.slow
def test_many_hostile_inputs(fuzzer: Fuzzer, capsys: pytest.CaptureFixture[str]) -> None:
    """At least 20,000: damaged files and values for every reader, and a thousand command lines."""
    others = [target for target in fuzzer.targets if target != "command line"]
    shares = dict.fromkeys(others, -(-(NUM_FULL - NUM_COMMANDS) // len(others))) | {"command line": NUM_COMMANDS}
    outcomes: list[Outcome] = []
    for target, share in shares.items():
        found = [fuzzer.run(Case(target, seed)) for seed in range(1000, 1000 + share)]
        problems = "".join(f"\n  {each.case}: {each.problem}" for each in found if each.problem)
        refused = sum(each.is_refused for each in found)
        slowest = max(found, key=lambda each: each.seconds)
        with capsys.disabled():
            print(
                f"{target}: {share} cases, {refused} refused, slowest {slowest.case.seed} in {slowest.seconds:.2f} s{problems}"
            )
        assert refused
        outcomes += found
    with capsys.disabled():
        print(f"{len(outcomes)} cases, {sum(each.is_refused for each in outcomes)} refused")
    assert len(outcomes) >= NUM_FULL
    _check(outcomes)
    slowest = max(outcomes, key=lambda each: each.seconds)
    assert slowest.seconds < MAX_S, slowest
