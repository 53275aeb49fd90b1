"""Every script in examples/ runs as its first lines say, is short, and prints what it promises."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from analysis.cli.main import main as command
from sim.decoding.policies.catalog import parse_policy
from tests.traces.importers.engines.engine_files import page
from traces.folder.run import read_run

EXAMPLES = Path(__file__).parents[3] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def run_script(name: str, *arguments: object) -> None:
    """As `python examples/NAME arguments` does, in this process."""
    argv, sys.argv = sys.argv, [str(EXAMPLES / name), *map(str, arguments)]
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        sys.argv = argv


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What record_pair.py leaves of the embedded pair."""
    folder = tmp_path_factory.mktemp("examples") / "mine"
    run_script("record_pair.py", "embedded", "embedded", "held_out", folder, 2)
    return folder / "recorded"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_and_says_how_it_is_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    assert f"python examples/{path.name}" in text
    assert f"run_script({path.name!r}".replace("'", '"') in Path(__file__).read_text(encoding="utf-8"), (
        "no test runs it"
    )


def test_a_pair_is_recorded_and_its_draft_lengths_ranked(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_run(recorded).is_complete
    assert (recorded.parent / "explored" / "results.parquet").exists()


def test_policies_are_explored(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("explore_policies.py", recorded, tmp_path / "explored")
    printed = capsys.readouterr().out
    assert "T=0 two_devices" in printed
    assert "T=0 shared_device" in printed


def test_a_trace_is_replayed_under_another_policy(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("replay_trace.py", recorded)
    assert re.search(r"[\d.]+ tokens per target forward\nT = 0: \d+ tokens/s", capsys.readouterr().out)


def test_rounds_are_drawn(recorded: Path, tmp_path: Path) -> None:
    run_script("draw_rounds.py", recorded, tmp_path / "rounds.png")
    assert (tmp_path / "rounds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # half a minute on a free core
def test_capacity_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("plan_capacity.py", 40, tmp_path / "planned", 120)
    assert "requests/s a replica" in capsys.readouterr().out
    assert (tmp_path / "planned" / "vllm.json").exists()


def test_a_draft_length_follows_from_an_engines_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before.txt", tmp_path / "after.txt"
    before.write_text(page(100, (70, 40, 20)))
    after.write_text(page(1100, (870, 640, 420)))
    run_script("engine_metrics.py", 34, 3, before, after)
    printed = capsys.readouterr().out
    assert "served with 3 draft tokens, 2.80 tokens a step" in printed
    assert "--speculative-config" in printed


def test_a_policy_of_ones_own_runs_in_simulator_executor_and_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_script("own_policy.py", tmp_path / "own")
    printed = capsys.readouterr().out
    assert "the same tokens as plain decoding: True" in printed
    assert printed.count("own_policy.EveryOther:draft_length=") == 4
    labels = set(read_run(tmp_path / "own" / "recorded").requests.policy)
    assert labels == {
        "autoregressive",
        "own_policy.EveryOther:draft_length=2",
    }  # not of __main__, which others are, too
    monkeypatch.chdir(EXAMPLES)
    arguments = ["explore", "--run", tmp_path / "own" / "recorded", "--output-dir", tmp_path / "more"]
    monkeypatch.setattr(sys, "argv", ["specbranch", *map(str, arguments), "--policy", "own_policy:EveryOther"])
    command()
    assert "own_policy.EveryOther" in capsys.readouterr().out
    assert parse_policy("own_policy:EveryOther(draft_length=3)").needs.drafts
