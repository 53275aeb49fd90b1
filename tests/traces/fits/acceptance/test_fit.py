"""Acceptance models: fits find what was put in, rejected models are named, published curves are predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from traces.fits.acceptance import fit
from traces.fits.acceptance.chain import AcceptanceChain, fit_counts, fit_markov, run_counts
from traces.fits.acceptance.curves import AcceptanceCurve, PositionLaw, best_law, curve_of, fit_curves, read_curves
from traces.fits.acceptance.fit import assess_acceptance, replayed_lengths
from traces.schema import FinishReason, RequestTrace


def traces_of(chain: AcceptanceChain, num: int = 80, length: int = 250, seed: int = 0) -> list[RequestTrace]:
    return [
        trace_of(np.where(chain.sample(length, rng), 0, 1).tolist(), index)
        for index, rng in enumerate(np.random.default_rng(seed).spawn(num))
    ]


def trace_of(ranks: list[int], request_id: int = 0) -> RequestTrace:
    return RequestTrace(
        request_id=request_id,
        prompt_id=f"p{request_id}",
        num_prompt_tokens=10,
        max_new_tokens=len(ranks),
        temperature=1.0,
        finish_reason=FinishReason.MAX_TOKENS,
        ranks=tuple(ranks),
    )


HAZARD = AcceptanceChain(name="made up", hazards=(0.4, 0.6, 0.8, 0.9))
MIXED = AcceptanceChain(name="made up", hazards=(0.5, 0.7), request_sd=0.8)


@pytest.mark.parametrize("chain", [HAZARD, MIXED, AcceptanceChain(name="plain", hazards=(0.6,))])
def test_the_law_of_rounds_is_that_of_sampled_requests(chain: AcceptanceChain) -> None:
    sampled = traces_of(chain, num=200, length=2000)
    emitted, rounds = replayed_lengths(sampled, [1, 4, 12])
    for column, length in enumerate([1, 4, 12]):
        law = chain.round_law(length)
        ratios = emitted[:, column] / rounds[:, column]
        weights = rounds[:, column] / rounds[:, column].sum()
        measured = float(weights @ ratios)
        stderr = float(np.sqrt((weights**2 * (ratios - measured) ** 2).sum()))
        error = law.tokens_per_forward - measured
        assert abs(error) < 4 * stderr, f"length {length}: {error / stderr:.1f} standard errors off"


def test_a_geometric_chain_is_the_closed_form() -> None:
    law = AcceptanceChain(name="geometric", hazards=(0.8,)).round_law(4)
    assert law.tokens_per_forward == pytest.approx(3.3616)
    assert law.conditional == pytest.approx((0.8,) * 4)


def test_acceptance_is_the_share_of_right_tokens_and_can_be_moved() -> None:
    share = np.mean([rank == 0 for trace in traces_of(HAZARD, num=200) for rank in trace.ranks])
    assert HAZARD.acceptance == pytest.approx(share, abs=0.02)
    moved = HAZARD.shifted_to(0.8)
    assert moved.acceptance == pytest.approx(0.8)
    assert moved.hazards[0] < moved.hazards[-1]


def test_fits_find_the_parameters() -> None:
    fit = fit_counts("hazard", run_counts(traces_of(HAZARD, num=200), 8), has_effect=False)
    np.testing.assert_allclose(fit.hazards[:4], HAZARD.hazards, atol=0.03)
    mixed = fit_markov(traces_of(MIXED, num=300))
    np.testing.assert_allclose(mixed.hazards, MIXED.hazards, atol=0.04)
    assert mixed.request_sd == pytest.approx(MIXED.request_sd, rel=0.2)
    without_effect = fit_counts("Markov", run_counts(traces_of(MIXED, num=300), 2), has_effect=False)
    assert mixed.log_likelihood > without_effect.log_likelihood


def _only(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Assess these models alone: each is fitted 61 times, and the last test has them all."""
    patch.setattr(fit, "_MODELS", {name: fit._MODELS[name] for name in names})


def test_the_report_names_what_the_trace_rejects(monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, "geometric (i.i.d.)", "hazard by run length")
    report = assess_acceptance(traces_of(HAZARD))
    assert "geometric (i.i.d.)" in report.rejected
    assert "hazard by run length" not in report.rejected
    by_name = {model.name: model for model in report.models}
    assert by_name["hazard by run length"].worst_error < 0.02 < by_name["geometric (i.i.d.)"].worst_error
    assert by_name["replay of the recorded requests"].p_value is None
    assert f"rejected by the trace: {', '.join(report.rejected)}" in report.text()


