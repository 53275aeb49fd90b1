"""Sampled requests are valid traces with the laws that were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from sim.decoding.acceptance_models import (
    AcceptanceModel,
    Chained,
    Geometric,
    JointEmpirical,
    Recorded,
    continuation,
    parse_acceptance,
)
from sim.decoding.machine import Close, decode
from sim.decoding.policies.base import Defaults, Hedges, Needs, Observation
from sim.decoding.replay import TraceWorld
from traces.fits.acceptance.chain import AcceptanceChain, fit_hazard, fit_markov
from traces.fits.calibration import fit_acceptance
from traces.schema import FinishReason, RequestTrace, Signal

DEPTH = 6


def recorded(num: int = 24, seed: int = 0, length: int = 150) -> list[RequestTrace]:
    """Requests that differ, with outcomes that depend on the one before and signals that tell their position."""
    rng = np.random.default_rng(seed)
    found = []
    for request_id in range(num):
        ranks: list[int] = []
        for _ in range(length):
            chance = 0.35 + 0.15 * (request_id % 3) + (0.2 if not ranks or ranks[-1] == 0 else 0.0)
            ranks.append(0 if rng.random() < chance else int(rng.integers(1, 5)))
        tails = {
            position: tuple(Signal(0.1, float(position), float(depth)) for depth in range(DEPTH))
            for position in [*np.flatnonzero(ranks).tolist(), length]
        }
        found.append(
            RequestTrace(
                request_id=request_id,
                prompt_id=f"p{request_id}",
                num_prompt_tokens=12,
                max_new_tokens=length,
                temperature=1.0,
                finish_reason=FinishReason.MAX_TOKENS,
                ranks=tuple(ranks),
                signals=tuple(Signal(0.9, float(position), -float(rank)) for position, rank in enumerate(ranks)),
                tails=tails,
                tail_depth=DEPTH,
            )
        )
    return found


RECORDED = recorded()
MODELS: dict[str, AcceptanceModel] = {
    "geometric": Geometric(alpha=0.7, tail_depth=DEPTH),
    "joint": JointEmpirical(fit_acceptance(RECORDED), temperature=1.0),
    "recorded": Recorded(RECORDED),
    "hazard": Chained(fit_hazard(RECORDED), RECORDED),
    "markov": Chained(fit_markov(RECORDED), RECORDED),
}


class Greedy(Defaults):
    """Drafts as far as the tails reach, hedges everything, and so looks wherever one may look."""

    @property
    def needs(self) -> Needs:
        return Needs(signals=True, tail_depth=DEPTH)

    @property
    def overlaps(self) -> bool:
        return True

    def draft_more(self, seen: Observation, pending: object) -> int:
        return DEPTH - 1 - len(pending) if not seen.was_hit else 0  # type: ignore[arg-type]  # a sequence

    def hedge(self, seen: Observation, pending: object, frontier: Signal) -> Hedges:
        return Hedges((2,) * (len(pending) + 1), 2)  # type: ignore[arg-type]  # a sequence


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_tokens", [1, 2, 40, 149, 150, 151, 400])
def test_samples_have_the_length_the_tails_and_no_unknowns(name: str, num_tokens: int) -> None:
    trace = MODELS[name].sample(num_tokens, 77, np.random.default_rng(num_tokens))
    assert (trace.request_id, trace.num_tokens, trace.max_new_tokens) == (77, num_tokens, num_tokens)
    assert trace.finish_reason is FinishReason.MAX_TOKENS
    assert set(trace.tails) == {position for position, rank in enumerate(trace.ranks) if rank} | {num_tokens}
    assert {len(tail) for tail in trace.tails.values()} == {trace.tail_depth} == {DEPTH}
    assert np.isfinite([*trace.signals, *(signal for tail in trace.tails.values() for signal in tail)]).all()
    assert all(type(rank) is int for rank in trace.ranks)


@pytest.mark.parametrize("name", MODELS)
def test_a_policy_that_looks_everywhere_gets_an_answer(name: str) -> None:
    rng = np.random.default_rng(1)
    for request_id in range(20):
        trace = MODELS[name].sample(60, request_id, rng)
        world, policy, reply, emitted = TraceWorld(trace, Greedy().needs), Greedy(), None, 0
        machine = decode(policy, request_id=request_id, max_new_tokens=60)
        while True:
            try:
                command = machine.send(reply)  # type: ignore[arg-type]  # what the world answered
            except StopIteration:
                break
            emitted += command.round.num_emitted if isinstance(command, Close) else 0
            reply = world.answer(command)  # type: ignore[assignment]  # one reply a command
        assert emitted == 60


@pytest.mark.parametrize("name", MODELS)
def test_the_same_generator_gives_the_same_requests(name: str) -> None:
    first, again = (MODELS[name].sample(50, 1, np.random.default_rng(5)) for _ in range(2))
    other = MODELS[name].sample(50, 1, np.random.default_rng(6))
    assert first == again
    assert first.ranks != other.ranks


@pytest.mark.parametrize(("alpha", "decay"), [(0.8, 0.5), (0.3, 0.0), (0.5, 0.9)])
def test_geometric_outcomes_follow_alpha_and_the_rank_law(alpha: float, decay: float) -> None:
    num = 40_000
    ranks = np.array(
        Geometric(alpha=alpha, rank_decay=decay, tail_depth=0).sample(num, 0, np.random.default_rng(0)).ranks
    )
    error = (ranks == 0).mean() - alpha
    stderr = np.sqrt(alpha * (1 - alpha) / num)
    assert abs(error) <= 4 * stderr, f"acceptance is {error / stderr:.1f} standard errors off"
    rejected = ranks[ranks > 0]
    chances = (1 - decay) * decay ** np.arange(3)
    for rank, chance in enumerate(chances, start=1):
        error = (rejected == rank).mean() - chance
        stderr = np.sqrt(chance * (1 - chance) / len(rejected))
        assert abs(error) <= 4 * stderr, f"rank {rank} is {error / max(stderr, 1e-12):.1f} standard errors off"


def test_geometric_extremes() -> None:
    rng = np.random.default_rng(0)
    assert set(Geometric(alpha=1.0).sample(100, 0, rng).ranks) == {0}
    assert set(Geometric(alpha=0.0, rank_decay=0.0).sample(100, 0, rng).ranks) == {1}
    for bad in ({"alpha": 1.1}, {"alpha": 0.5, "rank_decay": 1.0}, {"alpha": 0.5, "tail_depth": -1}):
        with pytest.raises(ValueError, match="must"):
            Geometric(**bad)  # type: ignore[arg-type]  # wrong on purpose


def outcome_rates(traces: list[RequestTrace]) -> np.ndarray:
    """(requests, 2): acceptance, and acceptance after a wrong token."""
    rows = []
    for trace in traces:
        right = np.array(trace.ranks) == 0
        rows.append([right.mean(), right[1:][~right[:-1]].mean()])
    return np.array(rows)


def test_resampled_requests_keep_acceptance_and_its_memory() -> None:
    rng = np.random.default_rng(2)
    original = outcome_rates(RECORDED)
    sampled = outcome_rates([MODELS["joint"].sample(150, i, rng) for i in range(300)])
    for column, what in enumerate(("acceptance", "acceptance after a wrong token")):
        error = sampled[:, column].mean() - original[:, column].mean()
        # The levels are drawn with their recorded shares: what is left is the sampling of 300 requests.
        stderr = sampled[:, column].std() / np.sqrt(len(sampled))
        assert abs(error) <= 4 * stderr + 0.01, f"{what} is {error / stderr:.1f} standard errors off"
    assert sampled[:, 0].std() == pytest.approx(original[:, 0].std(), rel=0.25), "requests became alike"
    assert sampled[:, 1].mean() < sampled[:, 0].mean() - 0.03, "the last outcome no longer matters"


def test_resampled_signals_stay_with_their_ranks() -> None:
    trace = MODELS["joint"].sample(500, 0, np.random.default_rng(0))
    assert all(signal.margin == -rank for signal, rank in zip(trace.signals, trace.ranks, strict=True))


def test_more_depth_than_recorded_is_refused() -> None:
    fitted = fit_acceptance(RECORDED)
    assert JointEmpirical(fitted, temperature=1.0, tail_depth=2).sample(9, 0, np.random.default_rng(0)).tail_depth == 2
    with pytest.raises(ValueError, match="tail_depth must lie in 0 to 6"):
        JointEmpirical(fitted, temperature=1.0, tail_depth=7)
    with pytest.raises(ValueError, match="no request was recorded at temperature 0"):
        JointEmpirical(fitted, temperature=0.0)


def test_a_cut_request_goes_on_as_the_draft_did() -> None:
    (trace,) = recorded(1)
    model = Recorded([trace])
    for num_tokens in range(1, trace.num_tokens + 1):
        cut = model.sample(num_tokens, 0, np.random.default_rng(0))
        assert cut.ranks == trace.ranks[:num_tokens]
        assert cut.signals == trace.signals[:num_tokens]
        # What a world that knows the whole request tells a draft that runs on past the cut.
        world = TraceWorld(trace, Needs())
        world.position, world._signals = num_tokens, trace.signals
        assert cut.tails[num_tokens] == tuple(world._signals_at(0, DEPTH))


def test_requests_of_different_kinds_are_not_mixed() -> None:
    plain = RequestTrace(0, "p", 1, 1, 0.0, FinishReason.EOS, (0,))
    with pytest.raises(ValueError, match="differ in temperature"):
        Recorded([*RECORDED, plain])
    with pytest.raises(ValueError, match="at least one trace"):
        Recorded([])
    assert Recorded([plain]).sample(5, 0, np.random.default_rng(0)).ranks == (0,) * 5
    with pytest.raises(ValueError, match="num_tokens must be at least 1"):
        Recorded([plain]).sample(0, 0, np.random.default_rng(0))


def test_a_continuation_follows_the_path_and_then_the_tail() -> None:
    on_path = [Signal(float(i), 0.0, 0.0) for i in range(4)]
    off_path = (Signal(10.0, 0.0, 0.0), Signal(11.0, 0.0, 0.0))
    tails = {2: off_path, 4: off_path}
    assert [s.max_prob for s in continuation((0, 0, 3, 0), on_path, tails, 1, 4)] == [1, 2, 10, 11]
    assert [s.max_prob for s in continuation((0, 0, 3, 0), on_path, tails, 3, 3)] == [3, 10, 11]


@pytest.mark.parametrize("hazards", [(0.3, 0.8), (0.3, 0.5, 0.9)])
def test_chained_requests_have_the_hazards_of_their_chain(hazards: tuple[float, ...]) -> None:
    model = Chained(AcceptanceChain(name="made up", hazards=hazards), RECORDED)
    seen = np.zeros((2, len(hazards)))
    for index, rng in enumerate(np.random.default_rng(5).spawn(60)):
        age = 0
        for rank in model.sample(200, index, rng).ranks:
            seen[int(rank == 0), age] += 1
            age = min(age + 1, len(hazards) - 1) if rank == 0 else 0
    rates, num = seen[1] / seen.sum(axis=0), seen.sum(axis=0)
    errors = (rates - np.array(hazards)) / np.sqrt(np.array(hazards) * (1 - np.array(hazards)) / num)
    assert np.abs(errors).max() < 4, f"{errors} standard errors off"


def test_chained_signals_belong_to_the_outcome() -> None:
    trace = Chained(fit_markov(RECORDED), RECORDED).sample(300, 0, np.random.default_rng(0))
    assert all(signal.margin == -rank for rank, signal in zip(trace.ranks, trace.signals, strict=True))


def test_a_chain_needs_right_and_wrong_tokens_to_draw_from() -> None:
    with pytest.raises(ValueError, match="only right or only wrong"):
        Chained(
            AcceptanceChain(name="made up", hazards=(0.5,)),
            [Geometric(alpha=1.0).sample(9, 0, np.random.default_rng(0))],
        )


ACCEPTANCES = {"geometric": ("alpha", "rank_decay"), "markov": ("alpha",), "recorded": ()}


def test_labels_of_acceptance_give_kind_and_numbers() -> None:
    assert parse_acceptance(" geometric:alpha=0.8, rank_decay=0.25", ACCEPTANCES) == (
        "geometric",
        {"alpha": 0.8, "rank_decay": 0.25},
    )
    assert parse_acceptance("markov", ACCEPTANCES) == ("markov", {})


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("law:alpha=0.5", "unknown acceptance 'law'; known are geometric, markov, recorded"),
        ("geometric", "write geometric:alpha=0.8"),
        ("markov:beta=0.5", "'beta' is not a setting of markov; it has only alpha"),
        ("recorded:alpha=0.5", "'alpha' is not a setting of recorded; it has none"),
        ("markov:alpha=high", "'high' is not a number"),
        ("markov:alpha=nan", "between 0 and 1"),
        ("markov:alpha=1", "between 0 and 1"),
        ("geometric:alpha=1.5", "between 0 and 1"),
        ("geometric:alpha=0.5,alpha=0.6", "given twice"),
    ],
)
def test_a_label_that_names_no_acceptance_is_refused(label: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_acceptance(label, ACCEPTANCES)
