"""Measure the embedded pair on held-out text, and write the findings to QUALITY.md.

    python -m tests.benchmarks.pair_quality

Acceptance is that of the shared-noise rule (Daliri et al. 2024, arXiv:2408.07978): with the same Gumbel noise g at a
position, the target emits argmax(log p + g), the draft offers argmax(log q + g), and equal tokens are accepted.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import LlamaForCausalLM

from executor import embedded_pair
from executor.embedded_pair.corpus import Part, held_out_prompts, source_files
from executor.embedded_pair.sampling import ends_in_loop, generate, noisy_scores, position_noise
from executor.embedded_pair.shapes import load_model, load_tokenizer, num_parameters
from executor.embedded_pair.tokens import EOS_ID, encode_files
from executor.models.engines.static import StaticEngine

PAIR_FOLDER = Path(embedded_pair.__file__).parent / "weights"
TARGET_NAME, DRAFT_NAMES = "target", ("draft", "draft_small")
TEMPERATURES = (0.0, 0.7, 1.0)
HIT_WIDTHS = (1, 2, 4, 8)
SIGNALS = ("max_prob", "negative_entropy", "margin", "noisy_margin")
SCORING_BATCH = 8
STEP_CONTEXT = 160  # tokens in the cache while steps are timed
STEPS_PER_BLOCK = 60


@dataclass(frozen=True)
class ModelQuality:
    """One model alone. held_out_loss: nats per token. weight_bytes: size of model.safetensors."""

    num_parameters: int
    weight_bytes: int
    held_out_loss: float


@dataclass(frozen=True)
class GenerationQuality:
    """What the target writes at one temperature: shares of generations, and the mean number of new tokens."""

    num_generations: int
    ends_in_loop_share: float
    ends_itself_share: float
    mean_new_tokens: float


@dataclass(frozen=True)
class DraftQuality:
    """One draft against the target, over the target's own generations at one temperature.

    acceptance: share of positions where the shared-noise rule accepts; standard_error: of it, over prompts.
    overlap: mean of sum min(target, draft) at that temperature (at 0, of the two argmaxes: the acceptance itself).
    lag1_autocorrelation: of acceptance, within generations.
    signal_auc: how well a number known before verification tells accepted from rejected positions.
    hit_rates: chance that the target's token is among the draft's noisy top k, by k.
    """

    num_positions: int
    acceptance: float
    standard_error: float
    overlap: float
    lag1_autocorrelation: float
    signal_auc: Mapping[str, float]
    hit_rates: Mapping[int, float]


@dataclass(frozen=True)
class PairQuality:
    """All findings. drafts: by draft name, then temperature."""

    num_prompts: int
    num_new_tokens: int
    models: Mapping[str, ModelQuality]
    generations: Mapping[float, GenerationQuality]
    drafts: Mapping[str, Mapping[float, DraftQuality]]


@dataclass(frozen=True)
class _Positions:
    """Per generated position of one sequence, (num_positions,): what the draft showed, and whether it was right."""

    is_accepted: NDArray[np.bool_]
    overlap: NDArray[np.float32]
    rank: NDArray[np.int64]
    signals: Mapping[str, NDArray[np.float32]]


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, windows: torch.Tensor) -> float:
    """Mean cross-entropy of each next token, nats. windows: (num, length) token ids."""
    losses = []
    for chunk in torch.split(windows, SCORING_BATCH):
        logits = model(input_ids=chunk[:, :-1], use_cache=False).logits
        losses.append(functional.cross_entropy(logits.flatten(0, 1), chunk[:, 1:].flatten()))
    return float(torch.stack(losses).mean())


def judge_positions(
    target_logits: torch.Tensor,
    draft_logits: torch.Tensor,
    noise: torch.Tensor,
    tokens: torch.Tensor,
    temperature: float,
) -> _Positions:
    """Compare draft and target position by position.

    target_logits, draft_logits, noise: (num_positions, vocab). tokens: (num_positions,), what the target emitted.
    """
    scores = noisy_scores(draft_logits, noise, temperature)
    scale = temperature if temperature > 0 else 1.0  # at 0 the draft's confidence is read off its plain distribution
    draft_log_probs = torch.log_softmax(draft_logits / scale, dim=-1)
    draft_probs = draft_log_probs.exp()
    is_accepted = scores.argmax(dim=-1) == tokens
    if temperature > 0:
        overlap = torch.minimum(torch.softmax(target_logits / scale, dim=-1), draft_probs).sum(dim=-1)
    else:
        overlap = is_accepted.float()
    best, noisy_best = draft_log_probs.topk(2, dim=-1).values, scores.topk(2, dim=-1).values
    at_token = scores.gather(-1, tokens[:, None])
    signals = {
        "max_prob": draft_probs.max(dim=-1).values,
        "negative_entropy": (draft_probs * draft_log_probs).sum(dim=-1),
        "margin": best[:, 0] - best[:, 1],
        "noisy_margin": noisy_best[:, 0] - noisy_best[:, 1],
    }
    return _Positions(
        is_accepted=is_accepted.numpy(),
        overlap=overlap.numpy(),
        rank=(scores > at_token).sum(dim=-1).numpy(),
        signals={name: value.numpy() for name, value in signals.items()},
    )


def summarise(sequences: Sequence[_Positions]) -> DraftQuality:
    """Pool the positions of many generations."""
    from sklearn.metrics import roc_auc_score  # heavy, and needed here alone

    accepted = np.concatenate([one.is_accepted for one in sequences]).astype(float)
    rank = np.concatenate([one.rank for one in sequences])
    acceptance = float(accepted.mean())
    lengths = np.array([len(one.is_accepted) for one in sequences])
    sums = np.array([one.is_accepted.sum() for one in sequences])
    # Ratio estimator: generations are the independent units, and differ in length.
    deviations = sums - acceptance * lengths
    standard_error = float(np.sqrt((deviations**2).sum()) / lengths.sum())
    centred = [one.is_accepted - acceptance for one in sequences]
    lagged = np.concatenate([values[1:] * values[:-1] for values in centred])
    return DraftQuality(
        num_positions=len(accepted),
        acceptance=acceptance,
        standard_error=standard_error,
        overlap=float(np.concatenate([one.overlap for one in sequences]).mean()),
        lag1_autocorrelation=float(lagged.mean() / (acceptance * (1 - acceptance))),
        signal_auc={
            name: float(roc_auc_score(accepted, np.concatenate([one.signals[name] for one in sequences])))
            for name in SIGNALS
        },
        hit_rates={width: float((rank < width).mean()) for width in HIT_WIDTHS},
    )


@torch.inference_mode()
def measure_temperature(
    target: LlamaForCausalLM,
    drafts: Mapping[str, LlamaForCausalLM],
    prompts: Sequence[list[int]],
    *,
    temperature: float,
    num_new_tokens: int,
    seed: int,
) -> tuple[GenerationQuality, dict[str, DraftQuality]]:
    """Let the target continue the prompts, and judge every draft along those texts with the same noise."""
    generations = generate(target, prompts, num_new_tokens=num_new_tokens, temperature=temperature, seed=seed)
    vocab_size = target.config.vocab_size
    longest = max(map(len, generations))
    noise = torch.stack(
        [position_noise(seed, index, (len(prompts), vocab_size)) for index in range(longest)], dim=1
    )  # (prompts, longest, vocab): the very noise that generate() drew
    judged: dict[str, list[_Positions]] = {name: [] for name in drafts}
    for row, (prompt, new) in enumerate(zip(prompts, generations, strict=True)):
        tokens = torch.tensor(new)
        inputs, first = torch.tensor([prompt + new[:-1]]), len(prompt) - 1
        target_logits = target(input_ids=inputs, use_cache=False).logits[0, first:]
        for name, draft in drafts.items():
            draft_logits = draft(input_ids=inputs, use_cache=False).logits[0, first:]
            judged[name].append(
                judge_positions(target_logits, draft_logits, noise[row, : len(new)], tokens, temperature)
            )
    written = GenerationQuality(
        num_generations=len(generations),
        ends_in_loop_share=float(np.mean([ends_in_loop(new) for new in generations])),
        ends_itself_share=float(np.mean([new[-1] == EOS_ID for new in generations])),
        mean_new_tokens=float(np.mean([len(new) for new in generations])),
    )
    return written, {name: summarise(sequences) for name, sequences in judged.items()}


def measure_pair(
    folder: Path = PAIR_FOLDER,
    *,
    num_prompts: int = 96,
    num_new_tokens: int = 192,
    num_windows: int = 64,
    window_length: int = 257,
    temperatures: Sequence[float] = TEMPERATURES,
    draft_names: Sequence[str] = DRAFT_NAMES,
    seed: int = 0,
) -> PairQuality:
    """Measure the pair in `folder` in float32 on the CPU: held-out loss, acceptance, signals and generations."""
    tokenizer = load_tokenizer(folder / TARGET_NAME)
    models = {name: load_model(folder / name, "cpu").eval() for name in (TARGET_NAME, *draft_names)}
    stream = encode_files(tokenizer, source_files(Part.HELD_OUT))
    starts = torch.linspace(0, len(stream) - window_length, num_windows).long().tolist()
    windows = torch.stack([stream[start : start + window_length] for start in starts])
    prompts = [tokenizer.encode(prompt.text).ids for prompt in held_out_prompts(num_prompts)]
    drafts = {name: models[name] for name in draft_names}
    measured = {
        temperature: measure_temperature(
            models[TARGET_NAME], drafts, prompts, temperature=temperature, num_new_tokens=num_new_tokens, seed=seed
        )
        for temperature in temperatures
    }
    return PairQuality(
        num_prompts=num_prompts,
        num_new_tokens=num_new_tokens,
        models={
            name: ModelQuality(
                num_parameters(model),
                (folder / name / "model.safetensors").stat().st_size,
                held_out_loss(model, windows),
            )
            for name, model in models.items()
        },
        generations={temperature: written for temperature, (written, _) in measured.items()},
        drafts={
            name: {temperature: judged[name] for temperature, (_, judged) in measured.items()} for name in draft_names
        },
    )


def measure_cost_ratios(
    folder: Path = PAIR_FOLDER, draft_names: Sequence[str] = DRAFT_NAMES, *, num_blocks: int = 15
) -> dict[str, float]:
    """Time of one target step over one draft step, by draft name: static engine, one thread on one core, context 160.

    Each model steps through blocks of its own, as it does on a core of its own; blocks take turns, so that a busy machine
    slows all models alike. Medians over blocks of the medians within.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if cores is not None:
            os.sched_setaffinity(0, {max(cores)})
        names = [TARGET_NAME, *draft_names]
        engines = [StaticEngine(load_model(folder / name, "cpu"), capacity=512) for name in names]
        for engine in engines:
            engine.extend([5 + index % 97 for index in range(STEP_CONTEXT)])
        blocks = [[_step_seconds(engine) for engine in engines] for _ in range(num_blocks)]
    finally:
        torch.set_num_threads(num_threads)
        if cores is not None:
            os.sched_setaffinity(0, cores)
    target, *drafts = np.array(blocks).T
    return {name: float(np.median(target / times)) for name, times in zip(draft_names, drafts, strict=True)}


