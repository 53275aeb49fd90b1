"""Layouts of weights: one result whatever the layout, the faster one where that is measured, and identical tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from executor.models.engines import projections
from executor.models.engines.projections import (
    MAX_COPIED_BYTES,
    PackedProjection,
    PlainProjection,
    SplitProjection,
    can_pack,
    laid_out,
)
from executor.models.engines.static import StaticEngine
from executor.models.settings import Layout
from executor.pair import Session
from executor.recording.prompts import load_prompts
from executor.request import Request
from sim.decoding.policies.catalog import parse_policy
from tests.executor.models.test_engines import OPERATIONS, replay
from tests.executor.models.tiny_models import CAPACITY, model_of
from tests.settings import pair_settings
from traces.schema import Sampling

METHODS = (
    "fixed_length:draft_length=5",
    "pearl:draft_length=4",
    "confidence_stop:threshold=0.3",
    "saguaro:draft_length=3,fan_out=2",
    "specbranch:uses_hrad=false,draft_length=5",
    "outcome_hedging",
)
needs_packing = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="this torch was built without oneDNN"
)


@needs_packing
@pytest.mark.parametrize("has_bias", [False, True])
def test_both_layouts_give_the_same_products(has_bias: bool) -> None:
    weight, bias = torch.randn(96, 64), torch.randn(96) if has_bias else None
    plain = PlainProjection(weight, bias)
    packed = PackedProjection(plain)
    both = SplitProjection(plain, packed, 2)
    for width in range(1, 18):
        x, residual = torch.randn(width, 64), torch.randn(width, 96)
        expected = torch.nn.functional.linear(x, weight, bias)
        for projection in (plain, packed, both):
            out = torch.empty(width, 96)
            projection.into(out, x)
            for got in (out, projection(x), projection.added_to(residual, x) - residual):
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@needs_packing
def test_a_row_of_the_packed_layout_does_not_depend_on_the_others() -> None:
    packed, x = PackedProjection(PlainProjection(torch.randn(192, 128), None)), torch.randn(16, 128)
    for width in range(1, 17):
        assert torch.equal(packed(x[:width])[-1:], packed(x[width - 1 : width]))


class _Clock:
    """A thread's time, which only passes where it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _costing(kind: type[Any], clock: _Clock, cost_s: dict[int, float]) -> type[Any]:
    class Costing(kind):  # type: ignore[misc]  # the kind is a parameter
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            clock.now_s += cost_s[len(x)]
            return torch.empty(0)

    return Costing


