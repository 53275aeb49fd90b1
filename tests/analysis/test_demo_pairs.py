"""The demo's pairs: what is not there is said before anything is decoded."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.check.compare import PAIR_PROMPTS
from analysis.demo import SIZES
from sim.decoding.policies.catalog import POLICIES
from tests.analysis.command import call


def test_every_pair_has_a_full_and_a_quick_size() -> None:
    assert SIZES.keys() == PAIR_PROMPTS.keys()
    for pair, (full, quick) in SIZES.items():
        assert full.prompts == quick.prompts == PAIR_PROMPTS[pair]
        assert full.max_s > quick.max_s
        assert set(full.methods) | set(quick.methods) <= set(POLICIES)


@pytest.mark.parametrize(("pair", "said"), [("smollm3", "choose embedded or smollm2"), ("smollm2", "smollm2")])
def test_a_pair_that_is_not_there_leaves_no_folder(
    pair: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("executor.models.names.DISTILLED_DRAFTS", tmp_path / "nothing shipped")
    monkeypatch.setattr("executor.remote.starting.start_ahead", lambda: None)
    assert call("demo", "--pair", pair, "--output-dir", str(tmp_path / "demo")) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
