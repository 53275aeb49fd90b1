"""Streams of a shared device: what is asked for is what is made, and what cannot be is said; with a real GPU, used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from executor.pair import Session
from executor.request import Request
from executor.resident.streams import two_streams
from sim.decoding.policies.catalog import parse_policy
from tests.settings import pair_settings
from traces.schema import Sampling

GPU = torch.device("cuda", 1)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is asked of a GPU with 132 multiprocessors, which need not be there."""
    calls: list[tuple[str, Any]] = []

    def stream(device: torch.device, *, priority: int) -> str:
        calls.append(("stream", (device, priority)))
        return f"priority {priority}"

    def create(*, num_sms: int, device_id: int) -> SimpleNamespace:
        calls.append(("context", (num_sms, device_id)))
        return SimpleNamespace(Stream=lambda: f"{num_sms} multiprocessors")

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "GreenContext", SimpleNamespace(create=create), raising=False)
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return calls


def test_the_target_goes_first(made: list[tuple[str, Any]]) -> None:
    streams: Any = two_streams(GPU)
    assert (streams.draft, streams.target, streams.held) == ("priority 0", "priority -1", None)
    assert {place for _, (place, _) in made} == {GPU}


def test_a_confined_draft_leaves_the_target_everything(made: list[tuple[str, Any]]) -> None:
    streams: Any = two_streams(GPU, 32)
    assert (streams.draft, streams.target) == ("32 multiprocessors", "priority -1")
    assert ("context", (32, 1)) in made
    assert streams.held.Stream() == streams.draft  # the context lives as long as its stream
    for impossible in (-1, 133):
        with pytest.raises(ValueError, match="has 132 multiprocessors, so the draft can have 1 to 132"):
            two_streams(GPU, impossible)


def test_a_torch_that_cannot_says_so(made: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: int) -> None:
        raise RuntimeError("PyTorch was not built with\nGreen Context support!")

    monkeypatch.setattr(torch.cuda, "GreenContext", SimpleNamespace(create=refuse), raising=False)
    with pytest.raises(ValueError, match=r"cannot confine the draft .*not built with Green Context support"):
        two_streams(GPU, 8)
    monkeypatch.delattr(torch.cuda, "GreenContext")
    with pytest.raises(ValueError, match="cannot confine the draft"):
        two_streams(GPU, 8)


def test_only_a_shared_gpu_is_divided() -> None:
    assert two_streams(torch.device("cpu")) == (None, None, None)
    with pytest.raises(ValueError, match="the device is cpu: leave it out"):
        Session(pair_settings(engine="resident", draft_sms=8, capacity=64))
    with pytest.raises(ValueError, match="two models that share a GPU"):
        Session(pair_settings(draft_sms=8))
    with pytest.raises(ValueError, match="two models that share a GPU"):
        Session(pair_settings(engine="resident", transport="distributed", draft_sms=8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("label", ["pearl:draft_length=4", "specbranch:uses_hrad=false", "saguaro"])
def test_a_confined_draft_changes_no_token(label: str) -> None:
    def tokens(session: Session) -> list[int]:
        request = Request(
            prompt_id="p",
            tokens=session.encode("def f(x):"),
            max_new_tokens=32,
            sampling=Sampling(1.0),
            ignore_eos=True,
        )
        return list(session.run(request, parse_policy(label)).tokens)

    found = []
    for draft_sms in (0, 16):
        with Session(pair_settings(engine="resident", device="cuda", capacity=256, draft_sms=draft_sms)) as session:
            found.append(tokens(session))
    assert found[0] == found[1]
