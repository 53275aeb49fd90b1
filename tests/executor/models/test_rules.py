"""Tokens are those of transformers' generate with a model's own generation_config, or the difference is named."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from executor.loop import run_request
from executor.models.engines.ruled import NOT_APPLIED, asked_of
from executor.models.loading import check_vocabularies, follow_rules, load_engine, sampling_of
from executor.models.names import resolve_model
from executor.models.settings import EngineKind, EngineSettings, PairSettings
from executor.models.sources.base import ModelError
from executor.request import Request
from executor.roles.draft_side import DraftSide
from executor.roles.target_side import TargetSide
from sim.decoding.policies.catalog import parse_policy
from traces.schema import Sampling

PROMPT = (5, 6, 7, 300, 301, 5, 6)
NUM = 16
POLICIES = ["fixed_length:draft_length=3", "outcome_hedging:max_branches=5"]


def _folder(place: Path, role: str, **rules: Any) -> str:
    shutil.copytree(resolve_model("embedded", role), place)
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, **rules}))
    return str(place)


def _decode(pair: PairSettings, policy: str) -> list[int]:
    engines = [follow_rules(load_engine(name, pair.engine), pair) for name in (pair.draft, pair.target)]
    request = Request(prompt_id="p", tokens=PROMPT, max_new_tokens=NUM, sampling=Sampling(0.0), ignore_eos=True)
    with torch.inference_mode():
        done = run_request(
            request,
            parse_policy(policy),
            request_id=0,
            draft=DraftSide(engines[0]),
            target=TargetSide(engines[1]),
            noise=None,
            eos_ids=frozenset(),
            decode_text=str,
        )
    return done.tokens


def _generate(folder: str, **changes: Any) -> list[int]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config = GenerationConfig()  # which would fill in what is None below
    ends = {"eos_token_id": None, "pad_token_id": 0, "do_sample": False, "max_new_tokens": NUM}
    made = model.generate(
        torch.tensor([PROMPT]), generation_config=GenerationConfig.from_pretrained(folder, **ends, **changes)
    )
    return list(made[0, len(PROMPT) :].tolist())


RULES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 2},
    {"suppress_tokens": [10, 11, 12, 13, 32, 199, 220]},
    {"bad_words_ids": [[5], [10, 11]]},
    {"sequence_bias": [[[7], 4.0], [[6, 7], -5.0]]},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "suppress_tokens": [200, 201]},
]


@pytest.mark.long
@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "+".join(rules))
@pytest.mark.parametrize("kind", [EngineKind.STATIC, EngineKind.HUGGING_FACE])
def test_rules_give_the_tokens_of_generate(tmp_path: Path, rules: dict[str, Any], kind: EngineKind) -> None:
    target = _folder(tmp_path / "target", "target", **rules)
    pair = PairSettings(
        target=target, draft=resolve_model("embedded", "draft"), engine=EngineSettings(kind=kind, capacity=128)
    )
    wanted = _generate(target)
    for policy in POLICIES:
        assert _decode(pair, policy) == wanted, policy
    plain = PairSettings(target=target, draft=pair.draft, engine=pair.engine, ignores_generation_config=True)
    neutral = dict.fromkeys(rules)
    assert _decode(plain, POLICIES[0]) == _generate(target, **neutral)


def test_a_factor_of_1_asks_for_nothing_and_an_ngram_of_1_does() -> None:
    config = GenerationConfig(repetition_penalty=1.0, no_repeat_ngram_size=1, suppress_tokens=[0])
    assert asked_of(config) == ["no_repeat_ngram_size", "suppress_tokens"]


def test_a_least_length_keeps_the_end_away(tmp_path: Path) -> None:
    target = _folder(tmp_path / "target", "target", min_length=20)
    engine = follow_rules(load_engine(target, EngineSettings(capacity=64)), PairSettings(target=target))
    logits = engine.extend(list(range(30)))
    assert torch.isinf(logits[:19, 0]).all()
    assert torch.isfinite(logits[19:, 0]).all()


@pytest.mark.parametrize(
    "rules",
    [
        {"min_new_tokens": 5},
        {"begin_suppress_tokens": [5]},
        {"forced_eos_token_id": 0},
        {"guidance_scale": 1.5},
        {"num_beams": 4},
        {"min_p": 0.1},
        {"typical_p": 0.9},
        {"encoder_repetition_penalty": 1.2},
        {"exponential_decay_length_penalty": [5, 1.1]},
        {"stop_strings": ["x"]},
        {"token_healing": True},
        {"min_new_tokens": 1},
        {"encoder_no_repeat_ngram_size": 1},
    ],
    ids=lambda rules: next(iter(rules)),
)
def test_what_is_not_applied_is_named(tmp_path: Path, rules: dict[str, Any]) -> None:
    target = _folder(tmp_path / "target", "target", **rules)
    engine = load_engine(target, EngineSettings(capacity=64))
    with pytest.warns(UserWarning, match=f"asks for {next(iter(rules))}=.*not applied"):
        assert follow_rules(engine, PairSettings(target=target)) is engine
    assert set(rules) <= set(NOT_APPLIED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        follow_rules(engine, PairSettings(target=target, ignores_generation_config=True))


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"repetition_penalty": -1.0}, r"repetition_penalty=-1\.0, of which one cannot be applied"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0"),
        ({"repetition_penalty": "big"}, "repetition_penalty=big"),
        ({"repetition_penalty": math.inf}, "a penalty of inf"),
        ({"suppress_tokens": "x"}, "suppress_tokens=x"),
        ({"bad_words_ids": [5]}, "bad_words_ids"),
        ({"no_repeat_ngram_size": 1.5}, "no_repeat_ngram_size=1.5"),
        ({"min_length": "a"}, "min_length=a"),
        ({"sequence_bias": [[[5], math.nan]]}, "sequence_bias.*no finite number"),
        ({"eos_token_id": [0, "a"]}, r"eos_token_id must be a token's number, or several, but is \[0, 'a'\]"),
        ({"eos_token_id": "x"}, "eos_token_id"),
    ],
    ids=str,
)
def test_rules_that_are_none_are_refused_by_model_and_value(tmp_path: Path, rules: dict[str, Any], told: str) -> None:
    """In one line, and not later as logits that are no numbers, which the weights would be blamed for."""
    target = _folder(tmp_path / "target", "target", **rules)
    engine = load_engine(target, EngineSettings(capacity=64))
    with pytest.raises(ModelError, match=told) as refusal:
        follow_rules(engine, PairSettings(target=target))
    assert target in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("rules", "sampling"),
    [
        ({"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}, Sampling(0.7, 20, 0.8)),
        ({"temperature": 0.6}, Sampling(0.6)),
        ({"do_sample": True}, Sampling(1.0)),  # what a file leaves open is no library's default of 50
        ({"do_sample": False, "temperature": 0.7}, Sampling(0.0)),
        ({"do_sample": True, "top_p": 0.95}, Sampling(1.0, 0, 0.95)),
    ],
    ids=str,
)
def test_a_models_own_sampling_can_be_asked_for(tmp_path: Path, rules: dict[str, Any], sampling: Sampling) -> None:
    assert sampling_of(_folder(tmp_path / "target", "target", **rules)) == sampling


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({}, "says how to sample: .* give --temperature"),
        ({"temperature": 1e9}, "temperature must .* give --temperature"),
    ],
    ids=str,
)
def test_a_model_that_says_nothing_of_sampling_is_refused(tmp_path: Path, rules: dict[str, Any], told: str) -> None:
    target = _folder(tmp_path / "target", "target", **rules)
    with pytest.raises(ModelError, match=told) as refusal:
        sampling_of(target)
    assert target in str(refusal.value)


def test_the_resident_engine_refuses_by_name_what_it_cannot_follow(tmp_path: Path) -> None:
    target = _folder(tmp_path / "target", "target", repetition_penalty=1.05)
    engine = load_engine(target, EngineSettings(kind=EngineKind.RESIDENT, capacity=64))
    with pytest.raises(ModelError, match=r"repetition_penalty=1\.05, which the resident .* --ignore-generation-config"):
        follow_rules(engine, PairSettings(target=target))
    assert follow_rules(engine, PairSettings(target=target, ignores_generation_config=True)) is engine


def _renamed(place: Path, role: str, changes: dict[str, str]) -> str:
    folder = _folder(place, role)
    path = Path(folder) / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"] = {changes.get(token, token): index for token, index in data["model"]["vocab"].items()}
    for token in data["added_tokens"]:
        token["content"] = changes.get(token["content"], token["content"])
    path.write_text(json.dumps(data))
    return folder


def test_one_renamed_special_token_can_be_allowed(tmp_path: Path) -> None:
    target = resolve_model("embedded", "target")
    special = json.loads((Path(target) / "tokenizer.json").read_text())["added_tokens"][0]["content"]
    draft = _renamed(tmp_path / "draft", "draft", {special: "<|renamed|>"})
    with pytest.raises(ModelError, match=r"2 of them not the same.*--allow-vocab-difference"):
        check_vocabularies(target, draft)
    with pytest.warns(UserWarning, match=r"renamed"):
        assert check_vocabularies(target, draft, allows_difference=True).size == check_vocabularies(target, target).size
