"""Measure a distilled draft beside its target on prompts of known tasks, and write the findings to its QUALITY.md.

    python -m tests.benchmarks.draft_quality --prompts FOLDER

FOLDER holds spec_bench_question.jsonl.gz, gsm8k_test.jsonl.gz and humaneval.jsonl.gz, which no training has seen. Acceptance
is that of the shared-noise rule along the target's own answers: the share of positions where the draft's best token, with the
same noise, is the one that the target emits (Daliri et al. 2024, arXiv:2408.07978).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from executor.models.engines.base import Engine
from executor.models.loading import load_engine
from executor.models.names import resolve_model
from executor.models.settings import EngineSettings, PairSettings
from executor.models.stored.distilled import WEIGHTS_FILE, read_draft_card
from executor.noise import NoiseTable
from executor.pair import Session
from executor.recording.prompts import PromptText, encode_prompt
from executor.recording.settings import PromptForm
from executor.request import Request
from executor.verification import choose, noisy_scores
from sim.decoding.policies.catalog import parse_policy
from traces.schema import Sampling

HIT_WIDTHS = (1, 2, 4, 8)
SIGNALS = ("max prob", "entropy", "noisy margin")
STEP_CONTEXT, STEPS_PER_BLOCK, NUM_BLOCKS = 160, 40, 15
MAX_PROMPT_TOKENS = 1200
_TURNS = "multi-turn"
_FILES = {"spec_bench_question.jsonl.gz": "turns", "gsm8k_test.jsonl.gz": "question", "humaneval.jsonl.gz": "prompt"}
_NAMED = {"gsm8k_test.jsonl.gz": "GSM8K", "humaneval.jsonl.gz": "HumanEval"}
_OWN_TASKS = (
    "translation",
    "summarization",
    "qa",
    "math_reasoning",
    "rag",
)  # Spec-Bench's; its other categories are MT-Bench's


@dataclass(frozen=True)
class Answer:
    """One answer of the target, position by position: the place of its token in the draft's noisy order, the draft's signals
    (positions, 3), and the overlap of both laws. num_known: tokens that the draft's head knows."""

    ranks: NDArray[np.int64]
    signals: NDArray[np.float64]
    overlap: NDArray[np.float64]
    num_known: int


@dataclass(frozen=True)
class Quality:
    """Findings over some answers.

    standard_error: of the acceptance, over answers. known_share: of the target's tokens that the draft's head knows.
    signal_auc: how well each signal tells accepted from rejected tokens; NaN where all are alike.
    """

    num_answers: int
    num_positions: int
    acceptance: float
    standard_error: float
    overlap: float
    known_share: float
    hit_rates: Mapping[int, float]
    signal_auc: Mapping[str, float]


def read_tasks(folder: Path, num_prompts: int) -> dict[str, list[PromptText]]:
    """The first prompts of each task, by task; of MT-Bench's eight categories in turns. ValueError without the files."""
    tasks: dict[str, list[PromptText]] = {}
    turns: dict[str, list[PromptText]] = {}
    for name, key in _FILES.items():
        if not (folder / name).is_file():
            raise ValueError(f"no prompts at {folder / name}: name the folder that holds {', '.join(_FILES)}.")
        with gzip.open(folder / name, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                row = json.loads(line)
                text = row[key][0] if key == "turns" else row[key]
                task = _NAMED.get(name) or row["category"]
                prompt = PromptText(f"{name}:{number}", text)
                is_own = name in _NAMED or task in _OWN_TASKS
                (tasks if is_own else turns).setdefault(task, []).append(prompt)
    in_turns = [prompt for group in zip_longest(*turns.values()) for prompt in group if prompt is not None]
    chosen = {_TURNS: in_turns, **tasks} if in_turns else tasks
    return {task: prompts[:num_prompts] for task, prompts in chosen.items()}


def answers_of(
    session: Session, prompts: Sequence[PromptText], *, temperature: float, max_new_tokens: int
) -> Iterator[Answer]:
    """The target's answers to prompts as a user's messages; prompts of more than MAX_PROMPT_TOKENS are left out."""
    plain = parse_policy("autoregressive")
    head_tokens = session.engine.head_tokens
    for index, prompt in enumerate(prompts):
        form = PromptForm.CHAT if getattr(session.tokenizer, "chat_template", None) else PromptForm.RAW
        tokens = encode_prompt(session.tokenizer, prompt, form)
        if len(tokens) > MAX_PROMPT_TOKENS:
            continue
        request = Request(
            prompt_id=prompt.prompt_id,
            tokens=tokens,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature),
            noise_key=index,
        )
        done = session.run(request, plain)
        annotation = session.annotate(done, request_id=index, tail_depth=0)
        known = len(done.tokens) if head_tokens is None else int(np.isin(done.tokens, head_tokens.cpu().numpy()).sum())
        yield Answer(
            np.array(annotation.trace.ranks),
            np.array(annotation.trace.signals, float),
            np.asarray(annotation.columns["overlap"], float),
            known,
        )


def summarise(answers: Sequence[Answer]) -> Quality:
    """Pool the positions of some answers; answers are the independent units."""
    from sklearn.metrics import roc_auc_score  # heavy, and needed here alone

    ranks = np.concatenate([answer.ranks for answer in answers])
    signals = np.concatenate([answer.signals for answer in answers])
    is_accepted = ranks == 0
    acceptance = float(is_accepted.mean())
    off = np.array([(answer.ranks == 0).sum() - acceptance * len(answer.ranks) for answer in answers])
    signs = {"max prob": 1.0, "entropy": -1.0, "noisy margin": 1.0}
    is_mixed = 0 < is_accepted.sum() < len(is_accepted)
    return Quality(
        num_answers=len(answers),
        num_positions=len(ranks),
        acceptance=acceptance,
        standard_error=float(np.sqrt((off**2).sum()) / len(ranks)),
        overlap=float(np.concatenate([answer.overlap for answer in answers]).mean()),
        known_share=sum(answer.num_known for answer in answers) / len(ranks),
        hit_rates={width: float((ranks < width).mean()) for width in HIT_WIDTHS},
        signal_auc={
            name: float(roc_auc_score(is_accepted, signs[name] * signals[:, column])) if is_mixed else float("nan")
            for column, name in enumerate(SIGNALS)
        },
    )


