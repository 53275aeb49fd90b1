"""The wall: on real weights every policy emits the tokens of plain decoding, and replay gives the very rounds."""

from __future__ import annotations

import pytest

from executor.loop import Decoded
from executor.pair import Session
from executor.recording.prompts import load_prompts
from executor.request import Request
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import parse_policy
from tests.executor.same_rounds import assert_replayed
from traces.schema import RequestTrace, Sampling

POLICIES = [
    *(f"fixed_length:draft_length={length}" for length in range(1, 9)),
    *(f"pearl:draft_length={length}" for length in range(1, 9)),
    "confidence_stop:threshold=0.3",
    "confidence_stop:threshold=1.0,signal=margin,max_length=5",
    "adaedl:max_length=6,step=0.05",
    "product_rule:max_length=6",
    "saguaro:draft_length=3,fan_out=2",
    "saguaro:draft_length=4,fan_out=1,spread=uniform",
    "specbranch:uses_hrad=false,draft_length=5",
    "specbranch:uses_hrad=false,draft_length=4,on_miss=overlap,epsilon=0.5",
    "specbranch:uses_hrad=false,max_branches=1",
    "specbranch:uses_hrad=false,is_fixed_count=true,signal=margin,epsilon=0.8,prior_length=2",
    "outcome_hedging",
    "outcome_hedging:serial_length=3,max_branches=6",
    "outcome_hedging:slope=0,intercept=0.3,least_reach=0.2,max_branches=24,serial_length=1",
    "outcome_hedging:slope=0,intercept=0.3,hedges=geometric,draft_length=3,max_branches=8,serial_length=3",
    "outcome_hedging:hedges=confidence,least_acceptance=0.4,max_branches=6",
    "outcome_hedging:max_branches=0,serial_length=4",
    "pearl:draft_length=1,num_further=12",
    "specbranch:uses_hrad=false,draft_length=1,num_further=12",
    "outcome_hedging:draft_length=0,max_branches=6,num_further=12",
]
TEMPERATURES = (0.0, 0.7, 1.0)


def _request(session: Session, number: int, sampling: Sampling, max_new_tokens: int = 28) -> Request:
    prompt = load_prompts("held_out", 1, skip=number)[0]
    return Request(
        prompt_id=prompt.prompt_id,
        tokens=session.encode(prompt.text),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=3,
        noise_key=number,
    )


@pytest.fixture(scope="module")
def plain(session: Session) -> dict[tuple[float, int], tuple[Request, Decoded, RequestTrace]]:
    """Autoregressive decoding and its alignment trace, for each temperature and prompt."""
    found = {}
    for temperature in TEMPERATURES:
        for number in range(2):
            request = _request(session, number, Sampling(temperature))
            done = session.run(request, parse_policy("autoregressive"))
            found[temperature, number] = request, done, session.annotate(done, request_id=0, tail_depth=16).trace
    return found


@pytest.mark.parametrize("label", POLICIES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_tokens_and_rounds_are_those_of_plain_decoding_and_replay(
    session: Session,
    plain: dict[tuple[float, int], tuple[Request, Decoded, RequestTrace]],
    label: str,
    temperature: float,
) -> None:
    policy = parse_policy(label)
    for number in range(2):
        request, done, trace = plain[temperature, number]
        found = session.run(request, policy)
        assert found.tokens == done.tokens
        assert found.finish_reason == done.finish_reason
        assert_replayed([round_ for round_, _ in found.rounds], policy, trace)


def test_filters_and_temperature_are_applied_alike_on_both_models(session: Session) -> None:
    for sampling in (Sampling(0.8, top_k=5), Sampling(1.2, top_p=0.7), Sampling(1.0, top_k=20, top_p=0.9)):
        request = _request(session, 1, sampling)
        done = session.run(request, parse_policy("autoregressive"))
        trace = session.annotate(done, request_id=0, tail_depth=12).trace
        for label in ("fixed_length:draft_length=4", "pearl:draft_length=5", "saguaro:draft_length=3,fan_out=2"):
            found = session.run(request, parse_policy(label))
            assert found.tokens == done.tokens
            assert_replayed([round_ for round_, _ in found.rounds], parse_policy(label), trace)


def test_another_seed_gives_other_tokens_at_temperature_1(session: Session) -> None:
    policy: Policy = parse_policy("fixed_length:draft_length=3")
    first = Request(**{**vars(_request(session, 0, Sampling(1.0))), "ignore_eos": True})
    other = Request(**{**vars(first), "seed": 4})
    assert session.run(first, policy).tokens == session.run(first, policy).tokens
    assert session.run(first, policy).tokens != session.run(other, policy).tokens


def test_greedy_decoding_is_that_of_transformers(session: Session) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from executor.models.names import resolve_model

    model = AutoModelForCausalLM.from_pretrained(resolve_model("embedded", "target"), dtype=torch.float32)
    request = _request(session, 0, Sampling(0.0), max_new_tokens=40)
    with torch.inference_mode():
        theirs = model.generate(torch.tensor([request.tokens]), max_new_tokens=40, do_sample=False)[0].tolist()
    assert session.run(request, parse_policy("pearl:draft_length=4")).tokens == theirs[len(request.tokens) :]


def test_the_hugging_face_engine_gives_the_same_tokens_and_rounds(session: Session) -> None:
    from tests.settings import pair_settings

    request = _request(session, 1, Sampling(0.7))
    with Session(pair_settings(engine="hugging_face", capacity=256)) as slow:
        for label in ("pearl:draft_length=4", "saguaro:draft_length=3,fan_out=2"):
            theirs, ours = slow.run(request, parse_policy(label)), session.run(request, parse_policy(label))
            assert theirs.tokens == ours.tokens
            assert [round_ for round_, _ in theirs.rounds] == [round_ for round_, _ in ours.rounds]
