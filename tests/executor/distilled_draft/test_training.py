"""A draft of a tiny made-up target is trained for a few steps: what is written, what is learnt, and what can go on later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from executor.distilled_draft.conversations import Template, template_of
from executor.distilled_draft.corpus import Corpus, Role, Shard, block_mask, read_shard, shard_paths, write_shard
from executor.distilled_draft.learning import column_of, distillation_loss, log_laws
from executor.distilled_draft.openings import Task, draw_opening
from executor.distilled_draft.settings import DraftSettings, LearningPlan, WritingPlan
from executor.distilled_draft.starting import fit_head, start_draft
from executor.distilled_draft.texts import read_texts, write_text_shards
from executor.distilled_draft.training import Stage, train_draft
from executor.distilled_draft.writing import write_conversations
from executor.models.loading import check_vocabularies, load_engine
from executor.models.names import resolve_model
from executor.models.settings import EngineSettings
from executor.models.stored.distilled import read_draft_card

pytestmark = pytest.mark.long

VOCAB, LENGTH = 2048, 160
CHAT = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
PLAN = WritingPlan(num_streams=6, length=LENGTH, num_top=8)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of three blocks with the embedded pair's tokenizer and a chat template; some tokens come often."""
    folder = tmp_path_factory.mktemp("target")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            tie_word_embeddings=False,
        )
        model = LlamaForCausalLM(config)
        model.model.embed_tokens.weight.data.mul_(50)
        model.lm_head.weight.data.mul_(40).mul_((torch.arange(VOCAB) < 300)[:, None])
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("embedded", "target"))
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(target: Path) -> tuple[Any, Any, Template]:
    tokenizer = AutoTokenizer.from_pretrained(target)
    model = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    return model, tokenizer, template_of(tokenizer, [2])


@pytest.fixture(scope="module")
def shard(loaded: tuple[Any, Any, Template]) -> Shard:
    return write_conversations(*loaded, PLAN, 0, say=lambda _: None)


def test_a_template_falls_into_its_pieces(loaded: tuple[Any, Any, Template]) -> None:
    _, tokenizer, template = loaded
    pieces = [tokenizer.decode(list(piece)) for piece in (template.before, template.after, template.between)]
    assert pieces == ["[user] ", "</s>\n[assistant] ", "</s>\n[user] "]
    tokenizer_without = AutoTokenizer.from_pretrained(resolve_model("embedded", "target"))
    assert template_of(tokenizer_without, [2]).before == ()


def test_laws_beside_a_token_are_those_of_a_forward_over_its_own_conversation(
    loaded: tuple[Any, Any, Template], shard: Shard
) -> None:
    model, _, _ = loaded
    num_checked = 0
    for stream in range(2):
        for start in np.unique(shard.starts[stream]):
            own = np.flatnonzero(shard.starts[stream] == start)
            tokens = torch.from_numpy(shard.tokens[stream, own].astype(np.int64))
            with torch.inference_mode():
                law = model(input_ids=tokens[None], use_cache=False).logits[0].log_softmax(-1)
            stored = torch.from_numpy(shard.top_log_probs[stream, own].astype(np.float32))
            assert torch.allclose(law.topk(8, dim=-1).values, stored, atol=5e-3)
            num_checked += 1
    assert num_checked >= 2


def test_texts_are_read_in_pieces_that_see_nothing_of_each_other(
    loaded: tuple[Any, Any, Template], tmp_path: Path
) -> None:
    model, tokenizer, _ = loaded
    with pytest.raises(ValueError, match="no text below"):
        read_texts(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "long.md").write_text("".join(f"Line {i} of some text that goes on.\n" for i in range(400)))
    (tmp_path / "short.txt").write_text("A few words.")
    plan = replace(PLAN, num_streams=3)
    for _ in range(2):  # the second call adds another one
        write_text_shards(
            model, tokenizer, read_texts(tmp_path), plan, tmp_path / "shards", minutes=0, say=lambda _: None
        )
    first, second = map(read_shard, shard_paths(tmp_path / "shards"))
    assert (first.tokens != second.tokens).any()
    own = np.flatnonzero(first.starts[0] == first.starts[0, -1])
    tokens = torch.from_numpy(first.tokens[0, own].astype(np.int64))
    with torch.inference_mode():
        law = model(input_ids=tokens[None], use_cache=False).logits[0].log_softmax(-1)
    assert torch.allclose(law.topk(8, dim=-1).values, torch.from_numpy(first.top_log_probs[0, own]).float(), atol=5e-3)
    assert set(first.roles.ravel().tolist()) == {Role.TEXT}


