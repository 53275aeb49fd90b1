"""`specbranch plan` as a user meets it: the verdict first, files for programs, nonsense refused in one line."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from analysis.plan.dialects.sglang import read_sglang
from analysis.plan.dialects.tensorrt_llm import read_tensorrt_llm
from analysis.plan.dialects.vllm import read_vllm
from analysis.plan.inputs import policies_of, requests_at_once, traffic_of
from analysis.plan.machines import machine_of
from analysis.plan.planning import PlanSettings
from analysis.study.planned import Planned
from sim.decoding.policies.catalog import parse_policy
from sim.serving.batch_latency import BatchLatency
from sim.serving.settings import Server
from tests.analysis.command import call
from traces.fits.step_costs import AcceptanceByPosition
from traces.metrics.serving import Objectives
from traces.schema import Actor, OpKind, OpShape

QUICK = (
    "plan",
    "--request-rate", "6",
    "--prompt-tokens", "64",
    "--output-tokens", "40",
    "--num-prompts", "100",
    "--max-length", "2",
    "--acceptance", "0.8,0.64",
    "--goodput", "ttft:500 tpot:7.5",
    "--precision", "0.9",
)  # fmt: skip


def test_a_plan_says_its_verdict_and_writes_what_an_engine_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "plan"
    assert call(*QUICK, "--output-dir", str(folder)) == 0
    printed = capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())["plan"]
    flat = " ".join(printed.split())
    for sentence in summary["verdict"]:
        assert " ".join(sentence.split()) in flat
    assert flat.startswith("Speculate with K = ")
    rows = summary["num_speculative_tokens_per_batch_size"]
    assert rows[0][0] == 1
    assert all(after[0] == before[1] + 1 for before, after in pairwise(rows))
    for name, read in (("vllm", read_vllm), ("sglang", read_sglang), ("tensorrt_llm", read_tensorrt_llm)):
        table = read((folder / f"{name}.json").read_text())
        assert [table.length_at(first, 0) for first, _, _ in rows] == [length for _, _, length in rows], name
    config = json.loads((folder / "vllm.json").read_text())
    replay = json.loads((folder / "vllm-replay.json").read_text())
    assert config["model"] == "llama-3.2-1b"
    assert replay.pop("rejection_sample_method") == "synthetic"
    assert replay.pop("synthetic_acceptance_rates") == [0.8, 0.64][: config["num_speculative_tokens"]]
    assert replay == config
    notes = (folder / "engines.md").read_text()
    assert f"| 1 to {rows[0][1]} | {rows[0][2]} | +" in notes
    assert "issue 49986" in notes
    methods = pd.read_parquet(folder / "methods.parquet")
    assert methods.method.tolist()[:3] == ["none", "K = 1", "K = 2"]
    assert methods.requests_per_s_per_replica.min() > 0
    for figure in ("goodput_by_rate", "break_even", "lengths_by_load"):
        assert (folder / f"{figure}.png").stat().st_size > 10_000
    # The costs it used can be given back to it.
    again = tmp_path / "again"
    assert (
        call(*QUICK, "--costs", str(folder / "step_costs.json"), "--kv-tokens", "400000", "--output-dir", str(again))
        == 0
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--goodput", "itl:3"), "unknown name 'itl'"),
        (("--goodput", "ttft:0"), "ttft must be more than 0"),
        (("--goodput", "ttft:500 tpot:1"), "tpot:1 cannot be met on h100"),
        (("--hardware", "abacus"), "no device is called 'abacus'"),
        (("--request-rate", "0"), "arrivals_per_s"),
        (("--request-rate", "-2"), "arrivals_per_s"),
        (("--kv-tokens", "32"), "prompt and output, but the memory has"),
        (("--kv-tokens", "0"), "--kv-tokens must be at least 1"),
        (("--acceptance", "80,64"), "divide percent by 100"),
        (("--acceptance", ""), "give --acceptance"),
        (("--target", "llama-3.1-70b"), "give more devices, fewer bits"),
        (("--attainment", "2"), "attainment must lie in"),
        (("--router", "dice"), "unknown router 'dice'"),
        (("--policy", "pearls"), "unknown policy 'pearls'"),
        (("--traffic", "nowhere.csv"), "nowhere.csv"),
        (("--costs", "nowhere.json"), "needs --kv-tokens|give --kv-tokens"),
        (("--price", "-1"), "price must be more than 0"),
        (("--max-length", "-1"), "max_length must lie"),
        (("--workers", "0"), "workers must be at least 1"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*QUICK, *options, "--output-dir", str(tmp_path / "plan")) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[0].startswith("error: ")
    assert re.search(message, " ".join(errors)), errors


def test_a_method_by_name_alone_gets_settings_for_the_load_of_a_replica(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "plan"
    assert call(*QUICK, "--policy", "pearl", "--policy", "saguaro:draft_length=2", "--output-dir", str(folder)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "(auto)" in line]
    label = line.split(" (auto) is ")[1]
    assert re.match(r"for \d+ requests at once: pearl \(auto\) is pearl:draft_length=\d+$", line)
    labels = pd.read_parquet(folder / "methods.parquet").policy.tolist()
    assert labels[-2] == label
    assert labels[-1].startswith("saguaro:draft_length=2,")  # as it was given
    capsys.readouterr()
    assert call(*QUICK, "--policy", "pearl", "--policy", label, "--output-dir", str(tmp_path / "twice")) == 1
    assert "is given twice" in " ".join(capsys.readouterr().err.split())


def test_more_requests_at_once_ask_for_shorter_drafts() -> None:
    machine = machine_of(Planned(target="llama-3.1-8b", draft="llama-3.2-1b"))
    traffic = traffic_of(None, request_rate=6, burstiness=1, prompt_tokens=64, output_tokens=40, length_cv=0.5)
    known = AcceptanceByPosition((0.8,))
    lengths, counts = [], []
    for max_num_seqs in (1, 256):
        settings = PlanSettings(objectives=Objectives.parse(["tpot:50"]), server=Server(max_num_seqs=max_num_seqs))
        (label,), _ = policies_of(["pearl"], machine, known, [], settings, traffic)
        lengths.append(parse_policy(label).draft_length)  # type: ignore[attr-defined]  # PEARL's
        counts.append(requests_at_once(machine, settings, 84))
    assert lengths[0] > lengths[1]
    assert counts[0] == 1 < counts[1]
    step_s = BatchLatency(machine.costs, 3).mean_s(OpShape(Actor.TARGET, OpKind.VERIFY, 4, 1, 84))
    assert step_s == machine.costs.target_s(12, 252, 3)
    tight = PlanSettings(objectives=Objectives(tpot_s=machine.costs.target_s(5, 5 * 84, 5)))
    assert requests_at_once(machine, tight, 84) == 5


def test_a_folder_with_results_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.json").write_text("{}")
    assert call(*QUICK, "--output-dir", str(tmp_path)) == 1
    assert str(tmp_path) in "".join(capsys.readouterr().err.split())
