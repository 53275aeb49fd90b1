"""A draft whose head knows some tokens only: the law of all others is 0, and nothing that is emitted changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from executor.distilled_draft.starting import start_draft
from executor.models.engines.base import widened
from executor.models.engines.static import StaticEngine
from executor.models.loading import load_engine, load_tokenizer
from executor.models.names import resolve_model
from executor.models.settings import EngineKind, EngineSettings
from executor.models.sources.base import ModelError
from executor.models.stored.distilled import DraftCard, read_draft, vocabulary_digest, write_draft
from executor.noise import gumbel
from executor.pair import Session
from executor.recording.prompts import load_prompts
from executor.request import Request
from executor.roles.annotate import _ranks
from sim.decoding.policies.catalog import parse_policy
from tests.executor.models.tiny_models import STATIC, model_of, some_tokens
from tests.executor.same_rounds import assert_replayed
from tests.laws.verification_laws import Rule, emitted_law, proposal_law
from tests.settings import pair_settings
from traces.schema import Sampling

POLICIES = (
    "fixed_length:draft_length=4",
    "pearl:draft_length=3",
    "saguaro:draft_length=3,fan_out=2",
    "specbranch:uses_hrad=false,draft_length=4,on_miss=overlap,epsilon=0.5",
    "outcome_hedging:slope=0,intercept=0.3,least_reach=0.2,max_branches=12,serial_length=2",
)


def _head_tokens(vocab_size: int, share: float, seed: int = 1) -> torch.Tensor:
    return (torch.rand(vocab_size, generator=torch.Generator().manual_seed(seed)) < share).nonzero()[:, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft of the embedded target's first block and last two, whose head knows two thirds of the tokens."""
    target = resolve_model("embedded", "target")
    module = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    head_tokens = _head_tokens(2048, 0.67)
    draft = start_draft(module, blocks=(0, 10, 11), head_tokens=head_tokens)
    digest = vocabulary_digest(load_tokenizer(target).get_vocab())
    path = tmp_path_factory.mktemp("distilled") / "draft"
    write_draft(draft, head_tokens, DraftCard(target="embedded", target_fingerprint="", vocabulary=digest), path)
    return path


@pytest.fixture(scope="module")
def distilled(folder: Path) -> Iterator[Session]:
    with Session(pair_settings(draft=str(folder), capacity=512)) as session:
        yield session


@pytest.mark.parametrize("name", STATIC)
def test_a_draft_of_all_blocks_and_some_tokens_gives_the_targets_logits_of_these_tokens(name: str) -> None:
    target = model_of(name)
    head_tokens = _head_tokens(target.config.vocab_size, 0.5)
    draft = start_draft(target, blocks=range(target.config.num_hidden_layers), head_tokens=head_tokens)
    own = StaticEngine(draft.eval(), capacity=64, head_tokens=head_tokens)
    whole = StaticEngine(target, capacity=64)
    tokens = some_tokens(9)
    assert (own.vocab_size, own.head_tokens is head_tokens) == (whole.vocab_size, True)
    assert torch.allclose(own.extend(tokens), whole.extend(tokens)[:, head_tokens], atol=1e-5)
    for engine in (own, whole):
        engine.open_branches([9, 4])
    assert torch.allclose(own.grow([3, 5]), whole.grow([3, 5])[:, head_tokens], atol=1e-5)


def test_stored_weights_come_back_within_half_a_step_of_their_rows_scale(folder: Path, tmp_path: Path) -> None:
    target = model_of("qwen3")
    head_tokens = _head_tokens(target.config.vocab_size, 0.5)
    draft = start_draft(target, blocks=(0, 1), head_tokens=head_tokens)
    write_draft(draft, head_tokens, DraftCard(target="t", target_fingerprint="", vocabulary=""), tmp_path)
    table = target.get_input_embeddings().weight.detach()
    back, tokens = read_draft(tmp_path, table)
    assert torch.equal(tokens, head_tokens)
    for name, value in draft.state_dict().items():
        step = value.abs().amax(-1, keepdim=True) / 127 if value.ndim == 2 else torch.tensor(0.0)
        assert bool(((back.state_dict()[name] - value).abs() <= 0.501 * step).all()), name
    with pytest.raises(ModelError, match="reads the embedding table of embedded"):
        read_draft(folder, table)


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_every_policy_emits_the_tokens_of_plain_decoding_and_replays(distilled: Session, temperature: float) -> None:
    prompt = load_prompts("held_out", 1)[0]
    request = Request(
        prompt_id="p",
        tokens=distilled.encode(prompt.text),
        max_new_tokens=40,
        sampling=Sampling(temperature),
        seed=3,
        ignore_eos=True,
    )
    done = distilled.run(request, parse_policy("autoregressive"))
    annotation = distilled.annotate(done, request_id=0, tail_depth=16)
    head_tokens = distilled.engine.head_tokens
    assert head_tokens is not None
    is_known = np.isin(done.tokens, head_tokens.numpy())
    assert 0 < is_known.mean() < 1, "the text has tokens of both kinds"
    assert [rank < len(head_tokens) for rank in annotation.trace.ranks] == is_known.tolist()
    assert set(np.ravel(annotation.columns["draft_top_ids"])) <= set(head_tokens.tolist())
    for label in POLICIES:
        found = distilled.run(request, parse_policy(label))
        assert found.tokens == done.tokens, label
        assert_replayed([round_ for round_, _ in found.rounds], parse_policy(label), annotation.trace)
    assert sum(rank == 0 for rank in annotation.trace.ranks) > 0, "some tokens are guessed, or nothing was tested"


