"""Names of models: what each stands for, and what travels to the target's process."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.models import names
from executor.models.names import Lookup, RandomShape, check_drafter, parse_model, resolve_model, resolve_predictor
from executor.remote.messages import WORKER_SETTINGS, WorkerSettings
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.policies.serial.prompt_lookup import PromptLookup
from tests.settings import pair_settings


def test_shipped_names_are_folders_of_their_role_and_all_others_stay() -> None:
    target, draft = resolve_model("embedded", "target"), resolve_model("embedded", "draft")
    small = resolve_model("embedded_small", "draft")
    assert len({target, draft, small}) == 3
    assert resolve_model("embedded_small", "target") == target
    for folder in (target, draft, small, resolve_predictor("embedded")):
        assert Path(folder).is_dir()
    assert resolve_model("owner/name", "draft") == "owner/name"
    assert resolve_predictor("") == ""


def test_the_draft_of_a_fetched_target_is_the_shipped_one_or_the_command_that_trains_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "DISTILLED_DRAFTS", tmp_path)
    with pytest.raises(ValueError, match="specbranch pair train smollm2-draft"):
        resolve_model("smollm2", "draft")
    (tmp_path / "smollm2").mkdir()
    assert resolve_model("smollm2", "draft") == str(tmp_path / "smollm2")


def test_a_name_is_a_lookup_a_random_shape_or_a_model() -> None:
    assert parse_model("prompt_lookup:min_ngram=2") == Lookup(min_ngram=2)
    assert parse_model("random:tiny") == RandomShape("tiny")
    assert RandomShape("tiny").shape.num_layers > 0
    assert parse_model("random") == "random"
    assert parse_model("org/prompt_lookup") == "org/prompt_lookup"
    assert parse_model(Path("/some/folder")) == Path("/some/folder")


def test_only_a_lookup_is_asked_what_it_found() -> None:
    check_drafter(PromptLookup(), "prompt_lookup:max_ngram=2")
    check_drafter(PromptLookup(), None)
    check_drafter(FixedLength(2), "embedded")
    with pytest.raises(ValueError, match="the draft is org/prompt_lookup"):
        check_drafter(PromptLookup(), "org/prompt_lookup")


def test_settings_of_a_worker_survive_its_command_line(tmp_path: Path) -> None:
    pair = pair_settings(
        target="a b", draft="prompt_lookup", engine="resident", transport="distributed", timeout_s=1.5, draft_sms=3
    )
    sent = WorkerSettings(pair=pair, core=None, meeting_place=tmp_path / "a 'folder'")
    assert WORKER_SETTINGS.validate_json(WORKER_SETTINGS.dump_json(sent)) == sent
