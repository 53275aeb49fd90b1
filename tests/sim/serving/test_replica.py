"""The scheduler by hand: steps, prompts in chunks, memory in blocks, preemption, deliveries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sim.decoding.policies.catalog import POLICIES, parse_policy
from sim.serving.cluster import Router, ServedRun, serve
from sim.serving.costs import SummedCosts
from sim.serving.replica import StepRecord
from sim.serving.rounds.lengths import FixedLengthRule, LengthRounds
from sim.serving.rounds.planned import Plan, PlannedRounds
from sim.serving.rounds.run_lengths import RunLengths
from sim.serving.settings import Placement, Server
from traces.schema import RequestTrace
from traces.workload import Workload


class Ones:
    """A forward of the target takes 1 s, of the draft 0.125 s; both exact in floats."""

    def __init__(self, context_s: float = 0.0) -> None:
        self.calls: list[tuple[str, int, int, int]] = []
        self._context_s = context_s

    def target_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        self.calls.append(("target", num_tokens, context_tokens, num_requests))
        return 1.0 + self._context_s * context_tokens

    def draft_s(self, num_tokens: int, context_tokens: int, num_requests: int) -> float:
        self.calls.append(("draft", num_tokens, context_tokens, num_requests))
        return 0.125


def workload_of(*requests: tuple[float, int, int], max_concurrency: int | None = None) -> Workload:
    """Requests as (arrival, prompt, output)."""
    arrival, prompt, output = (np.array(column) for column in zip(*requests, strict=True))
    return Workload(
        arrival_s=arrival.astype(float), prompt_tokens=prompt, output_tokens=output, max_concurrency=max_concurrency
    )


def served(
    workload: Workload,
    *,
    draft_length: int = 0,
    runs: int = 0,
    model: Ones | None = None,
    steps: list[StepRecord] | None = None,
    placement: Placement = Placement.IN_TURN,
    **server: object,
) -> ServedRun:
    """Serve with drafts of one length, of which `runs` tokens are accepted each time."""
    table = RunLengths(np.full(1000, runs), np.zeros(workload.num_requests, dtype=np.int64))
    model = model or Ones()
    return serve(
        workload,
        Server(**server),  # type: ignore[arg-type]
        lambda: SummedCosts(model),
        lambda: LengthRounds(table, FixedLengthRule(draft_length)),
        placement=placement,
        on_step=None if steps is None else lambda _, record: steps.append(record),
    )


def test_plain_decoding_gives_a_token_a_step() -> None:
    run = served(workload_of((0, 10, 4)))
    assert run.first_s.tolist() == [1.0]  # the prompt brings the first token
    assert run.last_s.tolist() == [4.0]
    assert run.gaps.num_gaps == 3


def test_a_request_that_comes_in_the_middle_joins_the_next_step() -> None:
    run = served(workload_of((0, 10, 5), (1.5, 10, 2)))
    assert run.first_s.tolist() == [1.0, 3.0]
    assert run.last_s.tolist() == [5.0, 4.0]


def test_a_request_misses_the_step_that_was_planned_ahead() -> None:
    run = served(workload_of((0, 10, 5), (1.5, 10, 2)), schedules_ahead=True)
    assert run.first_s.tolist() == [1.0, 4.0]


def test_an_idle_server_has_planned_nothing_ahead() -> None:
    run = served(workload_of((0, 10, 1), (7.5, 10, 2)), schedules_ahead=True)
    assert run.first_s.tolist() == [1.0, 8.5]


def test_a_request_that_waits_alone_for_a_step_planned_ahead_is_served() -> None:
    run = served(workload_of((0, 10, 1), (0.5, 10, 2)), schedules_ahead=True)
    assert run.first_s.tolist() == [1.0, 2.0]


def test_a_round_of_speculation_costs_its_drafts_and_gives_what_was_accepted() -> None:
    model = Ones()
    run = served(workload_of((0, 10, 7)), draft_length=4, runs=2, model=model)
    # Prompt; then two rounds of 4 drafts and a verification, 3 tokens each. Tokens are delivered after the next drafting.
    assert run.last_s.tolist() == [1 + 2 * 1.5]
    assert [call for call in model.calls if call[0] == "target"] == [
        ("target", 10, 0, 1),
        ("target", 5, 10, 1),
        ("target", 5, 13, 1),
    ]
    drafts = [call for call in model.calls if call[0] == "draft"]
    assert drafts[:4] == [("draft", 11, 10, 1), ("draft", 1, 11, 1), ("draft", 1, 12, 1), ("draft", 1, 13, 1)]
    assert run.first_s.tolist() == [1.5]
    assert run.replicas[0].num_pending == 8


def test_the_client_sees_tokens_before_the_drafting_where_the_draft_is_apart() -> None:
    run = served(
        workload_of((0, 10, 7)),
        draft_length=4,
        runs=2,
        placement=Placement.OWN_DEVICE,
        delivers_after_drafting=False,
        joins_draft_prefill=False,
    )
    assert run.first_s.tolist() == [1.0]  # both models read the prompt at once


def test_prompts_are_read_in_chunks_behind_the_running_requests() -> None:
    steps: list[StepRecord] = []
    served(workload_of((0, 4, 6), (0.5, 25, 1)), max_num_batched_tokens=11, steps=steps)
    assert [[chunk.num_tokens for chunk in step.plan.chunks] for step in steps[:4]] == [[4], [10], [10], [5]]
    assert [chunk.context_tokens for step in steps for chunk in step.plan.chunks] == [0, 0, 10, 20]


def test_the_newest_request_is_preempted_and_reads_its_tokens_again() -> None:
    steps: list[StepRecord] = []
    # 4 blocks of 4 tokens: both requests fit at 4 tokens each, and outgrow the memory at 9 together with 8.
    run = served(
        workload_of((0, 4, 8), (0, 4, 8)), kv_tokens=16, block_tokens=4, watermark=0.0, steps=steps, max_num_seqs=4
    )
    totals = run.replicas[0]
    assert totals.num_preemptions == 1
    assert totals.num_recomputed_tokens == 8  # its prompt and the four tokens before the newest one
    assert run.last_s[0] == 8.0
    assert run.last_s[1] == 8.0 + 4.0  # reads 8 tokens in one step when the first is done, then three more
    assert (run.num_output == 8).all()


def test_a_preempted_request_waits_in_front_and_its_gap_is_counted_once() -> None:
    requests = [(0, 4, 8), (0, 4, 8), (0.5, 8, 4)]
    run = served(workload_of(*requests), kv_tokens=16, block_tokens=4, watermark=0.0, max_num_seqs=4)
    assert run.replicas[0].num_preemptions >= 1
    assert run.last_s[0] < run.last_s[1] <= run.last_s[2]  # the third one came last, and ends last
    assert run.gaps.num_gaps == 7 + 7 + 3  # a gap between any two tokens of a request, whatever happened between them
    assert run.gaps.quantile_s(0.99) > 3.0  # the preempted one's


def test_the_first_token_of_a_round_is_no_gap() -> None:
    run = served(workload_of((0, 10, 5)), prefill_emits=False, delivers_after_drafting=False)
    assert run.first_s.tolist() == [2.0]
    assert run.gaps.num_gaps == 4


def test_lookahead_slots_keep_requests_out() -> None:
    def most_running(lookahead: int) -> int:
        run = served(
            workload_of(*[(0, 16, 8)] * 8), kv_tokens=16 * 16, watermark=0.0, lookahead_tokens=lookahead, max_num_seqs=8
        )
        return run.replicas[0].max_running

    assert most_running(0) == 8
    assert most_running(32) == 4  # 16 + 8 + 32 tokens are 4 blocks each


def test_a_part_of_the_memory_stays_free_when_requests_are_let_in() -> None:
    steps: list[StepRecord] = []
    served(workload_of(*[(0, 15, 2)] * 8), kv_tokens=8 * 16, watermark=0.25, max_num_seqs=8, steps=steps)
    assert len(steps[0].plan.chunks) == 6  # a block each; two of eight stay free
    assert steps[1].plan.num_running == 6


def test_a_request_that_can_never_fit_is_refused_with_its_size() -> None:
    with pytest.raises(
        ValueError, match="request 1 needs 7 blocks of 16 tokens for prompt and output, but the memory has 4"
    ):
        served(workload_of((0, 8, 8), (1, 90, 9)), kv_tokens=64, watermark=0.0)


def test_clients_wait_for_their_turn_without_being_sent() -> None:
    run = served(workload_of((0, 10, 3), (0, 10, 3), (0, 10, 3), max_concurrency=1))
    assert run.sent_s.tolist() == [0.0, 3.0, 6.0]
    assert (run.first_s - run.sent_s).tolist() == [1.0, 1.0, 1.0]


def test_time_outside_of_the_scheduler_counts_for_the_first_token() -> None:
    assert served(workload_of((0, 10, 3)), client_s=0.25).first_s.tolist() == [1.25]


def test_the_queue_is_first_come_first_served() -> None:
    run = served(workload_of(*[(0.01 * index, 8, 3) for index in range(9)]), max_num_seqs=2)
    assert (np.diff(run.first_s) >= 0).all()


def route_of(router: Router, workload: Workload) -> ServedRun:
    table = RunLengths(np.zeros(1000, dtype=np.int64), np.zeros(workload.num_requests, dtype=np.int64))
    return serve(
        workload,
        Server(),
        lambda: SummedCosts(Ones()),
        lambda: LengthRounds(table, FixedLengthRule(0)),
        num_replicas=2,
        router=router,
    )


def test_routers_spread_requests() -> None:
    workload = workload_of((0, 100, 50), (0.1, 10, 2), (0.2, 10, 2), (0.3, 10, 2))
    by_turn = route_of(Router.ROUND_ROBIN, workload)
    assert [totals.num_first for totals in by_turn.replicas] == [2, 2]
    by_work = route_of(Router.LEAST_OUTSTANDING_TOKENS, workload)
    assert [totals.num_first for totals in by_work.replicas] == [1, 3]


def test_a_prefix_aware_router_sends_equal_beginnings_to_one_replica() -> None:
    workload = workload_of(*[(0.1 * index, 20, 2) for index in range(6)])
    with pytest.raises(ValueError, match="prefix-aware router needs a workload with the blocks"):
        route_of(Router.PREFIX_AWARE, workload)
    blocks = tuple((index % 2, 10 + index) for index in range(6))
    known = Workload(
        arrival_s=workload.arrival_s,
        prompt_tokens=workload.prompt_tokens,
        output_tokens=np.array([9, 1, 9, 1, 9, 1]),
        prefix_blocks=blocks,
        prefix_block_tokens=10,
    )
    run = route_of(Router.PREFIX_AWARE, known)
    assert sorted(totals.num_emitted + totals.num_first for totals in run.replicas) == [3, 27]


def test_known_beginnings_are_not_read_again() -> None:
    requests = workload_of(*[(10.0 * index, 40, 2) for index in range(4)])
    known = Workload(
        arrival_s=requests.arrival_s,
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
        prefix_blocks=((1, 2, 3, 4), (1, 2, 9, 4), (7, 2, 3, 4), (1, 2, 3, 4)),
        prefix_block_tokens=10,
    )

    def read(**server: object) -> list[tuple[int, int]]:
        steps: list[StepRecord] = []
        served(known, steps=steps, prefix_caching=True, **server)
        return [(chunk.num_tokens, chunk.context_tokens) for step in steps for chunk in step.plan.chunks]

    # The second shares two blocks; the third none, for its first one differs; the fourth all, and reads its last token.
    assert read() == [(40, 0), (20, 20), (40, 0), (1, 39)]
    # Of five blocks the first one, used longest ago, is forgotten when the third request has brought its own.
    assert read(kv_tokens=53) == [(40, 0), (20, 20), (40, 0), (40, 0)]
    with pytest.raises(ValueError, match="prefix_caching needs a workload with the blocks"):
        served(requests, prefix_caching=True)


@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize("name", POLICIES)
def test_every_method_serves_a_batch(name: str, placement: Placement, make_trace: Callable[..., RequestTrace]) -> None:
    traces = [make_trace(num_tokens=30 + seed, seed=seed, tail_depth=40, with_classes=True) for seed in range(4)]
    policy = parse_policy(name)
    plan = Plan([policy, parse_policy("fixed_length:draft_length=3")], traces)  # modes coexist
    workload = workload_of(*[(0.3 * index, 20, 33) for index in range(16)])
    model = Ones(1e-3)
    run = serve(
        workload,
        Server(max_num_seqs=6),
        lambda: SummedCosts(model),
        lambda: PlannedRounds(plan),
        num_replicas=2,
        placement=placement,
    )
    assert (run.num_output == 33).all()
    assert sum(totals.num_emitted + totals.num_first for totals in run.replicas) == 16 * 33


def test_overlap_hides_the_draft_behind_the_verification(make_trace: Callable[..., RequestTrace]) -> None:
    traces = [make_trace(num_tokens=60, seed=seed, acceptance=0.9, tail_depth=40) for seed in range(4)]
    plan = Plan([parse_policy("pearl:draft_length=4")], traces)
    workload = workload_of(*[(0, 20, 60)] * 4)

    def end_s(placement: Placement) -> float:
        run = serve(workload, Server(), lambda: SummedCosts(Ones()), lambda: PlannedRounds(plan), placement=placement)
        return run.end_s

    assert end_s(Placement.OWN_DEVICE) < 0.75 * end_s(Placement.IN_TURN)


def test_one_draft_for_several_replicas_is_waited_for(make_trace: Callable[..., RequestTrace]) -> None:
    traces = [make_trace(num_tokens=60, seed=seed, acceptance=0.9, tail_depth=40) for seed in range(4)]
    plan = Plan([parse_policy("fixed_length:draft_length=8")], traces)
    workload = workload_of(*[(0, 20, 60)] * 8)

    def end_s(placement: Placement) -> float:
        run = serve(
            workload,
            Server(max_num_seqs=1),
            lambda: SummedCosts(Ones()),
            lambda: PlannedRounds(plan),
            num_replicas=4,
            placement=placement,
        )
        assert max(totals.draft_busy_s for totals in run.replicas) < run.end_s
        return run.end_s

    assert end_s(Placement.SHARED_DRAFT) > 1.2 * end_s(Placement.OWN_DEVICE)
