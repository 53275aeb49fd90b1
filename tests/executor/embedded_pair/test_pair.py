"""The embedded pair: its corpus is split cleanly, its training works end to end, and the shipped weights are sound."""

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from executor.embedded_pair.corpus import (
    Part,
    held_out_prompts,
    is_held_out,
    part_of,
    source_files,
    split_into_blocks,
    standard_library,
    training_prompts,
)
from executor.embedded_pair.sampling import generate, noisy_scores, position_noise
from executor.embedded_pair.settings import quick_preset
from executor.embedded_pair.shapes import load_model, load_tokenizer
from executor.embedded_pair.streams import read_corpus
from executor.embedded_pair.tokens import BOS_ID, EOS_ID
from executor.embedded_pair.training.target import held_out_loss
from executor.embedded_pair.training.train import train_pair
from executor.embedded_pair.training.unlikelihood import unlikelihood_loss
from tests.benchmarks.pair_quality import (
    DRAFT_NAMES,
    PAIR_FOLDER,
    TARGET_NAME,
    measure_cost_ratios,
    measure_pair,
    render_markdown,
)

SMALL_LIBRARY = (
    *("ast.py", "bisect.py", "calendar.py", "dataclasses.py", "heapq.py", "inspect.py", "textwrap.py"),
    *("functools.py", "json/decoder.py", "xmlrpc/client.py"),  # held out
)
FUNCTION_FILE = '''"""Head."""
import os

CONSTANT = 1


# About f.
@decorate(
    1,
)
def f(x):
    """def g: not a definition."""
    def inner():
        return x
    return inner

LATER = f(2)

class C(object):
    """Doc."""

    field = 3

    @property
    def value(self):
        return self.field

    alias = value

if LATER:
    def h():
        pass
else:
    async def h():
        pass
'''


