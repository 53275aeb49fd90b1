"""The informed law: its rounds are those of sampled requests, fits find what was put in, textbook cases are exact."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from traces.fits.acceptance.fit import assess_acceptance, replayed_lengths
from traces.fits.acceptance.informed import InformedLaw, fit_informed
from traces.schema import FinishReason, RequestTrace, Signal

DRIFTING = InformedLaw(mean=0.8, confidence_sd=1.5, hidden_sd=1.0, persistence=0.7)


def traces_of(law: InformedLaw, *, num: int, length: int, seed: int = 0) -> list[RequestTrace]:
    """Requests whose margin is the logit that the draft sees."""
    drawn = law.draw(num, length, np.random.default_rng(seed))
    chance = law.confidence(drawn.seen)
    return [
        RequestTrace(
            request_id=row,
            prompt_id=f"p{row}",
            num_prompt_tokens=10,
            max_new_tokens=length,
            temperature=1.0,
            finish_reason=FinishReason.MAX_TOKENS,
            ranks=tuple(np.where(right, 0, 1).tolist()),
            signals=tuple(Signal(sure, 0.5, float(np.log(sure / (1 - sure)))) for sure in seen.tolist()),
        )
        for row, (right, seen) in enumerate(zip(drawn.is_right, chance, strict=True))
    ]


@pytest.mark.parametrize("law", [DRIFTING, InformedLaw(mean=0.3, confidence_sd=1.0, persistence=0.95)])
def test_the_law_of_rounds_is_that_of_sampled_requests(law: InformedLaw) -> None:
    sampled = traces_of(law, num=150, length=1500)
    emitted, rounds = replayed_lengths(sampled, [1, 4, 12])
    for column, length in enumerate([1, 4, 12]):
        per_request = emitted[:, column] / rounds[:, column]
        stderr = per_request.std() / np.sqrt(len(per_request))
        error = law.round_law(length).tokens_per_forward - emitted[:, column].sum() / rounds[:, column].sum()
        assert abs(error) < 4 * stderr + 0.002, f"length {length}: {error / stderr:.1f} standard errors off"


def test_without_spread_it_is_the_textbook() -> None:
    law = InformedLaw(mean=float(np.log(4)), confidence_sd=0.0)
    assert law.acceptance == pytest.approx(0.8)
    assert law.round_law(4).tokens_per_forward == pytest.approx(3.3616)
    assert law.confidence(np.array([-2.0, 2.0])) == pytest.approx([0.8, 0.8])


def test_confidence_is_the_chance_that_is_left_when_the_hidden_part_is_averaged() -> None:
    drawn = DRIFTING.draw(400, 400, np.random.default_rng(1))
    chance = DRIFTING.confidence(drawn.seen)
    for low, high in ((0.2, 0.4), (0.6, 0.8)):
        chosen = (chance > low) & (chance < high)
        assert drawn.is_right[chosen].mean() == pytest.approx(chance[chosen].mean(), abs=0.01)
    # Knowing more tells more: the chance given both parts is spread wider than the one that the draft sees.
    assert chance.std() < expit(0.8 + np.hypot(1.5, 1.0) * np.random.default_rng(2).standard_normal(100_000)).std()


def test_fits_find_the_parameters() -> None:
    fitted = fit_informed(traces_of(DRIFTING, num=200, length=500))
    assert fitted.acceptance == pytest.approx(DRIFTING.acceptance, abs=0.01)
    assert fitted.persistence == pytest.approx(0.7, abs=0.07)
    assert fitted.confidence_sd == pytest.approx(1.5, rel=0.15)
    assert fitted.hidden_sd == pytest.approx(1.0, abs=0.4)


def test_it_is_assessed_beside_the_others() -> None:
    report = assess_acceptance(traces_of(DRIFTING, num=60, length=200))
    by_name = {model.name: model for model in report.models}
    assert "geometric (i.i.d.)" in report.rejected
    assert by_name["informed (a logit that drifts)"].mean_error < 0.01
    assert by_name["informed (a logit that drifts)"].num_parameters == 3


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        InformedLaw(mean=0.0, confidence_sd=-1.0)
    with pytest.raises(ValueError, match="it is a correlation"):
        InformedLaw(mean=0.0, confidence_sd=1.0, persistence=1.0)
