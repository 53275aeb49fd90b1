"""`specbranch hrad`, from the first prompt to the evaluated page, on a random pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from analysis.cli.main import hrad_app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pair, prompts, and what collect and train made of them."""
    from executor.embedded_pair.shapes import Shape, build_model, save_model
    from executor.embedded_pair.tokens import train_tokenizer

    folder = tmp_path_factory.mktemp("hrad")
    tokenizer = train_tokenizer(["def f(x):\n    return x\n"], 260)
    for name, num_layers in (("target", 3), ("draft", 1)):
        shape = Shape(num_layers=num_layers, hidden_size=64, intermediate_size=96)
        model = build_model(shape, vocab_size=tokenizer.get_vocab_size(), max_length=256, seed=num_layers)
        for parameter in model.parameters():
            parameter.data.mul_(2.0)
        save_model(model, tokenizer, folder / name)
    for name, first in (("training", 0), ("other", 50)):
        lines = [json.dumps({"prompt": f"def f{number}(x):"}) for number in range(first, first + 10)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    _call("collect", folder, "--output-dir", "data", "--prompts", "training.jsonl", "--num-prompts", "10")
    _call("train", folder, "--data", "data", "--output-dir", "predictor", "--num-epochs", "2", "--widths", "16", "8")
    return folder


def _run(command: str, folder: Path, *options: str) -> Result:
    """One command; options that name something in the folder are made paths."""
    paths = ("data", "predictor", "judged", "page.md")
    made = [str(folder / word) if word in paths or word.endswith(".jsonl") else word for word in options]
    if command != "train":
        made += ["--target", str(folder / "target"), "--draft", str(folder / "draft")]
        made += ["--max-new-tokens", "32", "--capacity", "200"]
    if command == "evaluate" and "--num-prompts" not in made:
        made += ["--num-prompts", "10"]
    if command == "collect":
        made += ["--temperature", "0", "--temperature", "1", "--draft-length", "2", "--num-feature-layers", "2"]
    return CliRunner().invoke(hrad_app, [command, *made])


def _call(command: str, folder: Path, *options: str) -> str:
    result = _run(command, folder, *options)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def test_evaluate_prints_the_baselines_and_writes_a_page(folder: Path) -> None:
    arguments = ("--predictor", "predictor", "--data", "data", "--output-dir", "judged", "--prompts", "other.jsonl")
    output = _call("evaluate", folder, *arguments, "--num-prompts", "6", "--markdown", "page.md")
    page = (folder / "page.md").read_text()
    for rule in ("constant", "running average", "noisy margin", "product rule", "H-RAD + first token"):
        assert rule in page
        assert rule.split()[0] in output
    found = json.loads((folder / "judged" / "evaluation.json").read_text())
    assert found["num_prompts"] == 6
    assert abs(sum(found["class_shares"]) - 1) < 1e-9
    assert found["cost"]["predict_s"] > 0
    assert "us after a verification of" in page


@pytest.mark.long
def test_ablate_judges_a_predictor_for_each_number_of_blocks_on_the_same_positions(folder: Path) -> None:
    options = ("--data", "data", "--prompts", "other.jsonl", "--layers", "1", "--layers", "2", "--num-epochs", "2")
    output = _call("ablate", folder, *options, "--output-dir", str(folder / "ablated"), "--num-prompts", "6")
    results = json.loads((folder / "ablated" / "ablation.json").read_text())
    assert [result["num_feature_layers"] for result in results] == [1, 2]
    assert [result["feature_bytes"] for result in results] == [4 * 64, 2 * 4 * 64]
    one, two = (result["num_parameters"] for result in results)
    assert two - one == 64 * 256  # a block more for the first layer
    assert {sum(map(sum, result["quality"]["confusion"])) for result in results} == {
        sum(map(sum, results[0]["quality"]["confusion"]))
    }
    assert "AUC 0" in output
    by_length = json.loads((folder / "ablated" / "draft_lengths.json").read_text())
    assert [row["draft_length"] for row in by_length] == [2]
    assert "H-RAD adds" in output
    refused = _run("ablate", folder, *options[:4], "--layers", "3", "--output-dir", str(folder / "more"))
    assert "collect with a larger num_feature_layers" in str(refused.exception)
    assert not (folder / "more").exists()


def test_train_may_look_at_fewer_blocks_than_were_collected(folder: Path) -> None:
    from executor.hrad.predictor import read_card

    options = ("--num-feature-layers", "1", "--num-epochs", "1", "--widths", "8", "4")
    _call("train", folder, "--data", "data", "--output-dir", str(folder / "shallow"), *options)
    assert read_card(folder / "shallow").num_inputs == 2 * 64
    assert read_card(folder / "predictor").num_inputs == 3 * 64


def test_the_predictor_runs_in_a_recording(folder: Path) -> None:
    from executor.hrad.predictor import read_card
    from executor.recording.recorder import record_run
    from tests.settings import record_settings

    settings = record_settings(
        target=str(folder / "target"),
        draft=str(folder / "draft"),
        hrad=str(folder / "predictor"),
        policies=("fixed_length:draft_length=2",),
        prompts=str(folder / "other.jsonl"),
        num_prompts=1,
        max_new_tokens=16,
        capacity=200,
        is_pinned=False,
    )
    run = record_run(settings, folder / "recorded")
    for trace in run.traces():
        assert len(trace.class_probs) == trace.num_tokens + 1
        assert trace.class_window == read_card(folder / "predictor").draft_length
        assert all(abs(sum(row) - 1) < 1e-5 for row in trace.class_probs)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("collect", ("--output-dir", "judged", "--prompts", "held_out"), "never used for training"),
        ("train", ("--data", "data", "--output-dir", "predictor"), "already holds a predictor"),
        ("train", ("--data", "predictor", "--output-dir", "judged"), "no H-RAD data"),
        (
            "evaluate",
            ("--predictor", "predictor", "--data", "data", "--output-dir", "x", "--prompts", "training.jsonl"),
            "10 of 10 evaluation prompts were trained on",
        ),
        (
            "evaluate",
            ("--predictor", "predictor", "--data", "data", "--output-dir", "x", "--prompts", "training"),
            "never used for evaluation",
        ),
    ],
)
def test_mixtures_and_overwriting_are_refused(
    folder: Path, command: str, options: tuple[str, ...], message: str
) -> None:
    result = _run(command, folder, *options)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