def measure(
    pair: PairSettings, tasks: Mapping[str, Sequence[PromptText]], temperatures: Sequence[float], max_new_tokens: int
) -> dict[float, dict[str, Quality]]:
    """Findings by temperature and task; the last task is "all"."""
    found: dict[float, dict[str, Quality]] = {}
    with Session(pair) as session:
        for temperature in temperatures:
            by_task = {
                task: list(answers_of(session, prompts, temperature=temperature, max_new_tokens=max_new_tokens))
                for task, prompts in tasks.items()
            }
            everything = [answer for answers in by_task.values() for answer in answers]
            found[temperature] = {
                task: summarise(answers) for task, answers in {**by_task, "all": everything}.items() if answers
            }
    return found


def cost_ratio(pair: PairSettings) -> float:
    """Time of one target step over one draft step, choice of a token with noise at temperature 1 included.

    Both in this process, one thread on one core, in blocks that take turns; the median over blocks of the medians within.
    """
    target = resolve_model(pair.target, "target")
    settings = EngineSettings(capacity=512, embedding_of=target)
    engines = [load_engine(target, settings), load_engine(resolve_model(pair.draft, "draft"), settings)]
    cores, num_threads = os.sched_getaffinity(0), torch.get_num_threads()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(cores)})
    try:
        for engine in engines:
            engine.extend([5 + index % 97 for index in range(STEP_CONTEXT)], last_only=True)
        blocks = np.array([[_step_seconds(engine) for engine in engines] for _ in range(NUM_BLOCKS)])
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(num_threads)
    return float(np.median(blocks[:, 0] / blocks[:, 1]))


def _step_seconds(engine: Engine) -> float:
    noise = NoiseTable(0, 0, engine.vocab_size, engine.device, columns=engine.head_tokens).rows(0, 1)
    seconds = []
    for index in range(STEPS_PER_BLOCK):
        start = time.perf_counter()
        choose(noisy_scores(engine.extend([5 + index]), Sampling(1.0), noise)).tolist()
        seconds.append(time.perf_counter() - start)
        engine.roll_back(STEP_CONTEXT)
    return float(np.median(seconds))


def render(
    found: Mapping[float, Mapping[str, Quality]],
    pair: PairSettings,
    *,
    max_new_tokens: int,
    c: float | None,
    notes: str,
) -> str:
    """The findings as a page."""
    folder = Path(resolve_model(pair.draft, "draft"))
    card = read_draft_card(folder)
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in card.training.items())
    lines = [
        f"# Quality of the draft for {card.target}",
        "",
        "Written by `python -m tests.benchmarks.draft_quality`. Acceptance is that of the shared-noise rule along the "
        f"target's own answers, at most {max_new_tokens} tokens each, float32, to prompts of Spec-Bench (by category; "
        "multi-turn: first turns of MT-Bench's eight), GSM8K and HumanEval as a user's messages in the target's chat "
        "template. No training saw these prompts.",
        "",
        f"Weights: {(folder / WEIGHTS_FILE).stat().st_size / 1e6:.2f} MB (int8 rows). "
        + (f"One target step takes {c:.1f} draft steps (c), sampling included." if c else "c was not measured here."),
        f"Training: {facts}.",
    ]
    lines += ["", notes] if notes else []
    for temperature, by_task in found.items():
        lines += [
            "",
            f"## Temperature {temperature:g}",
            "",
            "| task | acceptance (standard error) | overlap | hit in top 1 / 2 / 4 / 8 | head knows "
            "| AUC max prob / entropy / noisy margin | answers | positions |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for task, one in by_task.items():
            hits = " / ".join(f"{one.hit_rates[width]:.3f}" for width in HIT_WIDTHS)
            aucs = " / ".join(f"{one.signal_auc[name]:.3f}" for name in SIGNALS)
            lines.append(
                f"| {task} | {one.acceptance:.3f} ({one.standard_error:.3f}) | {one.overlap:.3f} | {hits} "
                f"| {one.known_share:.1%} | {aucs} | {one.num_answers} | {one.num_positions:,} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="folder of the three prompt files")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", default="smollm2", help="name or folder of the draft")
    parser.add_argument("--output", type=Path, help="by default QUALITY.md beside the draft's folder")
    parser.add_argument("--num-prompts", type=int, default=10, help="of each task")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7, 1.0])
    parser.add_argument("--notes", default="", help="a paragraph on how the draft was trained")
    parser.add_argument("--no-cost", action="store_true", help="do not measure the cost ratio")
    arguments = parser.parse_args()
    pair = PairSettings(
        target=arguments.target,
        draft=arguments.draft,
        engine=EngineSettings(capacity=MAX_PROMPT_TOKENS + arguments.max_new_tokens + 16),
    )
    tasks = read_tasks(arguments.prompts, arguments.num_prompts)
    found = measure(pair, tasks, arguments.temperatures, arguments.max_new_tokens)
    c = None if arguments.no_cost else cost_ratio(pair)
    page = render(found, pair, max_new_tokens=arguments.max_new_tokens, c=c, notes=arguments.notes)
    output = arguments.output or Path(resolve_model(arguments.draft, "draft")).with_name("QUALITY.md")
    output.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