def _timed(packed_s: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A plain projection that takes 1, 2, 2 and 3 seconds at 1, 2, 4 and 8 rows; packed ones take packed_s."""
    clock = _Clock()
    monkeypatch.setattr(projections.time, "thread_time", clock)
    monkeypatch.setattr(projections, "PackedProjection", _costing(PackedProjection, clock, packed_s))
    return [_costing(PlainProjection, clock, {1: 1.0, 2: 2.0, 4: 2.0, 8: 3.0})(torch.randn(8, 4), None)]


@needs_packing
@pytest.mark.parametrize(
    ("packed_s", "taken"),  # where two copies are not allowed
    [
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, Layout.PACKED),
        ({1: 1.01, 2: 1.0, 4: 1.0, 8: 1.0}, Layout.PACKED),
        ({1: 1.1, 2: 1.0, 4: 1.0, 8: 1.0}, Layout.PLAIN),  # one token may not become slower
        ({1: 1.0, 2: 1.9, 4: 2.0, 8: 2.9}, Layout.PLAIN),  # too little is gained
        ({1: 0.5, 2: 0.5, 4: 0.5, 8: 3.2}, Layout.PLAIN),
    ],
)
def test_the_packed_layout_is_taken_where_it_gains_and_never_loses(
    packed_s: dict[int, float], taken: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _timed(packed_s, monkeypatch)
    found, layout = laid_out(plain, Layout.AUTO, model_bytes=1)
    assert layout is taken
    assert isinstance(found[0], PackedProjection) is (taken is Layout.PACKED)


@needs_packing
@pytest.mark.parametrize(
    ("packed_s", "max_plain_rows"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 0),  # one copy will do
        ({1: 1.3, 2: 1.0, 4: 1.0, 8: 1.0}, 1),
        ({1: 1.3, 2: 2.1, 4: 1.0, 8: 1.0}, 2),
        ({1: 1.3, 2: 1.9, 4: 2.0, 8: 2.9}, 8),  # too little is gained
        ({1: 0.5, 2: 0.5, 4: 0.5, 8: 4.5}, 8),  # nobody takes the packed one for few rows alone
    ],
)
def test_a_model_that_comes_from_memory_may_have_both(
    packed_s: dict[int, float], max_plain_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _timed(packed_s, monkeypatch)
    (found,), layout = laid_out(plain, Layout.AUTO, model_bytes=MAX_COPIED_BYTES)
    assert layout is {0: Layout.PACKED, 8: Layout.PLAIN}.get(max_plain_rows, Layout.BOTH)
    if isinstance(found, SplitProjection):
        assert found.max_plain_rows == max_plain_rows
    _, layout = laid_out(plain, Layout.AUTO, model_bytes=MAX_COPIED_BYTES + 1)
    assert layout is not Layout.BOTH


@needs_packing
def test_both_layouts_are_read_by_their_own_rows() -> None:
    plain = PlainProjection(torch.randn(16, 8), None)
    packed = PackedProjection(PlainProjection(torch.randn(16, 8), None))  # another weight, which tells the two apart
    split = SplitProjection(plain, packed, 2)
    for width in (1, 2, 3, 8):
        x = torch.randn(width, 8)
        assert torch.equal(split(x), plain(x) if width <= 2 else packed(x))


def test_other_formats_and_plain_ones_stay_plain() -> None:
    model = model_of("llama").double()
    try:
        engine = StaticEngine(model, capacity=CAPACITY, dtype=torch.float64, layout=Layout.PACKED)
    finally:
        model.float()
    assert set(engine.layouts.values()) == {"plain"}
    assert [name.split()[0] for name in engine.layouts] == [
        "query_key_value",
        "attention_out",
        "gate_up",
        "down",
        "head",
    ]


@needs_packing
@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.BOTH])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_any_sequence_of_operations_equals_a_forward_from_nothing(name: str, layout: Layout) -> None:
    engine = StaticEngine(model_of(name), capacity=CAPACITY, layout=layout)
    assert set(engine.layouts.values()) == {layout.value}

    @settings(max_examples=10, deadline=None, derandomize=True, database=None)
    @given(OPERATIONS)
    def check(operations: Sequence[tuple[str, int, int, int]]) -> None:
        engine.reset()
        replay(engine, model_of(name), operations)

    check()


@pytest.fixture(scope="module", params=[Layout.PACKED, Layout.BOTH])
def packed(request: pytest.FixtureRequest) -> Iterator[Session]:
    """The embedded pair with every weight packed, or both plain and packed."""
    from dataclasses import replace

    pair = pair_settings(capacity=512)
    with Session(replace(pair, engine=replace(pair.engine, layout=request.param))) as opened:
        assert {layout for each in opened.layouts.values() for layout in each.values()} == {request.param.value}
        yield opened


@pytest.mark.long
@needs_packing
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_every_method_emits_the_tokens_of_plain_decoding(packed: Session, session: Session, temperature: float) -> None:
    prompt = load_prompts("held_out", 1, skip=2)[0]
    request = Request(
        prompt_id=prompt.prompt_id,
        tokens=packed.encode(prompt.text),
        max_new_tokens=40,
        sampling=Sampling(temperature),
        seed=5,
    )
    done = packed.run(request, parse_policy("autoregressive"))
    assert session.run(request, parse_policy("autoregressive")).tokens == done.tokens  # of whatever layout
    for label in METHODS:
        assert packed.run(request, parse_policy(label)).tokens == done.tokens, label
