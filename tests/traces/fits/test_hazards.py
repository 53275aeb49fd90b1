"""Hazards: one calibrated signal that tells what several tell together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from traces.fits.hazards import fit_hazards, with_hazards
from traces.fits.signals import fit_signal
from traces.schema import FinishReason, RequestTrace, Signal


def traces_of(num: int, seed: int) -> list[RequestTrace]:
    """Acceptance hangs on the margin and on the entropy, each of which alone tells a part."""
    rng, found = np.random.default_rng(seed), []
    for index in range(num):
        margins, entropies = rng.exponential(2.0, 200), rng.exponential(1.0, 200)
        right = rng.random(200) < 1 / (1 + np.exp(-(0.8 * margins - 1.5 * entropies)))
        signals = tuple(Signal(0.5, float(e), float(m)) for m, e in zip(margins, entropies, strict=True))
        found.append(
            RequestTrace(
                request_id=index,
                prompt_id=f"p{index}",
                num_prompt_tokens=5,
                max_new_tokens=200,
                temperature=1.0,
                finish_reason=FinishReason.MAX_TOKENS,
                ranks=tuple(np.where(right, 0, 1).tolist()),
                signals=signals,
                tails={200: signals[:4]},
                tail_depth=4,
            )
        )
    return found


def test_hazards_tell_more_than_the_margin_and_are_calibrated_on_other_requests() -> None:
    hazards, others = fit_hazards(traces_of(30, 0)), traces_of(30, 1)
    told = [with_hazards(trace, hazards) for trace in others]
    alone, together = (fit_signal(traces, "margin") for traces in (others, told))
    assert together.auc > alone.auc + 0.05
    assert together.log_loss < alone.log_loss - 0.03
    assert together.slope == pytest.approx(1.0, abs=0.08)
    assert together.intercept == pytest.approx(0.0, abs=0.08)
    assert hazards.log_loss < hazards.base_log_loss


def test_nothing_but_the_margin_changes() -> None:
    (trace,) = traces_of(1, 2)
    told = with_hazards(trace, fit_hazards([trace]))
    assert told.ranks == trace.ranks
    assert [signal[:2] for signal in told.signals] == [signal[:2] for signal in trace.signals]
    assert told.tails[200] == told.signals[:4]


def test_what_cannot_be_fitted_is_refused() -> None:
    (trace,) = traces_of(1, 3)
    with pytest.raises(ValueError, match="no signals"):
        fit_hazards([replace(trace, signals=())])
    with pytest.raises(ValueError, match="no curve to fit"):
        fit_hazards([replace(trace, ranks=(0,) * 200)])