def test_conversations_are_a_function_of_the_plan_and_the_number(
    loaded: tuple[Any, Any, Template], shard: Shard
) -> None:
    again = write_conversations(*loaded, PLAN, 0, say=lambda _: None)
    other = write_conversations(*loaded, PLAN, 1, say=lambda _: None)
    assert (again.tokens == shard.tokens).all()
    assert (again.starts == shard.starts).all()
    assert (other.tokens != shard.tokens).any()
    roles = set(shard.roles.ravel().tolist())
    assert {Role.GIVEN, Role.PROMPT, Role.ANSWER} <= roles
    at_zero = (shard.roles[:, 1:] == Role.ANSWER) & (shard.temperatures[:, 1:] == 0)
    assert at_zero.any()
    assert (shard.tokens[:, 1:] == shard.top_tokens[:, :-1, 0])[at_zero].mean() > 0.99  # near ties aside


def test_shards_come_back_as_they_were(shard: Shard, tmp_path: Path) -> None:
    write_shard(shard, tmp_path / "shard-7-0000.npz")
    (tmp_path / "shard-7-0001.part.npz").write_bytes(b"broken off")
    (back,) = map(read_shard, shard_paths(tmp_path))
    assert all((getattr(back, name) == getattr(shard, name)).all() for name in Shard.__dataclass_fields__)
    (tmp_path / "shard-7-0002.npz").write_bytes(b"no shard")
    with pytest.raises(ValueError, match="no shard of conversations"):
        list(map(read_shard, shard_paths(tmp_path)))


def test_what_is_written_meanwhile_is_learnt_from(shard: Shard, tmp_path: Path) -> None:
    write_shard(shard, tmp_path / "shard-7-0000.npz")
    corpus = Corpus(tmp_path)
    before, held_out = corpus.num_tokens, sum(len(batch.tokens) for batch in corpus.held_out_batches(1, 1000))
    corpus.refresh()
    assert corpus.num_tokens == before
    write_shard(shard, tmp_path / "shard-1-0000.npz")  # of another writer, whose name comes first
    corpus.refresh()
    assert corpus.num_tokens == 2 * before
    assert sum(len(batch.tokens) for batch in corpus.held_out_batches(1, 1000)) == 2 * held_out
    assert {index for index, _ in corpus._rows} == {0, 1}
    write_shard(
        replace(shard, **{name: getattr(shard, name)[:, :9] for name in Shard.__dataclass_fields__}),
        tmp_path / "shard-9-0000.npz",
    )
    with pytest.raises(ValueError, match="several lengths"):
        corpus.refresh()


def test_what_is_held_out_goes_by_the_prompt_and_never_weighs_in_training(shard: Shard, tmp_path: Path) -> None:
    for number in range(2):  # the same conversations twice: equal prompts stay on one side
        write_shard(shard, tmp_path / f"shard-7-{number:04d}.npz")
    corpus = Corpus(tmp_path)
    first, second = (one.is_held_out for one in corpus.shards)
    assert (first == second).all()
    one = corpus.shards[0]
    one.__dict__["is_held_out"] = one.starts == 0  # the first conversation of each stream
    batch = corpus._batch([(0, 0), (0, 1)], is_held_out=False)
    assert (batch.weights.numpy()[one.starts[:2] == 0] == 0).all()
    kept = corpus._batch([(0, 0), (0, 1)], is_held_out=True)
    assert not ((batch.weights > 0) & (kept.weights > 0)).any()
    assert len(batch.top_tokens) == int((batch.weights > 0).sum())


def test_a_conversation_sees_nothing_of_the_one_before() -> None:
    mask = block_mask(torch.tensor([[0, 0, 2, 2]]))[0, 0]
    assert mask.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]


