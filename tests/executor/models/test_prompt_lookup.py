"""Prompt lookup: the index against a search, and the whole way with real target weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from executor.models.engines.prompt_lookup import PromptLookupEngine
from executor.models.loading import Vocabulary, check_vocabularies, fingerprint
from executor.models.names import Lookup, parse_model
from executor.models.sources.base import ModelError
from executor.noise import gumbel
from executor.pair import Session
from executor.recording.recorder import record_run
from executor.request import Request
from executor.verification import choose, noisy_scores, signals
from sim.decoding.policies.base import Observation
from sim.decoding.policies.catalog import parse_policy
from sim.decoding.policies.serial.prompt_lookup import PromptLookup
from sim.decoding.replay import replay
from sim.engine import simulate
from sim.latency.constant import ConstantLatency
from tests.settings import load, pair_settings, record_settings
from traces.schema import Sampling, Signal

VOCAB = 5
REPETITIVE = "def area(width, height):\n    return width * height\n\n\ndef area(width, height):\n    return width"


def search(tokens: Sequence[int], lookup: Lookup) -> int | None:
    """The definition: first occurrence of the longest n-gram that ends the text, read one further."""
    for size in range(lookup.max_ngram, lookup.min_ngram - 1, -1):
        for end in range(size, len(tokens)):
            if tokens[end - size : end] == tokens[len(tokens) - size :]:
                return tokens[end]
    return None


def found_in(row: Tensor) -> int | None:
    """What a row of logits proposes."""
    return int(row.argmax()) if float(row.softmax(-1).max()) > 0.5 else None


def engine_of(lookup: Lookup, capacity: int = 200) -> PromptLookupEngine:
    return PromptLookupEngine(lookup, vocab_size=VOCAB, capacity=capacity)


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(tokens=TOKENS, cut=st.integers(0, 19), more=TOKENS, sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_the_index_finds_what_a_search_finds_also_after_rollback(
    tokens: list[int], cut: int, more: list[int], sizes: tuple[int, int]
) -> None:
    lookup = Lookup(max(sizes), min(sizes))
    engine = engine_of(lookup)
    rows = engine.extend(tokens)
    assert [found_in(row) for row in rows] == [search(tokens[: end + 1], lookup) for end in range(len(tokens))]
    kept = tokens[: min(cut, len(tokens))]
    engine.roll_back(len(kept))
    (last,) = engine.extend(more, last_only=True)
    assert found_in(last) == search(kept + more, lookup)
    assert engine.length == len(kept + more)


@settings(max_examples=200, deadline=None)
@given(
    tokens=TOKENS,
    starts=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    tail=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    kept=st.integers(0, 6),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_branches_see_the_line_before_them_and_their_own_tail(
    tokens: list[int], starts: list[int], tail: list[int], kept: int, sizes: tuple[int, int]
) -> None:
    lookup = Lookup(max(sizes), min(sizes))
    engine = engine_of(lookup)
    engine.extend(tokens)
    starts = [min(start, len(tokens)) for start in starts]
    engine.open_branches(starts)
    for depth in range(1, len(tail) + 1):
        rows = engine.grow([(tail[depth - 1] + row) % 3 for row in range(len(starts))])
        for row, start in enumerate(starts):
            seen = tokens[:start] + [(token + row) % 3 for token in tail[:depth]]
            assert found_in(rows[row]) == search(seen, lookup)
    row = len(starts) - 1
    kept = min(kept, len(tail))
    engine.adopt(row, kept)
    line = tokens[: starts[row]] + [(token + row) % 3 for token in tail[:kept]]
    assert engine.length == len(line)
    assert found_in(engine.extend([1])[0]) == search([*line, 1], lookup)


def test_the_longest_end_decides_and_of_its_occurrences_the_first() -> None:
    engine = engine_of(Lookup(2, 1))
    assert found_in(engine.extend([0, 1, 2, 0, 1, 3, 4, 1], last_only=True)[0]) == 2  # only "1" recurs: its first place
    assert found_in(engine.extend([3], last_only=True)[0]) == 4  # "1 3", although "3" alone gives the same
    assert found_in(engine_of(Lookup(3, 2)).extend([0, 1, 0], last_only=True)[0]) is None
    engine.reset()
    assert engine.length == 0
    assert found_in(engine.extend([1])[0]) is None


def test_noise_never_moves_what_was_found() -> None:
    engine = engine_of(Lookup())
    logits = engine.extend([0, 1, 0], last_only=True)
    noise = gumbel(0, 0, range(2000), VOCAB)
    for temperature in (0.7, 2.0):
        scores = noisy_scores(logits.expand(2000, -1), Sampling(temperature), noise)
        assert set(choose(scores).tolist()) == {1}
        values = signals(logits.expand(2000, -1), scores, Sampling(temperature))
        assert torch.isfinite(values).all()
        assert float(values[:, 0].min()) == 1.0
    nothing = signals(engine_of(Lookup()).extend([0]), torch.zeros(1, VOCAB), Sampling(1.0))
    assert nothing[0, 0].item() == pytest.approx(1 / VOCAB)


def test_limits_are_those_of_every_engine() -> None:
    engine = engine_of(Lookup(), capacity=4)
    engine.extend([0, 1, 2])
    with pytest.raises(ValueError, match="context overflow"):
        engine.extend([0, 1])
    with pytest.raises(ValueError, match="cannot roll back"):
        engine.roll_back(4)
    with pytest.raises(ValueError, match="no branches are open"):
        engine.adopt(0, 0)
    with pytest.raises(ValueError, match="start within"):
        engine.open_branches([4])
    assert engine.embed([1, 2]).shape == (2, 0)


def test_names_tell_a_lookup_from_a_model() -> None:
    assert parse_model("some/model") == "some/model"
    assert parse_model("prompt_lookup") == Lookup()
    assert fingerprint("prompt_lookup") != fingerprint("prompt_lookup:min_ngram=2") != fingerprint("prompt_lookup:")
    for bad, told in (
        ("size=3", "not a setting"),
        ("max_ngram=x", "not a setting"),
        ("max_ngram=1,min_ngram=2", "1 <="),
    ):
        with pytest.raises(ValueError, match=told):
            parse_model(f"prompt_lookup:{bad}")
    with pytest.raises(ModelError, match="no vocabulary of its own"):
        load("prompt_lookup")
    with pytest.raises(ModelError, match="prompt_lookup:min_ngram=2 has no vocabulary of its own"):
        check_vocabularies("prompt_lookup:min_ngram=2", "random:tiny")
    assert check_vocabularies("random:tiny", "prompt_lookup") == Vocabulary(288, 288, 288, 256)


def test_the_policy_stops_where_nothing_is_found_and_submits_what_was() -> None:
    policy, seen = PromptLookup(max_length=3), Observation(100, 0, 0, 0, 0, 0, False, None, None)
    found, nothing = Signal(1.0, 0.0, 1e4), Signal(0.01, 4.6, 0.3)
    assert policy.draft_more(seen, []) == 1
    assert policy.draft_more(seen, [found, found]) == 1
    assert policy.draft_more(seen, [found, nothing]) == 0
    assert policy.draft_more(seen, [found] * 3) == 0
    assert policy.keep(seen, [found, nothing]) == 1
    assert policy.keep(seen, [nothing]) == 0
    assert policy.keep(seen, [found] * 3) == 3


@pytest.fixture(scope="module")
def lookup_session() -> Iterator[Session]:
    with Session(pair_settings(draft="prompt_lookup", capacity=512)) as opened:
        yield opened


LABELS = [
    "prompt_lookup",
    "prompt_lookup:max_length=2",
    "fixed_length:draft_length=3",
    "pearl:draft_length=4",
    "saguaro:draft_length=3,fan_out=2",
    "specbranch:uses_hrad=false",
    "outcome_hedging",
]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_tokens_are_those_of_plain_decoding_and_rounds_those_of_replay_and_engine(
    lookup_session: Session, temperature: float
) -> None:
    request = Request(
        prompt_id="repetitive",
        tokens=lookup_session.encode(REPETITIVE),
        max_new_tokens=40,
        sampling=Sampling(temperature),
        seed=1,
        ignore_eos=True,
    )
    plain = lookup_session.run(request, parse_policy("autoregressive"))
    trace = lookup_session.annotate(plain, request_id=0).trace
    for label in LABELS:
        policy = parse_policy(label)
        done = lookup_session.run(request, policy)
        rounds = [round_ for round_, _ in done.rounds]
        assert done.tokens == plain.tokens
        assert rounds == replay(policy, trace)
        simulated = simulate(policy, [trace], ConstantLatency(draft_s=0.1, verify_s=1.0))
        assert rounds == [round_ for round_, _ in simulated.rounds]
        if temperature == 0 and label == "prompt_lookup":
            assert len(rounds) < len(plain.rounds), "a text that repeats itself is worth looking up"
            assert max(round_.num_pending for round_ in rounds) > 1


def test_another_draft_is_refused_for_the_policy(session: Session, tmp_path: Path) -> None:
    request = Request(prompt_id="p", tokens=(5, 6), max_new_tokens=4, sampling=Sampling())
    with pytest.raises(ValueError, match="--draft prompt_lookup"):
        session.run(request, PromptLookup())
    with pytest.raises(ValueError, match="--draft prompt_lookup"):
        record_run(record_settings(policies=("prompt_lookup",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_recorded_and_calibrates(lookup_session: Session, tmp_path: Path) -> None:
    from traces.fits.calibration import calibrate

    settings = record_settings(
        draft="prompt_lookup",
        policies=("autoregressive", "prompt_lookup:max_length=4"),
        temperatures=(1.0,),
        num_prompts=3,
        max_new_tokens=24,
    )
    run = record_run(settings, tmp_path / "run", session=lookup_session)
    assert run.summary["tokens_identical"]
    assert run.meta["draft_fingerprint"] == fingerprint("prompt_lookup")
    by_label = dict(zip(run.requests.request_id, run.requests.policy, strict=True))
    traces = {trace.prompt_id: trace for trace in run.traces()}
    for request_id, label in by_label.items():
        prompt_id = run.requests.set_index("request_id").prompt_id[request_id]
        assert run.rounds_of(request_id) == [
            round_._replace(request_id=request_id) for round_ in replay(parse_policy(label), traces[prompt_id])
        ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other load on the machine, which leaves requests out or not
        fitted = calibrate(run)
    assert np.isfinite(fitted.fit_of("draft").mean_s(1, 1, 100))
