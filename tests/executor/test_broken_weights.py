"""A model whose logits are not numbers is an error that names it, on every engine, and never a success."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from executor.errors import ExecutorError
from executor.models.names import resolve_model
from executor.pair import Session
from executor.request import Request
from sim.decoding.policies.catalog import parse_policy
from tests.settings import pair_settings
from traces.schema import Rule, Sampling


def _broken(folder: Path, role: str, value: float) -> str:
    shutil.copytree(resolve_model("embedded", role), folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if "down_proj" in name or "o_proj" in name)
    weights[name].view(-1)[0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


ENGINES = ["static", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hugging_face", "resident"))]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize(
    ("value", "temperature"), [(math.nan, 0.0), pytest.param(math.inf, 1.0, marks=pytest.mark.slow)]
)
def test_logits_that_are_no_numbers_are_an_error(
    tmp_path: Path, engine: str, role: str, value: float, temperature: float
) -> None:
    folder = _broken(tmp_path / "broken", role, value)
    request = Request(prompt_id="p", tokens=(5, 6, 7), max_new_tokens=12, sampling=Sampling(temperature))
    reason = rf"{folder}.*the {role}'s logits after position \d+ hold (nan|inf|-inf) in float32"
    with (
        Session(pair_settings(engine=engine, capacity=128, **{role: folder})) as session,
        pytest.raises(ExecutorError, match=reason) as refusal,
    ):
        session.run(request, parse_policy("fixed_length:draft_length=3"))
    assert "executor." not in str(refusal.value)


def test_branches_of_a_broken_draft_are_an_error_too_and_close_the_session(tmp_path: Path) -> None:
    folder = _broken(tmp_path / "broken", "draft", math.nan)
    request = Request(prompt_id="p", tokens=(5, 6, 7), max_new_tokens=12, sampling=Sampling(0.0))
    with Session(pair_settings(capacity=128, draft=folder)) as session:
        with pytest.raises(ExecutorError, match="the draft's logits"):
            session.run(request, parse_policy("outcome_hedging:max_branches=4"))
        with pytest.raises(ExecutorError, match="start a new session"):
            session.run(request, parse_policy("autoregressive"))


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("rule", [Rule.RATIO, Rule.POINT_MASS])
def test_the_rules_of_engines_refuse_them_too(tmp_path: Path, role: str, rule: Rule) -> None:
    """They run both models in this process, and decide by sums of probabilities."""
    folder = _broken(tmp_path / "broken", role, math.nan)
    request = Request(prompt_id="p", tokens=(5, 6, 7), max_new_tokens=12, sampling=Sampling(1.0))
    with (
        Session(replace(pair_settings(capacity=128, **{role: folder}), rule=rule)) as session,
        pytest.raises(ExecutorError, match=rf"the {role}'s logits after position \d+ hold nan in float32"),
    ):
        session.run(request, parse_policy("fixed_length:draft_length=3"))


def test_the_position_is_that_of_the_newest_token_before_the_bad_row() -> None:
    from executor.verification import check_finite

    check_finite([0.0, -1e30, 1e30], "draft", first_position=0, dtype=torch.float32)
    with pytest.raises(ExecutorError, match="position 12 hold inf in bfloat16"):
        check_finite([0.0, 1.0, math.inf, math.nan], "draft", first_position=10, dtype=torch.bfloat16)