def _step_seconds(engine: StaticEngine) -> float:
    """Median time of a decoding step, its choice of a token included."""
    seconds = []
    for index in range(STEPS_PER_BLOCK):
        start = time.perf_counter()
        int(engine.extend([5 + index])[-1].argmax())
        seconds.append(time.perf_counter() - start)
        engine.roll_back(STEP_CONTEXT)
    return float(np.median(seconds))


def render_markdown(
    quality: PairQuality, *, cost_ratios: Mapping[str, float] | None = None, training_notes: str = ""
) -> str:
    """The findings as a page.

    cost_ratios: by draft name, as `measure_cost_ratios` gives them.
    training_notes: a paragraph on how the pair was trained.
    """
    lines = [
        "# Quality of the embedded pair",
        "",
        "Written by `python -m tests.benchmarks.pair_quality`. Held-out text: the standard library's files whose path hash "
        "keeps them from training.",
        f"Acceptance is that of the shared-noise rule along the target's own continuations of {quality.num_prompts} "
        f"held-out function openings, {quality.num_new_tokens} new tokens at most, stopping at `</s>`, float32.",
        "",
    ]
    if training_notes:
        lines += ["## Training", "", training_notes, ""]
    lines += [
        "## Models",
        "",
        "| model | parameters | bfloat16 MB | held-out loss, nats/token | target step / draft step (c) |",
        "|---|---|---|---|---|",
    ]
    for name, model in quality.models.items():
        ratio = (cost_ratios or {}).get(name)
        ratio_text = f"{ratio:.1f}" if ratio is not None else ("1" if name == TARGET_NAME else "not measured here")
        lines.append(
            f"| {name} | {model.num_parameters:,} | {model.weight_bytes / 1e6:.2f} | {model.held_out_loss:.3f} "
            f"| {ratio_text} |"
        )
    if cost_ratios:
        lines += ["", f"c: static engine, one thread on one core, {STEP_CONTEXT} tokens in the cache (`--cost-only`)."]
    lines += [
        "",
        "## What the target writes",
        "",
        "A loop: the last 24 tokens already occurred, in this order, earlier in the generation.",
        "",
        "| temperature | generations | end in a loop | end with `</s>` | mean new tokens |",
        "|---|---|---|---|---|",
    ]
    for temperature, written in quality.generations.items():
        lines.append(
            f"| {temperature:g} | {written.num_generations} | {written.ends_in_loop_share:.1%} "
            f"| {written.ends_itself_share:.1%} | {written.mean_new_tokens:.1f} |"
        )
    lines += [
        "",
        "## Drafts",
        "",
        "Overlap is the mean of sum min(target, draft). AUC: how well a signal, known before verification, tells "
        "accepted from rejected tokens. Noisy margin: first minus second of log q + g (at temperature 0 there is no "
        "noise, and it is the plain margin).",
        "",
        "| draft | temperature | acceptance (standard error) | overlap | lag-1 autocorrelation "
        "| AUC max prob | AUC entropy | AUC margin | AUC noisy margin | hit in top 1 / 2 / 4 / 8 | positions |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, by_temperature in quality.drafts.items():
        for temperature, measured in by_temperature.items():
            aucs = " | ".join(f"{measured.signal_auc[signal]:.3f}" for signal in SIGNALS)
            hits = " / ".join(f"{measured.hit_rates[width]:.3f}" for width in HIT_WIDTHS)
            accepted = f"{measured.acceptance:.3f} ({measured.standard_error:.3f})"
            lines.append(
                f"| {name} | {temperature:g} | {accepted} | {measured.overlap:.3f} | {measured.lag1_autocorrelation:.3f} "
                f"| {aucs} | {hits} | {measured.num_positions:,} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=Path, default=PAIR_FOLDER, help="folder with target/, draft/, draft_small/")
    parser.add_argument("--output", type=Path, default=PAIR_FOLDER.with_name("QUALITY.md"))
    parser.add_argument("--num-prompts", type=int, default=96)
    parser.add_argument("--training-notes", default="", help="a paragraph on how the pair was trained")
    parser.add_argument("--cost-only", action="store_true", help="only time the models' steps, and print the ratios")
    arguments = parser.parse_args()
    if arguments.cost_only:
        print(measure_cost_ratios(arguments.pair))
        return
    page = render_markdown(
        measure_pair(arguments.pair, num_prompts=arguments.num_prompts),
        cost_ratios=measure_cost_ratios(arguments.pair),
        training_notes=arguments.training_notes,
    )
    arguments.output.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