def test_requests_that_differ_reject_models_without_a_request_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, "geometric (i.i.d.)", "geometric with a request effect")
    wide = AcceptanceChain(name="made up", hazards=(0.6,), request_sd=1.2)
    report = assess_acceptance(traces_of(wide, num=150))
    assert "geometric (i.i.d.)" in report.rejected
    assert "geometric with a request effect" not in report.rejected


def test_independent_acceptance_rejects_nothing() -> None:
    report = assess_acceptance(traces_of(AcceptanceChain(name="plain", hazards=(0.6,))))
    assert len(report.models) == len(fit._MODELS) + 1
    assert report.rejected == ()


def test_few_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 8 requests, but got 3"):
        assess_acceptance(traces_of(HAZARD, num=3))


def test_a_curve_is_counted_from_whole_rounds() -> None:
    curve = curve_of([trace_of([0, 0, 1, 0, 1, 1, 0, 0, 0])], 2)
    # Rounds start at 0 (two right, and the third token is the target's), 3 (one right), 5 (none), 6 (two).
    assert curve.num_rounds == 4
    assert curve.tokens_per_forward == pytest.approx((3 + 2 + 1 + 3) / 4)
    assert curve.conditional == pytest.approx((3 / 4, 2 / 3))


def test_half_of_the_lengths_tell_the_others_for_a_chain() -> None:
    chain = AcceptanceChain(name="made up", hazards=(0.3, 0.7, 0.8), request_sd=0.5)
    curves = []
    for length in range(1, 13):
        law = chain.round_law(length)
        curves.append(
            AcceptanceCurve(
                draft_length=length,
                num_rounds=10_000,
                tokens_per_forward=law.tokens_per_forward,
                conditional=law.conditional,
            )
        )
    laws = fit_curves(curves[::2])
    for curve in curves[1::2]:
        assert laws["hazard"].round_law(curve.draft_length).tokens_per_forward == pytest.approx(
            curve.tokens_per_forward, rel=0.005
        )


def test_the_position_law_is_that_of_its_rounds() -> None:
    """Rounds drawn one by one: each remembers only whether the one before it was accepted whole."""
    law = PositionLaw(hazards=(0.6, 0.7, 0.8), start_shift=1.5, request_sd=0.0)
    rng, num_rounds, emitted, was_full = np.random.default_rng(0), 40_000, 0, False
    for _ in range(num_rounds):
        accepted = 0
        for position, hazard in enumerate(law.hazards):
            odds = hazard / (1 - hazard) * np.exp(was_full * 1.5 * 0.5**position)
            if rng.random() >= odds / (1 + odds):
                break
            accepted += 1
        emitted, was_full = emitted + accepted + 1, accepted == 3
    assert law.round_law(3).tokens_per_forward == pytest.approx(emitted / num_rounds, abs=0.03)


def published_curves() -> dict[tuple[str, str], list[AcceptanceCurve]]:
    """Curves measured on Llama-3.1-8B, where they lie beside the repository."""
    for folder in Path(__file__).resolve().parents:
        path = folder / "shared" / "data" / "acceptance" / "specdecode_bench_llama31_8b_h100_by_draft_len.csv"
        if path.exists():
            return read_curves(path)
    return {}


PUBLISHED = published_curves()
needs_data = pytest.mark.skipif(not PUBLISHED, reason="the published acceptance curves are not beside the repository.")


@needs_data
@pytest.mark.parametrize("key", sorted(PUBLISHED), ids="-".join)
@pytest.mark.parametrize("half", [0, 1])
def test_half_of_the_published_lengths_tell_the_others(key: tuple[str, str], half: int) -> None:
    """The law is chosen by the lengths it was fitted to, and held to 2% on the others."""
    curves = PUBLISHED[key]
    fitted, others = curves[half::2], curves[1 - half :: 2]
    laws = fit_curves(fitted)
    law = laws[best_law(laws, fitted)]
    for curve in others:
        error = law.round_law(curve.draft_length).tokens_per_forward / curve.tokens_per_forward - 1
        assert abs(error) <= 0.02, f"{law.name} is {error:+.1%} off at draft length {curve.draft_length}."


@needs_data
def test_the_iid_error_is_the_published_one() -> None:
    for curves in PUBLISHED.values():
        for curve in curves:
            assert curve.published_iid is not None
            assert curve.iid_tokens_per_forward == pytest.approx(curve.published_iid, rel=0.002)
    at_eight = {key: next(c.iid_error for c in curves if c.draft_length == 8) for key, curves in PUBLISHED.items()}
    assert at_eight["cnn", "ngram"] == pytest.approx(-0.20, abs=0.005)
    assert at_eight["gsm8k", "eagle"] == pytest.approx(0.04, abs=0.005)
    assert at_eight["sharegpt", "ngram"] == pytest.approx(-0.24, abs=0.005)
