"""A calibration recovers the laws that made the operations, keeps their means, and says what it cannot tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim.decoding.acceptance_models import Geometric
from sim.decoding.policies.overlapped.probe import Probe
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.engine import simulate
from sim.latency.fitted import FittedLatency
from traces.fits.calibration import Calibration, JointAcceptance, calibrate, fit_acceptance
from traces.fits.cold_start import ColdStart
from traces.fits.interference import Interference, Pace
from traces.fits.latency import TERMS, LatencyFit, fit_latency
from traces.folder.run import Run, read_run
from traces.folder.writer import RunWriter
from traces.schema import (
    SCHEMA_VERSION,
    FinishReason,
    OpShape,
    RequestRecord,
    RequestTrace,
    RollbackCase,
    Round,
    RoundTimes,
    Signal,
    op_of,
)

TRUE = (2e-3, 1e-4, 2e-6, 3e-4, 1e-7, 2e-7, 5e-4, 2e-4)


def law(coefficients: tuple[float, ...] = TRUE, least: int = 1) -> LatencyFit:
    return LatencyFit(
        coefficients=coefficients,
        intervals=((0.0, 0.0),) * len(TERMS),
        ratios=(1.0,),
        least=least,
        left_out=(),
        r2=None,
        error=0.0,
        num_ops=0,
        num_requests=0,
    )


def shapes(rng: np.random.Generator, num: int) -> list[np.ndarray]:
    """New tokens, branches, context and request of `num` operations."""
    return [
        rng.integers(1, 10, num),
        rng.integers(1, 5, num),
        rng.integers(20, 600, num),
        np.sort(rng.integers(0, 30, num)),
    ]


def test_without_noise_every_coefficient_is_recovered() -> None:
    rng = np.random.default_rng(0)
    tokens, branches, context, ids = shapes(rng, 400)
    fit = fit_latency(law().mean_array(tokens, branches, context), tokens, branches, context, ids, rng=rng)
    assert np.allclose(fit.coefficients, TRUE, rtol=1e-5)
    assert fit.left_out == ()
    assert fit.error < 1e-6
    assert np.allclose(fit.ratios, 1, atol=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_claim() -> None:
    num_trials, covered = 25, np.zeros(len(TERMS))
    for seed in range(num_trials):
        rng = np.random.default_rng(seed)
        tokens, branches, context, ids = shapes(rng, 1500)
        times = law().mean_array(tokens, branches, context) * rng.gamma(100, 0.01, 1500)
        fit = fit_latency(times, tokens, branches, context, ids, rng=rng)
        covered += [low <= truth <= high for truth, (low, high) in zip(TRUE, fit.intervals, strict=True)]
    share = covered.mean() / num_trials
    # Terms of one trial move together: count trials, not terms. A bootstrap of 30 requests is a little too narrow.
    stderr = np.sqrt(0.95 * 0.05 / num_trials)
    assert share >= 0.93 - 4 * stderr, f"95% intervals held the truth in {share:.1%} of {num_trials} trials"
    assert (covered / num_trials >= 0.6).all(), dict(zip(TERMS, covered / num_trials, strict=True))


def test_heavy_tails_keep_the_mean_and_do_not_bend_the_law() -> None:
    rng = np.random.default_rng(3)
    num = 6000
    tokens, branches, context, ids = shapes(rng, num)
    noise = rng.gamma(400, 1 / 400, num) * np.where(rng.random(num) < 0.01, rng.uniform(5, 40, num), 1)
    means = law().mean_array(tokens, branches, context)
    fit = fit_latency(means * noise, tokens, branches, context, ids, rng=rng)
    fitted = fit.mean_array(tokens, branches, context)
    assert fitted.mean() == pytest.approx((means * noise).mean(), rel=1e-9)
    relative = fitted / means
    assert relative.std() / relative.mean() < 0.01, "the slow tail bent the shape of the law"
    assert np.mean(fit.ratios) == pytest.approx(1, abs=1e-12)
    assert max(fit.ratios) > 10, "the slow tail is gone"
    assert min(fit.ratios) > 0.5


def test_terms_that_do_not_vary_are_left_out_and_named() -> None:
    rng = np.random.default_rng(0)
    num = 200
    context, ids = rng.integers(20, 600, num), np.arange(num) // 20
    times = law().mean_array(1, 1, context)
    fit = fit_latency(times, np.ones(num), np.ones(num), context, ids, rng=rng)
    assert set(TERMS) - set(fit.left_out) == {"base", "context"}
    pairs = rng.integers(1, 3, num)  # one or two tokens: slope and switch are the same column
    fit = fit_latency(law().mean_array(pairs, 1, context), pairs, np.ones(num), context, ids, rng=rng)
    assert "several_tokens" in fit.left_out
    assert np.allclose(fit.mean_array(pairs, 1, context), law().mean_array(pairs, 1, context), rtol=1e-6)


def test_coefficients_are_never_negative() -> None:
    rng = np.random.default_rng(0)
    tokens, branches, context, ids = shapes(rng, 500)
    fit = fit_latency(0.01 - 1e-5 * context, tokens, branches, context, ids, rng=rng)
    assert min(fit.coefficients) >= 0
    assert fit.mean_array(tokens, branches, context).mean() == pytest.approx((0.01 - 1e-5 * context).mean())


@pytest.mark.parametrize("times", [[0.0] * 5, [0.003], [-1e-6, 0.0, 1e-6, 2e-6]])
def test_odd_operations_do_not_break_the_fit(times: list[float]) -> None:
    num = len(times)
    fit = fit_latency(times, [1] * num, [1] * num, [9] * num, [0] * num, rng=np.random.default_rng(0))
    assert fit.mean_s(1, 1, 9) == pytest.approx(max(0.0, np.mean(times)), abs=1e-12)
    assert all(np.isfinite(fit.ratios))


def recorded(
    folder: Path, *, num_requests: int = 8, num_rounds: int = 40, unclean: tuple[int, ...] = (), draft_pace: float = 1.0
) -> Run:
    """A run with known laws and mean-one noise: serial and overlapped rounds; during a verification the draft goes at
    draft_pace."""
    rng = np.random.default_rng(5)
    draft, verify, host = law(), law((6e-3, 4e-4, 4e-6, 0, 1e-7, 0, 1e-3, 0)), law((2e-4, 1e-5, 0, 5e-6, 0, 0, 0, 0), 0)
    writer = RunWriter(folder, config={}, meta={})
    clock = 0.0
    for request_id in range(num_requests):
        context = int(rng.integers(20, 200))
        slow = 50.0 if request_id in unclean else 1.0

        def took(fit: LatencyFit, n: int, b: int, c: int, slow: float = slow) -> float:
            return fit.mean_s(n, b, c) * rng.gamma(200, 1 / 200) * slow

        for index in range(num_rounds):
            pending, rows, start = int(rng.integers(1, 7)), int(rng.integers(0, 5)), clock
            ops = []
            for offset in range(pending):
                end = clock + took(draft, 1, 1, context + offset)
                ops.append(("draft", "draft", clock, end, 1, 1, context + offset))
                clock = end
            verified = clock + took(verify, pending + 1, 1, context)
            ops.append(("target", "verify", clock, verified, pending + 1, 1, context))
            ahead = clock
            if rows:
                for kind, n, b in (("look", 2, 1), ("branch", 1, rows)):
                    alone_s = took(draft, n, b, context + pending)
                    beside_s = min(max(0.0, verified - ahead), alone_s / draft_pace)
                    end = ahead + beside_s + alone_s - beside_s * draft_pace
                    ops.append(("draft", kind, ahead, end, n, b, context + pending))
                    ahead = end
            path = max(verified, ahead)
            clock = path + took(host, pending, rows, 0)
            ops.append(("host", "host", path, clock, pending, rows, 0))
            writer.ops(
                [
                    op_of(
                        request_id,
                        index,
                        "cpu",
                        OpShape(actor, kind, n, b, c),
                        s,
                        e,
                        is_beside=kind in ("look", "branch"),
                    )
                    for actor, kind, s, e, n, b, c in ops
                ]
            )
            settled = Round(
                request_id, index, 0, 0, 0, 0, 1, (), 0, 0, 0, 0, -1, False, 0, 0, 0, 0, 0, RollbackCase.NONE, -1, False
            )
            writer.rounds([(settled, RoundTimes(start, clock, 0.0, 0.0))])
            context += 4
        name = f"p{request_id}"
        clean = request_id not in unclean
        writer.request(
            RequestRecord(
                request_id, name, "x", 0, 0.0, 0, 1.0, 0, 0, 0.0, 0.0, clock, 9, 9, 9, "max_tokens", "", clean
            )
        )
    writer.finish({})
    return read_run(folder)


def test_a_run_is_calibrated_round_by_round(tmp_path: Path) -> None:
    calibration = calibrate(recorded(tmp_path / "run"))
    assert set(calibration.fits) == {"draft", "verify", "host"}
    check = calibration.round_check
    assert check is not None
    assert check.num_rounds == 8 * 40
    stderr = 0.05 / np.sqrt(check.num_rounds)  # the noise of a round is under 5%
    assert abs(check.error) <= 4 * stderr, f"rounds are off by {check.error:.2%}"
    assert calibration.fits["verify"].r2 is not None
    assert calibration.fits["verify"].r2 > 0.5
    for line in ("verify", "not identified, left out", "round: predicted", "8 requests"):
        assert line in calibration.report()
    with pytest.raises(ValueError, match="saw no target_prefill"):
        calibration.fit_of("target_prefill")


def test_a_draft_slowed_by_the_verification_beside_it_is_told_apart(tmp_path: Path) -> None:
    alone = calibrate(recorded(tmp_path / "alone"))
    shared = calibrate(recorded(tmp_path / "shared", draft_pace=0.6))
    assert alone.interference.draft.at(4, 1) > 0.93
    assert shared.interference.draft.at(4, 1) == pytest.approx(0.6, rel=0.04)
    assert [found.interference.target.at(4, 1) for found in (alone, shared)] == pytest.approx([1, 1], abs=0.02)
    for rows in (1, 4):
        fitted, expected = (found.fits["draft"].mean_s(1, rows, 150) for found in (shared, alone))
        assert fitted == pytest.approx(expected, rel=0.06)
    assert shared.round_check is not None
    assert abs(shared.round_check.error) < 0.02
    assert "while both work the draft keeps 0.6" in shared.report() or "the draft keeps 0.5" in shared.report()


def simulated(folder: Path, calibration: Calibration, *, num_requests: int = 40) -> Run:
    """Plain decoding and the probe under known laws with 5% noise, written down as the recorder does."""
    latency = FittedLatency(calibration)
    rngs = np.random.default_rng(1).spawn(num_requests)
    traces = [Geometric(alpha=0.6).sample(60, index, rng) for index, rng in enumerate(rngs)]
    traces = [replace(trace, signals=(Signal(0.5, 1.0, 1.0),) * 60, tail_depth=16) for trace in traces]
    tails = (Signal(0.5, 1.0, 1.0),) * 16
    traces = [replace(trace, tails={position: tails for position in range(61)}) for trace in traces]
    writer = RunWriter(folder, config={}, meta={})
    for number, policy in enumerate([Autoregressive(), Probe()]):
        run = simulate(policy, traces, latency, rng=np.random.default_rng(2))
        shift = number * num_requests
        writer.ops([op._replace(request_id=op.request_id + shift) for op in run.ops])
        writer.rounds([(turn._replace(request_id=turn.request_id + shift), times) for turn, times in run.rounds])
        for done in run.requests:
            writer.request(done._replace(request_id=done.request_id + shift))
    writer.finish({})
    return read_run(folder)


@pytest.mark.parametrize(
    "interference",
    [Interference(), Interference(target=Pace(0.85), draft=Pace(0.8)), Interference(target=Pace(0.9, -0.02, -0.08))],
    ids=["none", "constant", "by width and rows"],
)
def test_the_probe_tells_laws_waits_and_interference_apart(tmp_path: Path, interference: Interference) -> None:
    noise = tuple(np.random.default_rng(0).gamma(400, 1 / 400, 200).tolist())
    noise = tuple((np.array(noise) / np.mean(noise)).tolist())
    draft, verify = law((5e-4, 2e-4, 1e-7, 1e-4, 0, 0, 0, 0)), law((3e-3, 3e-4, 2e-6, 0, 0, 0, 1e-3, 0))
    fits = {
        "draft": draft,
        "verify": verify,
        "draft_prefill": draft,
        "target_prefill": verify,
        "host": law((1e-4, *[0] * 7), 0),
    }
    told = Calibration(
        fits={name: replace(fit, ratios=noise) for name, fit in fits.items()},
        round_check=None,
        num_requests=1,
        num_unclean=0,
        cold_start=ColdStart(first_s=7e-4, decay=0.5, full_s=6e-3),
        drafting=1.12,
        interference=interference,
    )
    found = calibrate(simulated(tmp_path / "run", told))
    assert found.drafting == pytest.approx(1.12, rel=0.02)
    for tokens, rows in ((2, 1), (5, 1), (5, 3), (9, 3)):
        target_pace, draft_pace = found.interference.paces(tokens, rows)
        assert target_pace == pytest.approx(interference.target.at(tokens, rows), abs=0.03)
        assert draft_pace == pytest.approx(interference.draft.at(tokens, 1), abs=0.04)
    slack = (
        1.0 if interference.draft == Pace() else 1.5
    )  # what is slow beside a verification, cold or hindered, is harder
    for wait_s, num_before in ((5e-4, 5), (2e-3, 3), (5e-3, 1), (9e-3, 8)):
        expected = told.cold_start.waking_s(wait_s, num_before)
        assert found.cold_start.waking_s(wait_s, num_before) == pytest.approx(expected, rel=0.12 * slack, abs=2e-5)
    for tokens, rows in ((1, 1), (2, 1), (1, 3)):
        assert found.fits["draft"].mean_s(tokens, rows, 50) == pytest.approx(
            draft.mean_s(tokens, rows, 50), rel=0.03 * slack
        )
    for tokens in (1, 2, 5, 9):
        assert found.fits["verify"].mean_s(tokens, 1, 50) == pytest.approx(verify.mean_s(tokens, 1, 50), rel=0.03)
    assert found.round_check is not None
    assert abs(found.round_check.error) < 0.01
    for line in ("cold start of a round's drafting: +0.", "where a draft runs in between: 1.1"):
        assert line in found.report()


def test_an_operation_that_only_disturbed_requests_have_is_fitted_all_the_same(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", unclean=(2, 5))
    is_kept = run.ops["request_id"].isin((2, 5)) | (run.ops["actor"] != "draft")
    run.__dict__["ops"] = run.ops[is_kept]
    with pytest.warns(UserWarning, match=r"every request with draft operations was disturbed .*fitted all the same"):
        found = calibrate(run)
    assert found.fit_of("draft").num_ops > 0
    assert found.num_unclean == 0


def test_disturbed_requests_are_left_out_and_counted(tmp_path: Path) -> None:
    clean = calibrate(recorded(tmp_path / "clean"))
    with pytest.warns(UserWarning, match="2 of 8 requests were disturbed"):
        found = calibrate(recorded(tmp_path / "run", unclean=(2, 5)))
    assert (found.num_requests, found.num_unclean) == (6, 2)
    assert found.fits["verify"].mean_s(5, 1, 200) == pytest.approx(clean.fits["verify"].mean_s(5, 1, 200), rel=0.03)


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    calibration = calibrate(recorded(tmp_path / "run", num_rounds=5))
    calibration.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == calibration
    (tmp_path / "c.json").write_text(
        (tmp_path / "c.json").read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 9')
    )
    with pytest.raises(ValueError, match="schema version 9"):
        Calibration.load(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a calibration"):
        Calibration.load(tmp_path / "c.json")


@pytest.mark.parametrize("value", ["1.2", None, [1.2], -1.0, 0.5])
def test_an_older_calibration_with_a_broken_slow_down_is_refused(tmp_path: Path, value: object) -> None:
    old = json.loads((Path(__file__).parents[2] / "data" / "run_v1" / "calibration.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps({**old, "draft_beside": value}))
    with pytest.raises(ValueError, match=r"c\.json is not a calibration: "):
        Calibration.load(tmp_path / "c.json")


def test_a_file_nested_beyond_measure_is_no_calibration(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"fits": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"c\.json is not a calibration: ") as refusal:
        Calibration.load(tmp_path / "c.json")
    assert "\n" not in str(refusal.value)


def test_a_calibration_from_before_paces_is_read_as_slow_downs_while_both_work(tmp_path: Path) -> None:
    calibration = calibrate(recorded(tmp_path / "run", num_rounds=5))
    calibration.save(tmp_path / "c.json")
    data = json.loads((tmp_path / "c.json").read_text())
    del data["interference"]
    (tmp_path / "c.json").write_text(json.dumps({**data, "beside": 1.25, "draft_beside": 2.0}))
    expected = Interference(target=Pace(0.8), draft=Pace(0.5))
    assert Calibration.load(tmp_path / "c.json") == replace(calibration, interference=expected)


def coloured_trace(request_id: int, rate: float, rng: np.random.Generator, temperature: float = 0.0) -> RequestTrace:
    """Outcomes that depend on the previous one, and signals that tell the rank."""
    ranks: list[int] = []
    for _ in range(200):
        chance = rate + (0.1 if not ranks or ranks[-1] == 0 else -0.1)
        ranks.append(0 if rng.random() < chance else int(rng.integers(1, 9)))
    return RequestTrace(
        request_id=request_id,
        prompt_id=f"p{request_id}",
        num_prompt_tokens=5,
        max_new_tokens=200,
        temperature=temperature,
        finish_reason=FinishReason.MAX_TOKENS,
        ranks=tuple(ranks),
        signals=tuple(Signal(1 / (1 + rank), float(rank), -float(rank)) for rank in ranks),
        tails={p: (Signal(float(p), 0.25, 0.5),) * 3 for p in [*np.flatnonzero(ranks).tolist(), 200]},
        tail_depth=3,
    )


def test_the_acceptance_fit_keeps_levels_outcomes_and_temperatures_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    traces = [coloured_trace(i, 0.4 + 0.15 * (i % 3), rng, 1.0 * (i % 2)) for i in range(30)]
    fitted = fit_acceptance(traces)
    assert [law.temperature for law in fitted.laws] == [0.0, 1.0]
    for law in fitted.laws:
        assert law.num_requests == 15
        rates = [level.acceptance for level in law.levels]
        assert rates == sorted(rates)
        assert rates[2] - rates[0] > 0.2
        for level in law.levels:
            after_wrong, after_right = (np.mean(np.array(cell.ranks) == 0) for cell in level.after)
            assert after_right > after_wrong
        assert all(tail[0].max_prob == 200 for tail in law.end_tails)
        assert all(tail[0].max_prob < 200 and len(tail) == 3 for tail in law.wrong_tails)
    fitted.save(tmp_path / "a.json")
    assert JointAcceptance.load(tmp_path / "a.json") == fitted
    with pytest.raises(ValueError, match=r"temperature 0\.7"):
        fitted.law_at(0.7)


def test_an_acceptance_fit_needs_signals() -> None:
    with pytest.raises(ValueError, match="no signals"):
        fit_acceptance([RequestTrace(0, "p", 1, 1, 0.0, FinishReason.EOS, (0,))])
    with pytest.raises(ValueError, match="at least one"):
        fit_acceptance([])