def test_a_whole_copy_of_the_target_has_the_least_loss_and_a_step_away_has_more(
    loaded: tuple[Any, Any, Template], shard: Shard, tmp_path: Path
) -> None:
    model, _, _ = loaded
    write_shard(shard, tmp_path / "shard-7-0000.npz")
    corpus = Corpus(tmp_path)
    head_tokens = corpus.frequent_tokens(1024, VOCAB)
    draft = start_draft(model, blocks=(0, 1, 2), head_tokens=head_tokens)
    batch = corpus.training_batch(4, np.random.default_rng(0))
    columns = column_of(head_tokens, VOCAB)
    with torch.no_grad():
        whole = distillation_loss(log_laws(draft, batch), batch, columns)
        probs = torch.where(columns[batch.top_tokens] >= 0, batch.top_probs, 0)
        weights = batch.weights[batch.weights > 0]
        entropy = -(weights[:, None] * probs * probs.clamp(min=1e-9).log()).sum() / (weights * probs.sum(-1)).sum()
        draft.lm_head.weight.add_(
            0.3 * torch.randn(draft.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
        )
        worse = distillation_loss(log_laws(draft, batch), batch, columns)
    assert float(whole) == pytest.approx(float(entropy), rel=0.05)
    assert worse > whole + 0.01


def test_a_fitted_head_undoes_any_change_of_scale_of_the_states_that_it_reads(
    loaded: tuple[Any, Any, Template], shard: Shard, tmp_path: Path
) -> None:
    model, _, _ = loaded
    write_shard(shard, tmp_path / "shard-7-0000.npz")
    corpus = Corpus(tmp_path)
    head_tokens = corpus.frequent_tokens(512, VOCAB)
    columns, batch = column_of(head_tokens, VOCAB), corpus.training_batch(6, np.random.default_rng(3))
    draft = start_draft(model, blocks=(0, 1, 2), head_tokens=head_tokens)

    def loss() -> float:
        with torch.no_grad():
            return float(distillation_loss(log_laws(draft, batch), batch, columns))

    least = loss()
    draft.model.norm.weight.data.mul_(torch.linspace(0.3, 3.0, 32))
    assert loss() > least + 0.02
    batches = [corpus.training_batch(6, np.random.default_rng(index)) for index in range(2)]
    fit_head(model, draft, batches, head_tokens)
    assert loss() < least + 0.002


def test_training_ends_with_a_draft_that_runs_and_goes_on_from_its_checkpoint(target: Path, tmp_path: Path) -> None:
    settings = DraftSettings(
        target=str(target),
        num_layers=2,
        num_head_tokens=400,
        writing=PLAN,
        learning=LearningPlan(
            batch_streams=4, learning_rate=3e-3, warmup_steps=2, report_every=10, max_steps=20, num_held_out_streams=8
        ),
    )
    lines: list[str] = []
    folder = train_draft(settings, tmp_path / "work", minutes=0.001, stage=Stage.WRITE, say=lines.append).parent
    for _ in range(2):
        train_draft(
            settings, folder, minutes=10, stage=Stage.LEARN, resumes=bool((folder / "draft").exists()), say=lines.append
        )
    card = read_draft_card(folder / "draft")
    assert (card.target, card.training["tokens_written"]) == (str(target), PLAN.num_streams * LENGTH)
    steps = [line for line in lines if line.startswith("step")]
    assert [line.split(":")[0] for line in steps] == ["step 10", "step 20", "step 30", "step 40"]
    losses = [float(line.split("loss ")[1].split(";")[0]) for line in steps]
    assert losses[-1] < losses[0], lines
    assert "going on after 20 steps" in "\n".join(lines)
    check_vocabularies(target, folder / "draft")
    engine = load_engine(folder / "draft", EngineSettings(embedding_of=str(target), capacity=64))
    assert engine.extend([5, 6, 7]).shape == (3, 400)
    with pytest.raises(ValueError, match="--resume"):
        train_draft(settings, folder, minutes=1, stage=Stage.LEARN)
    with pytest.raises(ValueError, match="another shape"):
        train_draft(replace(settings, num_layers=3), folder, minutes=1, stage=Stage.LEARN, resumes=True)


def test_openings_are_of_every_task_and_whole() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_opening(rng) for _ in range(600)]
    assert {one.task for one in drawn} == set(Task)
    assert not any("{" in one.text for one in drawn)
    assert {draw_opening(rng, has_template=False).task for _ in range(20)} == {Task.TEXT}
