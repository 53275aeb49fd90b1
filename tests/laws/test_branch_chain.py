"""The chain of SpecBranch's windows against the policy itself, and against the formulas that it contains."""

from __future__ import annotations

import numpy as np
import pytest

from sim.decoding.closed_forms import branch_hit_probability, specbranch_serial_speedup
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.engine import simulate, summarise
from sim.latency.constant import ConstantLatency
from sim.sweep.sweep import sweep
from tests.laws.branch_chain import BranchChain
from traces.schema import FinishReason, RequestTrace, Signal

NUM_REQUESTS, NUM_TOKENS = 100, 2000
CHAINS = [
    BranchChain(draft_length=4, sure=0.7, alpha_sure=0.9, alpha_unsure=0.3, rescue_rate=0.5, cost_ratio=6.0),
    BranchChain(draft_length=6, sure=0.5, alpha_sure=0.8, alpha_unsure=0.6, rescue_rate=0.2, cost_ratio=2.5),
    BranchChain(
        draft_length=3,
        sure=0.8,
        alpha_sure=0.85,
        alpha_unsure=0.4,
        rescue_rate=0.4,
        cost_ratio=3.5,
        class_probs=(0.3, 0.5, 0.2),
    ),
]


def trace_of(chain: BranchChain, request_id: int, rng: np.random.Generator) -> RequestTrace:
    """Tokens as the chain assumes them; rank 1 is the second of two branches."""
    depth = chain.draft_length + 1
    is_sure = rng.random(NUM_TOKENS) < chain.sure
    is_right = rng.random(NUM_TOKENS) < np.where(is_sure, chain.alpha_sure, chain.alpha_unsure)
    rescued = rng.random(NUM_TOKENS) < chain.rescue_rate
    ranks = np.where(is_right, 0, np.where(rescued, 1, 2))

    def signals(sure: np.ndarray) -> tuple[Signal, ...]:
        return tuple(Signal(0.9 if value else 0.1, 1.0, 1.0) for value in sure)

    ends = [*np.flatnonzero(ranks).tolist(), NUM_TOKENS]
    classes = rng.choice(3, NUM_TOKENS + 1, p=chain.class_probs)
    return RequestTrace(
        request_id=request_id,
        prompt_id=f"p{request_id}",
        num_prompt_tokens=8,
        max_new_tokens=NUM_TOKENS + 100,
        temperature=1.0,
        finish_reason=FinishReason.EOS,
        ranks=tuple(ranks.tolist()),
        signals=signals(is_sure),
        tails={end: signals(rng.random(depth) < chain.sure) for end in ends},
        tail_depth=depth,
        class_probs=tuple(map(tuple, np.eye(3)[classes].tolist())),
    )


@pytest.mark.parametrize("chain", CHAINS)
def test_the_chain_is_what_the_policy_does(chain: BranchChain) -> None:
    policy = SpecBranch(
        draft_length=chain.draft_length, max_branches=2, epsilon=0.5, uses_hrad=True, is_fixed_count=True
    )
    rngs = np.random.default_rng(7).spawn(NUM_REQUESTS)
    traces = [trace_of(chain, index, rng) for index, rng in enumerate(rngs)]
    latency = ConstantLatency(draft_s=1.0, verify_s=chain.cost_ratio)
    swept = sweep([policy], traces, latency)
    run = summarise(simulate(policy, traces[:1], latency, record_ops=False))
    assert swept.decode_s[0, 0] == pytest.approx(run.decode_s, rel=1e-9)
    counts, seconds, law = {name: of[0] for name, of in swept.counts.items()}, swept.decode_s[0], chain.law()
    for part, whole, expected, what in (
        (counts["num_emitted"], counts["num_rounds"], law.tokens_per_forward, "tokens a forward"),
        (counts["num_hits"], counts["num_hedged_rounds"], law.hit_rate, "hits"),
        (chain.cost_ratio * counts["num_emitted"], seconds, law.speedup, "speed-up"),
    ):
        ratio = part.sum() / whole.sum()
        stderr = (part - ratio * whole).std(ddof=1) / np.sqrt(NUM_REQUESTS) / whole.mean()
        error = ratio - expected
        assert abs(error) <= 4.2 * stderr + 1e-3 * expected, f"{what}: {error / stderr:.1f} standard errors off"
        assert abs(error) <= 0.01 * max(1.0, expected), f"{what}: {ratio:.4f} in place of {expected:.4f}"


@pytest.mark.parametrize("length", [1, 4, 9])
def test_a_draft_that_is_always_sure_is_specbranch_at_the_windows_end(length: int) -> None:
    chain = BranchChain(
        draft_length=length, sure=1.0, alpha_sure=0.8, alpha_unsure=0.1, rescue_rate=0.5, cost_ratio=7.0
    )
    hit = branch_hit_probability(0.8, 0.5)
    assert chain.law().speedup == pytest.approx(float(specbranch_serial_speedup(0.8, length, hit, 7.0)))


def test_chances_that_are_none_are_refused() -> None:
    for wrong in ({"sure": 1.2}, {"class_probs": (0.5, 0.2, 0.2)}, {"draft_length": 0}):
        settings = {**vars(CHAINS[0]), **wrong}
        with pytest.raises(ValueError, match="but got"):
            BranchChain(**settings)