def test_filters_count_the_heads_tokens_alone(distilled: Session) -> None:
    prompt = load_prompts("held_out", 1, skip=1)[0]
    request = Request(
        prompt_id="p",
        tokens=distilled.encode(prompt.text),
        max_new_tokens=24,
        sampling=Sampling(0.9, top_k=20, top_p=0.9),
        ignore_eos=True,
    )
    done = distilled.run(request, parse_policy("autoregressive"))
    trace = distilled.annotate(done, request_id=0, tail_depth=8).trace
    found = distilled.run(request, parse_policy("pearl:draft_length=3"))
    assert found.tokens == done.tokens
    assert_replayed([round_ for round_, _ in found.rounds], parse_policy("pearl:draft_length=3"), trace)


def test_noise_of_chosen_tokens_is_that_of_the_whole_vocabulary() -> None:
    columns = _head_tokens(997, 0.3)
    whole = gumbel(5, 2, [0, 3, 4], 997)
    assert torch.equal(gumbel(5, 2, [0, 3, 4], 997, columns=columns), whole[:, columns])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_ranks_are_those_of_a_whole_head_whose_other_scores_are_minus_infinity(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    head_tokens = torch.randperm(23, generator=rng)[:9].sort().values
    scores = torch.randint(4, (23, 9), generator=rng).float()  # with ties
    whole = widened(scores, head_tokens, 23)
    tokens = torch.arange(23)
    is_known = torch.isin(tokens, head_tokens)
    own = torch.tensor(_ranks(scores, tokens, head_tokens))
    assert torch.equal(own[is_known], torch.tensor(_ranks(whole, tokens, None))[is_known])
    assert (own[~is_known] == len(head_tokens)).all()


@pytest.mark.parametrize("rule", [Rule.RATIO, Rule.POINT_MASS, Rule.TOP_PLUS_SAMPLE, Rule.SHARED_NOISE])
@pytest.mark.parametrize("known", [(0, 2), (1,), (3, 4)])
def test_every_rule_emits_the_targets_law_whatever_tokens_the_head_knows(rule: Rule, known: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    target, draft = rng.dirichlet(np.ones(5)), np.zeros(5)
    draft[list(known)] = rng.dirichlet(np.ones(len(known)))
    emitted = sum(
        probability * emitted_law(rule, target, draft, tokens)
        for tokens, probability in proposal_law(rule, draft, len(known))
        if probability > 0
    )
    assert np.abs(emitted - target).sum() < 1e-12


def test_a_target_of_another_vocabulary_and_engines_without_such_heads_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="made for the vocabulary of embedded"):
        _other_vocabulary(folder, tmp_path)
    with pytest.raises(ModelError, match="resident engine"):
        load_engine(folder, EngineSettings(kind=EngineKind.RESIDENT, embedding_of=resolve_model("embedded", "target")))
    with pytest.raises(ModelError, match="name the target"):
        load_engine(folder, EngineSettings())
    with pytest.raises(ModelError, match="can only be a draft"):
        load_tokenizer(folder)


def _other_vocabulary(folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    from executor.models.loading import check_vocabularies

    other = shutil.copytree(folder, tmp_path / "other")
    card = json.loads((other / "draft.json").read_text())
    (other / "draft.json").write_text(json.dumps({**card, "vocabulary": "of another tokenizer"}))
    check_vocabularies(resolve_model("embedded", "target"), other)
