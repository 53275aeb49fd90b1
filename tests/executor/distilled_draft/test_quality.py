"""The quality page: what is read of prompts, and numbers that are known beforehand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from executor.distilled_draft.starting import start_draft
from executor.models.loading import load_tokenizer
from executor.models.names import resolve_model
from executor.models.stored.distilled import DraftCard, vocabulary_digest, write_draft
from tests.benchmarks.draft_quality import Answer, measure, read_tasks, render, summarise
from tests.settings import pair_settings


def _prompts(folder: Path) -> Path:
    rows = {
        "spec_bench_question": [
            {"category": category, "turns": [f"def {category}(a, b):\n", "and then?"]}
            for category in ("writing", "writing", "math", "qa", "qa")
        ],
        "gsm8k_test": [{"question": "def count(apples):\n", "answer": "4"}],
        "humaneval": [{"prompt": "def has_close(numbers):\n"}],
    }
    for name, lines in rows.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as stream:
            stream.write("\n".join(map(json.dumps, lines)))
    return folder


def test_prompts_are_grouped_by_task_and_categories_of_mt_bench_take_turns(tmp_path: Path) -> None:
    tasks = read_tasks(_prompts(tmp_path), 2)
    assert {task: len(prompts) for task, prompts in tasks.items()} == {
        "multi-turn": 2,
        "qa": 2,
        "GSM8K": 1,
        "HumanEval": 1,
    }
    assert [prompt.text for prompt in tasks["multi-turn"]] == ["def writing(a, b):\n", "def math(a, b):\n"]
    with pytest.raises(ValueError, match="no prompts at"):
        read_tasks(tmp_path / "nowhere", 2)


def test_findings_of_known_answers() -> None:
    sure, unsure = [0.9, 0.1, 2.0], [0.2, 3.0, 0.1]
    first = Answer(np.array([0, 0, 3]), np.array([sure, sure, unsure]), np.array([0.9, 0.8, 0.1]), 2)
    second = Answer(np.array([1]), np.array([unsure]), np.array([0.2]), 1)
    found = summarise([first, second])
    assert (found.acceptance, found.overlap, found.known_share) == pytest.approx((0.5, 0.5, 0.75))
    assert found.hit_rates == {1: 0.5, 2: 0.75, 4: 1.0, 8: 1.0}
    assert set(found.signal_auc.values()) == {1.0}
    # Deviations of the two answers: 2 - 0.5 * 3 and 0 - 0.5 * 1.
    assert found.standard_error == pytest.approx(np.sqrt(0.25 + 0.25) / 4)


@pytest.mark.long
def test_a_draft_that_is_its_target_but_for_the_heads_tokens_misses_only_those(tmp_path: Path) -> None:
    target = resolve_model("embedded", "target")
    module = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    head_tokens = torch.arange(0, 2048)[torch.arange(2048) % 8 != 3]
    draft = start_draft(module, blocks=range(12), head_tokens=head_tokens)
    card = DraftCard(
        target="embedded",
        target_fingerprint="",
        vocabulary=vocabulary_digest(load_tokenizer(target).get_vocab()),
        training={"steps": 0},
    )
    write_draft(draft, head_tokens, card, tmp_path / "draft")
    tasks = {"qa": read_tasks(_prompts(tmp_path), 2)["qa"]}
    pair = pair_settings(draft=str(tmp_path / "draft"), capacity=256)
    found = measure(pair, tasks, [0.0], 24)
    one = found[0.0]["all"]
    assert one == found[0.0]["qa"]
    assert one.known_share < 1
    assert one.known_share - 0.1 <= one.acceptance <= one.known_share  # int8 may flip a near tie
    page = render(found, pair, max_new_tokens=24, c=3.0, notes="A note.")
    assert "# Quality of the draft for embedded" in page
    assert f"| all | {one.acceptance:.3f} (" in page
    assert "steps 0" in page
