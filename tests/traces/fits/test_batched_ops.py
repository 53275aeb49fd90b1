"""Step costs from a sweep over batches: a known law comes back, on other shapes, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from traces.fits.batched_ops import BATCH_SWEEP, fit_batches
from traces.fits.calibration import calibrate
from traces.fits.step_costs import ForwardCost, read_step_costs
from traces.folder.run import Run, read_run
from traces.folder.writer import RunWriter
from traces.schema import Actor, FinishReason, Op, OpKind, OpShape, RequestRecord, op_of

# A processor: one token of a batch is nearly as dear as reading the weights.
TARGET = ForwardCost(floor_s=2e-3, token_s=4e-4, sharpness=2.5, context_s=3e-8, request_s=2e-5)
DRAFT = ForwardCost(floor_s=3e-4, token_s=3e-5, sharpness=2.5, context_s=1e-8, request_s=1e-5)
BATCHES, WIDTHS, CONTEXTS = (1, 2, 4, 8, 16), (1, 2, 4, 8), (64, 256, 768)


def _record(request_id: int, policy: str) -> RequestRecord:
    return RequestRecord(
        request_id=request_id, prompt_id=f"p{request_id}", policy=policy, repeat=0, temperature=0.0, top_k=0, top_p=1.0,
        seed=0, noise_key=0, arrival_s=0.0, first_token_s=0.0, finish_s=9.0, num_prompt_tokens=65, num_output_tokens=0,
        max_new_tokens=0, finish_reason=FinishReason.UNFINISHED.value, tokens_sha256="s", is_clean=True,
    )  # fmt: skip


def _written(folder: Path, *, batches: tuple[int, ...] = BATCHES, contexts: tuple[int, ...] = CONTEXTS) -> Run:
    """A sweep with 5% of noise, and slow outliers; its first request is a sweep without batches."""
    rng = np.random.default_rng(1)
    with RunWriter(folder, config={}, meta={"kind": "sweep"}) as writer:
        single: list[Op] = []
        for width in WIDTHS * 12:
            shape = OpShape(Actor.TARGET, OpKind.VERIFY, width, 1, 64)
            single.append(op_of(0, 0, "cpu", shape, 0.0, 0.001 + 0.0001 * width))
        writer.ops(single)
        writer.request(_record(0, "sweep"))
        for request_id, (actor, law) in enumerate([(Actor.TARGET, TARGET), (Actor.DRAFT, DRAFT)], start=1):
            ops = []
            kind = OpKind.VERIFY if actor is Actor.TARGET else OpKind.DRAFT
            for batch in batches:
                for width in WIDTHS:
                    for context in contexts:
                        mean_s = law.seconds(batch * width, batch * context, batch)
                        for seconds in mean_s * (1 + 0.05 * rng.standard_normal(9)) * (1 + 3 * (rng.random(9) < 0.1)):
                            shape = OpShape(actor, kind, width, 1, context)
                            ops.append(op_of(request_id, 0, "cpu", shape, 0.0, seconds)._replace(batch=batch))
            writer.ops(ops)
            writer.request(_record(request_id, BATCH_SWEEP))
        writer.finish({})
    return read_run(folder)


def test_a_known_law_comes_back(tmp_path: Path) -> None:
    fitted = fit_batches(_written(tmp_path / "run"))
    assert fitted is not None
    assert fitted.num_groups == 2 * len(BATCHES) * len(WIDTHS) * len(CONTEXTS)
    assert fitted.fit.mean_abs_error < 0.04
    fitted.write(tmp_path / "step_costs.json")
    costs = read_step_costs(tmp_path / "step_costs.json")
    assert costs.host_s == 0
    for batch, width, context in [(3, 3, 100), (6, 5, 500), (12, 1, 700), (16, 6, 64), (32, 4, 256)]:
        sums = (batch * width, batch * context, batch)
        assert costs.target_s(*sums) == pytest.approx(TARGET.seconds(*sums), rel=0.1), sums
        assert costs.draft_s(*sums) == pytest.approx(DRAFT.seconds(*sums), rel=0.1), sums
    low, high = fitted.fit.intervals["target.token_s"]
    assert low <= TARGET.token_s <= high
    assert "us a new token" in fitted.report()


def test_batches_are_no_part_of_the_latencies_of_single_requests(tmp_path: Path) -> None:
    run = _written(tmp_path / "run")
    fitted = calibrate(run)
    assert set(fitted.fits) == {"verify"}
    assert fitted.fits["verify"].mean_s(4, 1, 64) == pytest.approx(0.0014, rel=0.01)


def test_few_batches_are_refused_and_none_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"4 combinations .* of the target are too few"):
        fit_batches(_written(tmp_path / "few", batches=(1,), contexts=(64,)))
    run = _written(tmp_path / "run")
    vars(run)["requests"] = run.requests.assign(policy="sweep")
    assert fit_batches(run) is None