@pytest.fixture(scope="module")
def small_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    for relative_path in SMALL_LIBRARY:
        (folder / relative_path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(standard_library() / relative_path, folder / relative_path)
    return folder


@pytest.fixture(scope="module")
def quick_pair(small_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    train_pair(replace(quick_preset(), library=small_library), folder)
    return folder


def test_no_file_is_in_two_parts_and_held_out_tests_are_in_none() -> None:
    paths = {part: {file.relative_path for file in source_files(part)} for part in (Part.TRAINING, Part.HELD_OUT)}
    assert not paths[Part.TRAINING] & paths[Part.HELD_OUT]
    assert 15 <= len(paths[Part.HELD_OUT]) <= 60, "about 6 % of some 600 files"
    assert all(map(is_held_out, paths[Part.HELD_OUT]))
    assert not any(map(is_held_out, paths[Part.TRAINING]))
    tests = [f"test/test_{number}.py" for number in range(300)]
    assert {part_of(path) for path in tests if is_held_out(path)} == {None}
    assert {part_of(path) for path in tests if not is_held_out(path)} == {Part.TRAINING_TESTS}


def test_blocks_concatenate_to_the_file() -> None:
    for file in source_files(Part.HELD_OUT):
        assert "".join(block.text for block in split_into_blocks(file.text)) == file.text, file.relative_path


def test_blocks_start_at_definitions_with_their_decorators_and_comments() -> None:
    blocks = split_into_blocks(FUNCTION_FILE)
    assert "".join(block.text for block in blocks) == FUNCTION_FILE
    names = [block.name for block in blocks]
    assert names == [None, "f", None, "C", "C.value", None, None, "h", "h"]
    function = next(block for block in blocks if block.name == "f")
    assert function.text.startswith("# About f.\n@decorate(")
    assert function.text.rstrip().endswith("return inner"), "an inner function does not cut its function"


def test_a_file_that_does_not_parse_is_one_block() -> None:
    assert [block.text for block in split_into_blocks("def f(:\n  pass\n")] == ["def f(:\n  pass\n"]


@pytest.mark.long
def test_prompts_open_functions_of_their_own_part_alone() -> None:
    texts = {file.relative_path: file.text for file in source_files(Part.HELD_OUT)}
    prompts = held_out_prompts(128)
    assert len({prompt.name for prompt in prompts}) == 128
    for prompt in prompts:
        path = prompt.name.split(":")[0]
        assert is_held_out(path)
        assert prompt.text in texts[path], prompt.name
        assert "def " in prompt.text
        assert prompt.text.endswith("\n")
    assert not any(is_held_out(prompt.name.split(":")[0]) for prompt in training_prompts(128))


def test_prompt_order_is_fixed_by_the_seed(small_library: Path) -> None:
    names = [[prompt.name for prompt in training_prompts(20, seed=seed, root=small_library)] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    shorter = [prompt.name for prompt in training_prompts(5, seed=0, root=small_library)]
    assert shorter == names[0][:5]


def test_too_many_prompts_is_an_error_that_says_how_many_there_are(small_library: Path) -> None:
    with pytest.raises(ValueError, match="10000 held out prompts"):
        held_out_prompts(10_000, root=small_library)


@pytest.mark.long
def test_quick_training_yields_a_pair_whose_loss_fell(quick_pair: Path, small_library: Path) -> None:
    settings = replace(quick_preset(), library=small_library)
    corpus = read_corpus(
        vocab_size=settings.vocab_size, library=small_library, tokenizer=load_tokenizer(quick_pair / TARGET_NAME)
    )
    uniform_loss = math.log(settings.vocab_size)
    for name in (TARGET_NAME, *settings.draft_shapes):
        model = load_model(quick_pair / name, "cpu")
        loss = held_out_loss(model, corpus, settings, settings.target.sequence_length)
        assert loss < uniform_loss - 0.3, f"{name}: {loss:.3f} nats, a uniform guess has {uniform_loss:.3f}"
    assert not list(quick_pair.glob("*.pt"))
    assert not list(quick_pair.glob("*.part"))


def test_quality_of_a_pair_renders_as_a_page(quick_pair: Path) -> None:
    quality = measure_pair(
        quick_pair, num_prompts=4, num_new_tokens=12, num_windows=4, temperatures=(1.0,), draft_names=("draft",)
    )
    found = quality.drafts["draft"][1.0]
    assert 0 < found.overlap < 1
    assert found.hit_rates[1] == pytest.approx(found.acceptance), "the noisy top 1 is the draft's own token"
    assert found.hit_rates[1] <= found.hit_rates[2] <= found.hit_rates[8]
    page = render_markdown(quality, cost_ratios={"draft": 6.5})
    assert "| 6.5 |" in page
    assert f"{found.acceptance:.3f}" in page


def test_steps_are_timed_on_one_core_which_is_given_back(quick_pair: Path) -> None:
    before = os.sched_getaffinity(0), torch.get_num_threads()
    found = measure_cost_ratios(quick_pair, ["draft"], num_blocks=1)
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before
    assert list(found) == ["draft"]
    assert found["draft"] > 0


def test_padded_generation_matches_one_prompt_alone(quick_pair: Path) -> None:
    model = load_model(quick_pair / TARGET_NAME, "cpu").double()
    prompts = [[BOS_ID, 40, 50, 60, 70], [BOS_ID, 45]]
    together = generate(model, prompts, num_new_tokens=12, temperature=0.0, seed=0)
    alone = [generate(model, [prompt], num_new_tokens=12, temperature=0.0, seed=0)[0] for prompt in prompts]
    assert together == alone


def test_noisy_argmax_samples_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    num_draws = 20_000
    noise = position_noise(3, 0, (num_draws, 4))
    counts = noisy_scores(logits.expand(num_draws, 4), noise, temperature=0.7).argmax(dim=-1).bincount(minlength=4)
    expected = torch.softmax(logits / 0.7, dim=-1)
    errors = (counts / num_draws - expected).abs() / (expected * (1 - expected) / num_draws).sqrt()
    assert errors.max() <= 4, f"a token's share is {errors.max():.1f} standard errors off"


def test_unlikelihood_punishes_repeated_tokens_alone() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 1, 2] = 5.0
    tokens = torch.tensor([[1, 2, 3]])
    none = unlikelihood_loss(logits, tokens, torch.tensor([[False, False, False]]))
    repeated = unlikelihood_loss(logits, tokens, torch.tensor([[False, True, False]]))
    probability = math.exp(5) / (math.exp(5) + 3)
    assert none.item() == 0.0
    assert repeated.item() == pytest.approx(-math.log(1 - probability), rel=1e-4)


def test_shipped_models_load_and_agree_on_one_vocabulary() -> None:
    vocabularies = []
    for name in (TARGET_NAME, *DRAFT_NAMES):
        folder = PAIR_FOLDER / name
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BOS_ID, EOS_ID)
        assert (model.config.bos_token_id, model.generation_config.eos_token_id) == (BOS_ID, EOS_ID)
        assert model.config.vocab_size == len(tokenizer)
        assert tokenizer("def f():\n").input_ids[0] == BOS_ID
        assert tokenizer.decode(tokenizer("x = 'é'\n").input_ids, skip_special_tokens=True) == "x = 'é'\n"
        vocabularies.append(tokenizer.get_vocab())
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]


def test_shipped_files_are_small_and_readable_by_everyone() -> None:
    files = [path for path in PAIR_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    folders = {folder: {path.name for path in files if path.parent.name == folder} for folder in (TARGET_NAME, "hrad")}
    assert folders == {TARGET_NAME: names, "hrad": {"predictor.json", "predictor.safetensors"}}
    assert {path.name for path in files if path.parent.name != "hrad"} == names
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)


def test_shipped_target_has_learnt_the_language_of_held_out_files() -> None:
    tokenizer = load_tokenizer(PAIR_FOLDER / TARGET_NAME)
    model = load_model(PAIR_FOLDER / TARGET_NAME, "cpu")
    prompts = held_out_prompts(8)
    losses = [
        model(input_ids=ids, labels=ids).loss.item()
        for ids in (torch.tensor([tokenizer.encode(prompt.text).ids]) for prompt in prompts)
    ]
    mean_loss = sum(losses) / len(losses)
    assert mean_loss < 3.5, f"{mean_loss:.2f} nats a token; a uniform guess has {math.log(2048):.2f}"
