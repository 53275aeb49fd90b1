"""The resident executor: plain calls on a CPU, kernels, graphs and streams on a GPU; the same tests hold both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from analysis.check.identity import compare_rounds
from executor.models.loading import check_vocabularies, fingerprint
from executor.models.names import resolve_model
from executor.models.sources.base import ModelError
from executor.pair import Session
from executor.recording.prompts import load_prompts
from executor.recording.recorder import record_run
from executor.recording.settings import RecordSettings
from executor.recording.sweep import Grid, record_sweep
from executor.recording.synthetic import SyntheticAcceptance
from executor.request import Request
from executor.resident.engine import NUM_TAIL_SLOTS, ResidentEngine
from executor.resident.operations import Norm, Rotation, TorchOperations, View
from sim.decoding.policies.catalog import parse_policy
from tests.executor.same_rounds import assert_replayed
from tests.settings import load, record_settings
from traces.fits.calibration import calibrate
from traces.schema import FinishReason, Sampling

HAS_GPU = torch.cuda.is_available()
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason=f"torch {torch.__version__} sees no CUDA device")],
)
POLICIES = [
    "fixed_length:draft_length=3",
    "confidence_stop:threshold=0.3",
    "adaedl:max_length=6,step=0.05",
    "product_rule:max_length=6",
    "pearl:draft_length=4",
    "saguaro:draft_length=3,fan_out=2",
    "specbranch:uses_hrad=false,draft_length=5",
    "specbranch:uses_hrad=false,draft_length=4,on_miss=overlap,epsilon=0.5",
    "outcome_hedging:max_branches=6",
]
SPECBRANCH = "specbranch:uses_hrad=false,epsilon=0,draft_length=4"


def _settings(device: str, **changes: object) -> RecordSettings:
    return record_settings(engine="resident", device=device, capacity=384, **changes)


@pytest.fixture(scope="module", params=["cpu", CUDA])
def resident(request: pytest.FixtureRequest) -> Iterator[Session]:
    with Session(_settings(request.param).pair) as session:
        yield session


def _request(session: Session, number: int, sampling: Sampling, **changes: object) -> Request:
    prompt = load_prompts("held_out", 1, skip=number)[0]
    settings: dict[str, object] = {"max_new_tokens": 24, "ignore_eos": True, "seed": 3, "noise_key": number, **changes}
    tokens = session.encode(prompt.text)
    return Request(prompt_id=prompt.prompt_id, tokens=tokens, sampling=sampling, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_every_method_emits_the_tokens_of_plain_decoding_in_the_replayed_rounds(
    resident: Session, temperature: float
) -> None:
    request = _request(resident, 1, Sampling(temperature))
    plain = resident.run(request, parse_policy("autoregressive"))
    trace = resident.annotate(plain, request_id=0, tail_depth=16).trace
    for label in POLICIES:
        done = resident.run(request, parse_policy(label))
        assert done.tokens == plain.tokens, label
        assert_replayed([round_ for round_, _ in done.rounds], parse_policy(label), trace)


def test_two_processes_and_one_device_agree(session: Session, resident: Session) -> None:
    for sampling in (Sampling(0.0), Sampling(0.9, top_k=20, top_p=0.9)):
        request = _request(session, 2, sampling)
        for label in ("autoregressive", "pearl:draft_length=4", "saguaro:draft_length=3,fan_out=2"):
            theirs, ours = session.run(request, parse_policy(label)), resident.run(request, parse_policy(label))
            assert ours.tokens == theirs.tokens
            assert [round_ for round_, _ in ours.rounds] == [round_ for round_, _ in theirs.rounds]


def test_a_request_ends_at_eos_at_a_stop_string_and_within_a_window(resident: Session) -> None:
    plain = resident.run(_request(resident, 1, Sampling(0.0)), parse_policy("autoregressive"))
    text = resident.decode_text(plain.tokens[:9])
    stop = next(text[at:] for at in range(max(0, len(text) - 3), 0, -1) if text.find(text[at:]) == at)
    stopped = _request(resident, 1, Sampling(0.0), stop_strings=(stop,))
    expected = resident.run(stopped, parse_policy("autoregressive"))
    assert expected.finish_reason is FinishReason.STOP_STRING
    for label in ("fixed_length:draft_length=8", "pearl:draft_length=6", "saguaro"):
        assert resident.run(stopped, parse_policy(label)).tokens == expected.tokens
        short = _request(resident, 1, Sampling(0.0), max_new_tokens=5)
        assert resident.run(short, parse_policy(label)).tokens == plain.tokens[:5]


def test_a_draft_that_fell_far_behind_catches_up(resident: Session) -> None:
    # Nothing is drafted for more rounds than one graph forwards at once; then everything is, and must still agree.
    from dataclasses import dataclass
    from typing import Any

    from sim.decoding.policies.serial.fixed_length import FixedLength

    @dataclass(frozen=True)
    class Late(FixedLength):
        def draft_more(self, seen: Any, pending: Any) -> int:
            return 0 if seen.num_rounds < 70 else super().draft_more(seen, pending)

    request = _request(resident, 1, Sampling(1.0), max_new_tokens=96)
    plain = resident.run(request, parse_policy("autoregressive"))
    late = resident.run(request, Late(draft_length=4))
    assert late.tokens == plain.tokens
    accepted = sum(round_.num_accepted for round_, _ in late.rounds)
    prompt = resident.run(request, parse_policy("fixed_length:draft_length=4"))
    assert accepted > 0, "the draft's context was wrong: nothing was accepted"
    assert sum(round_.num_accepted for round_, _ in prompt.rounds) > accepted


def test_the_engine_is_the_static_engine(resident: Session) -> None:
    path = resolve_model("embedded", "draft")
    ours, theirs = resident.engine, load(path, capacity=384)
    assert isinstance(ours, ResidentEngine)
    tokens = list(range(10, 70))
    with torch.inference_mode():
        for engine in (ours, theirs):
            engine.reset()
        assert torch.allclose(ours.extend(tokens).cpu(), theirs.extend(tokens), atol=2e-3)
        for engine in (ours, theirs):
            engine.open_branches([60, 55, 60])
        for step in ([5, 6, 7], [8, 9, 10], [11, 12, 13]):
            assert torch.allclose(ours.grow(step).cpu(), theirs.grow(step), atol=2e-3)
        for engine in (ours, theirs):
            engine.adopt(1, 2)
        assert ours.length == theirs.length == 57
        assert torch.allclose(ours.extend([3, 4]).cpu(), theirs.extend([3, 4]), atol=2e-3)


def test_too_many_branch_tokens_are_refused(resident: Session) -> None:
    engine = resident.engine
    assert isinstance(engine, ResidentEngine)
    starts = torch.zeros(NUM_TAIL_SLOTS // 4, dtype=torch.int64, device=engine.device)
    engine.branches(starts, 3)
    with pytest.raises(ValueError, match="slots for branch tails"):
        engine.branches(starts, 4)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_synthetic_acceptance_runs_the_told_rounds_and_is_marked(device: str, tmp_path: Path) -> None:
    label = "geometric:alpha=0.7,rank_decay=0.4"
    settings = _settings(
        device,
        target="random:tiny",
        draft="random:tiny",
        acceptance=label,
        policies=("autoregressive", "pearl:draft_length=4", "saguaro", SPECBRANCH),
        temperatures=(0.0,),
        num_prompts=2,
        max_new_tokens=40,
    )
    run = record_run(settings, tmp_path / "run")
    comparison = compare_rounds(run)
    assert comparison.is_identical
    assert comparison.num_rounds > 100
    assert run.summary["tokens_identical"] is None
    assert label in run.meta["noise_rule"]
    assert set(run.requests.tokens_sha256) == {"synthetic"}
    drafted = run.rounds[run.rounds.num_pending > 0]
    assert 0.5 < (drafted.num_accepted > 0).mean() < 0.9  # the first pending token is accepted with chance 0.7


def test_synthetic_acceptance_also_decides_for_two_processes(session: Session, tmp_path: Path) -> None:
    label = "geometric:alpha=0.8"
    settings = record_settings(
        acceptance=label, policies=("pearl:draft_length=4", "saguaro"), temperatures=(1.0,), num_prompts=1
    )
    run = record_run(settings, tmp_path / "run", session=session)
    assert compare_rounds(run).is_identical
    told = {prompt: 96 for prompt in run.requests.prompt_id}
    assert dict(zip(run.requests.prompt_id, run.requests.num_output_tokens, strict=True)) == told


@pytest.mark.parametrize("label", ["geometric", "geometric:alpha=2", "law:alpha=0.5", "run:"])
def test_an_unknown_acceptance_says_what_to_write(label: str) -> None:
    with pytest.raises(ValueError, match=r"geometric:alpha=0\.8"):
        SyntheticAcceptance(label)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_sweep_times_its_whole_grid_and_can_be_calibrated(device: str, tmp_path: Path) -> None:
    grid = Grid(contexts=(20, 60), widths=(1, 4), branch_counts=(1, 3), num_steps=2, num_repeats=30)
    settings = _settings(device, target="random:tiny", draft="random:tiny")
    run = record_sweep(settings, tmp_path / "sweep", grid)
    counts = run.ops.groupby(["kind", "is_beside", "num_tokens", "num_branches", "context_tokens"]).size()
    assert counts["verify", False, 4, 1].sum() == 60
    assert counts["branch", True, 1, 3].sum() == counts["branch", False, 1, 3].sum() == 2 * 30 * 2
    assert (run.ops.end_s >= run.ops.start_s).all()
    assert {"verify", "draft"} <= set(calibrate(run).fits)
    with pytest.raises(ValueError, match="needs a capacity of 402 tokens, but got 384"):
        record_sweep(settings, tmp_path / "other", Grid(contexts=(380,)))


def test_random_weights_need_the_resident_engine_and_a_known_shape() -> None:
    with pytest.raises(ModelError, match="only the resident engine makes"):
        load("random:tiny")
    with pytest.raises(ModelError, match=r"llama-3\.1-8b"):
        load("random:colossus", engine="resident")
    with pytest.raises(ModelError, match=r"llama-3\.1-8b"):
        check_vocabularies("random:colossus", "random:tiny")
    assert fingerprint("random:tiny") != fingerprint("random:llama-68m")


def test_the_plain_operations_are_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    operations = TorchOperations(eps=1e-6)
    x, gate_up, norm, residual = draw(3, 8), draw(10, 8), draw(8), draw(3, 5)
    normed = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm
    gate, up = (normed @ gate_up.T).chunk(2, -1)
    expected = gate * torch.sigmoid(gate) * up + residual
    assert torch.allclose(operations.linear(x, gate_up, norm=norm, gates=True, residual=residual), expected)

    queries, keys, values = draw(2, 4, 16), draw(12, 2, 16), draw(12, 2, 16)
    view = View(torch.tensor([3, 5], dtype=torch.int32), 6, 2, 2)  # slots 0, 2 are row 0's tail, 1, 3 row 1's
    seen = [[0, 2, 6, 7, 8], [1, 3, 6, 7, 8, 9, 10]]
    found = operations.attend(queries, keys, values, view).view(2, 4, 16)
    for row, slots in enumerate(seen):
        for head in range(4):
            scores = keys[slots, head // 2] @ queries[row, head] / 4
            assert torch.allclose(found[row, head], torch.softmax(scores, 0) @ values[slots, head // 2])


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
@pytest.mark.parametrize("starts_early", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_are_the_plain_operations(dtype: torch.dtype, starts_early: bool) -> None:
    from executor.resident.triton_operations import TritonOperations

    if starts_early and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("programmatic dependent launch needs a device of capability 9")
    plain, kernels = TorchOperations(eps=1e-6), TritonOperations(eps=1e-6, starts_early=starts_early)
    tolerance = 2e-4 if dtype == torch.float32 else 0.1
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda").to(dtype)

    def check(ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert (ours.float() - theirs.float()).abs().max().item() < tolerance

    for num_rows in (1, 5):
        for num_outputs, num_inputs in ((200, 300), (256, 512)):
            x, weight = draw(num_rows, num_inputs), draw(2 * num_outputs, num_inputs) / num_inputs**0.5
            norm, bias, residual = draw(num_inputs), draw(2 * num_outputs), draw(num_rows, 2 * num_outputs)
            everything = {"norm": norm, "bias": bias, "residual": residual}
            check(kernels.linear(x, weight, **everything), plain.linear(x, weight, **everything))
            check(kernels.linear(x, weight, norm=norm, gates=True), plain.linear(x, weight, norm=norm, gates=True))
        heads, kv_heads, dim, slots = 14, 2, 64, 400
        states, positions = draw(num_rows, (heads + 2 * kv_heads) * dim), torch.arange(num_rows, device="cuda") + 3
        rotation = Rotation(positions, torch.randn(60, dim // 2).cuda(), torch.randn(60, dim // 2).cuda())
        norm_of_heads = Norm(draw(dim), draw(dim))
        caches = [torch.zeros(slots, kv_heads, dim, device="cuda", dtype=dtype) for _ in range(4)]
        turned = [
            operations.rotate_and_store(states, rotation, positions + 100, keys, values, norm_of_heads)
            for operations, keys, values in ((kernels, *caches[:2]), (plain, *caches[2:]))
        ]
        check(*turned)
        check(caches[0], caches[2])
        check(caches[1], caches[3])
        queries, keys, values = draw(num_rows, heads, dim), draw(slots, kv_heads, dim), draw(slots, kv_heads, dim)
        limits = torch.arange(num_rows, device="cuda", dtype=torch.int32) * 40 + 1
        for view in (View(limits, 64), View(limits, 64, num_rows, 3)):
            check(kernels.attend(queries, keys, values, view), plain.attend(queries, keys, values, view))


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
def test_memory_is_back_at_its_start_after_a_session() -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with Session(_settings("cuda").pair) as session:
        session.run(_request(session, 1, Sampling(1.0)), parse_policy("pearl"))
        assert torch.cuda.memory_allocated() > before + (1 << 20)
    del session
    assert torch.cuda.memory_allocated() <= before + (1 << 20)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
def test_a_model_that_does_not_fit_gives_one_clear_error() -> None:
    with pytest.raises(ModelError, match="does not fit the memory"):
        load("random:llama-3.1-70b", engine="resident", device="cuda", dtype="float32")
    torch.cuda.empty_cache()
