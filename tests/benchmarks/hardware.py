"""The whole validation on real hardware, offline, in one command; writes one JSON file of results, section by section.

    python tests/benchmarks/hardware.py --output results/h100.json
    python tests/benchmarks/hardware.py --device cpu --target random:tiny --draft random:tiny --output /tmp/dry.json

Sections: bandwidth, step times of the given shapes against their floors, Hugging Face's eager decoding beside ours,
token identity and replayed rounds on the embedded pair, measured and predicted speeds of the methods (real on the
embedded pair, synthetic acceptance on the shapes), overlap, memory. A section that fails says why and the others go on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from analysis.check.validate import validate_run
from executor.models.names import RandomShape, parse_model, resolve_model
from executor.models.settings import EngineKind, EngineSettings, PairSettings, parse_transport
from executor.pair import Session
from executor.recording.prompts import load_prompts
from executor.recording.recorder import record_run
from executor.recording.settings import DecodingSettings, PromptSettings, RecordSettings
from executor.recording.sweep import Grid, record_sweep
from executor.request import Request
from executor.resident.engine import ResidentEngine
from executor.resident.target import GraphTarget
from executor.resident.weights import ResidentWeights
from sim.decoding.policies.catalog import parse_policy
from sim.decoding.replay import replay
from tests.laws.overlap import measure_overlap
from traces.folder.run import read_run
from traces.metrics.machine_speed import machine_speed_of
from traces.metrics.speeds import measured_speeds
from traces.schema import Sampling

IDENTITY = (
    "autoregressive",
    "fixed_length:draft_length=4",
    "confidence_stop",
    "adaedl",
    "product_rule",
    "pearl:draft_length=4",
    "saguaro",
    "specbranch:uses_hrad=false",
    "specbranch:uses_hrad=false,on_miss=overlap",
    "outcome_hedging",
)
SPEEDS = (
    "fixed_length:draft_length=2",
    "fixed_length:draft_length=4",
    "pearl:draft_length=5",
    "specbranch:uses_hrad=false,epsilon=0,draft_length=5",
    "saguaro",
    "outcome_hedging",
)


class Results:
    """The file: rewritten after every section, so that a run cut short leaves what it had."""

    def __init__(self, path: Path, device: str) -> None:
        self._path, self._start = path, time.perf_counter()
        gpu = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
        self.found: dict[str, Any] = {
            "device": gpu,
            "date": datetime.date.today().isoformat(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "command": " ".join(sys.argv),
        }

    def section(self, name: str, measure: Callable[[], object]) -> None:
        """Run one section and keep what it found, or why it failed."""
        began = time.perf_counter()
        try:
            self.found[name] = measure()
        except Exception as error:
            traceback.print_exc()
            self.found[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(
            f"[{began - self._start:6.1f} +{time.perf_counter() - began:5.1f} s] {name}: {self.found[name]}", flush=True
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.found, indent=1, default=str) + "\n", encoding="utf-8")


def bandwidth(device: str) -> dict[str, float]:
    """Bytes a second of reading memory, the best of several passes over 2 GB: the floor's denominator."""
    if device != "cuda":
        return {}
    numbers = torch.ones(1 << 30, dtype=torch.bfloat16, device=device)
    best = float("inf")
    for _ in range(8):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        numbers.sum()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return {"read_bytes_per_s": numbers.numel() * 2 / best}


def step_times(settings: RecordSettings, session: Session, read_bytes_per_s: float | None, folder: Path) -> object:
    """Medians of a sweep in milliseconds, and how far the steps are from reading their weights once."""
    context = 256
    grid = Grid(contexts=(context,), widths=(1, 2, 4, 8, 16), branch_counts=(1, 4, 8), num_steps=6, num_repeats=20)
    ops = record_sweep(settings, folder, grid, session=session).ops
    ops = ops.assign(ms=1e3 * (ops.end_s - ops.start_s))
    ops["what"] = ops.kind.astype(str).where(~ops.is_beside, ops.kind.astype(str) + "_beside")
    medians = ops.groupby(["what", "num_tokens", "num_branches"]).ms.median()
    table = {f"{what} {tokens} x {rows}": round(ms, 4) for (what, tokens, rows), ms in medians.items()}
    found: dict[str, object] = {"context": context, "median_ms": table}
    verify = medians["verify"]
    found["verify_8_over_1"] = float(verify[8, 1] / verify[1, 1])
    target, draft = session.target, session.engine
    if read_bytes_per_s and isinstance(draft, ResidentEngine) and isinstance(target, GraphTarget):
        for name, engine, ms in (("target", target.engine, verify[1, 1]), ("draft", draft, medians["draft"][1, 1])):
            num_bytes = _step_bytes(engine.weights) + 2 * engine.weights.shape.kv_numbers * context  # 16 bits
            floor_ms = 1e3 * num_bytes / read_bytes_per_s
            found[name] = {"step_ms": float(ms), "floor_ms": floor_ms, "over_floor": float(ms) / floor_ms}
    return found


def _step_bytes(weights: ResidentWeights) -> int:
    """Bytes that one decoding step has to read, its keys and values aside: the memory-bandwidth floor."""
    read = [weights.final_norm, weights.head]
    for block in weights.blocks:
        read += [part for part in block if isinstance(part, torch.Tensor)]
    return sum(part.numel() * part.element_size() for part in read)


def eager_generate(target: str, device: str) -> object:
    """Tokens a second of transformers' own greedy generate on random weights of the same shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = parse_model(target)
    if not isinstance(model, RandomShape):
        return {}
    shape = model.shape
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=2048,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device), torch.no_grad():
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    ids = torch.arange(5, 133, device=device)[None]
    speeds = []
    with torch.inference_mode():
        for num_tokens in (8, 64, 64):
            _wait(device)
            start = time.perf_counter()
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, min_new_tokens=num_tokens,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
            _wait(device)
            speeds.append(num_tokens / (time.perf_counter() - start))
    return {"tokens_per_s": max(speeds)}


def identity(settings: RecordSettings, num_prompts: int) -> object:
    """Tokens of every method against autoregressive decoding, and executed rounds against replayed ones."""
    found: dict[str, object] = {}
    with Session(settings.pair) as session:
        num_runs, different, rounds, near_ties = 0, [], [], 0
        for temperature in (0.0, 0.7, 1.0):
            for prompt in load_prompts("held_out", num_prompts + 1)[1:]:
                request = Request(
                    prompt_id=prompt.prompt_id,
                    tokens=session.encode(prompt.text),
                    max_new_tokens=48,
                    sampling=Sampling(temperature),
                    noise_key=zlib.crc32(prompt.prompt_id.encode()),
                    ignore_eos=True,
                )
                plain = session.run(request, parse_policy("autoregressive"))
                annotation = session.annotate(plain, request_id=0, tail_depth=16)
                near_ties += annotation.num_near_ties
                for label in IDENTITY:
                    done = session.run(request, parse_policy(label))
                    num_runs += 1
                    if done.tokens != plain.tokens:
                        different.append((label, temperature, prompt.prompt_id))
                    elif [round_ for round_, _ in done.rounds] != replay(parse_policy(label), annotation.trace):
                        rounds.append((label, temperature, prompt.prompt_id))
        found |= {
            "num_runs": num_runs,
            "num_near_ties": near_ties,
            "different_tokens": different,
            "different_rounds": rounds,
        }
    return found


def speeds(settings: RecordSettings, folder: Path, labels: Sequence[str]) -> object:
    """Record two calibration settings, predict the others on other prompts, run those: measured beside predicted."""
    record_run(settings, folder / "recorded")
    validation = validate_run(
        folder / "recorded", folder / "validated", list(map(parse_policy, labels)), num_prompts=settings.prompts.num
    )
    run = read_run(folder / "validated")
    found = asdict(validation)
    try:
        overlap = measure_overlap(run.ops, run.rounds)
        found["overlap"] = {"wall_over_bound": overlap.wall_over_bound, "wall_over_serial": overlap.wall_over_serial}
    except ValueError as error:
        found["overlap"] = str(error)
    machine = machine_speed_of(run.requests, run.rounds)
    found["measured"] = [vars(speed) for speed in measured_speeds(run.requests, run.rounds)]
    found["adjusted"] = [vars(speed) for speed in measured_speeds(run.requests, machine.adjusted(run.rounds))]
    return found


def assisted(device: str) -> object:
    """transformers' serial assisted generation on the embedded pair, greedy, beside its plain generate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target, draft = (
        AutoModelForCausalLM.from_pretrained(resolve_model("embedded", role)).to(device).eval()
        for role in ("target", "draft")
    )
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("embedded", "target"))
    draft.generation_config.num_assistant_tokens = 4
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    found = {}
    for name, extra in (("plain", {}), ("assisted", {"assistant_model": draft})):
        num, seconds = 0, 0.0
        for index, prompt in enumerate(load_prompts("held_out", 5)):
            ids = tokenizer(prompt.text, return_tensors="pt").input_ids.to(device)
            _wait(device)
            start = time.perf_counter()
            with torch.inference_mode():
                out = target.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=64,
                    do_sample=False,
                    pad_token_id=1,
                    **extra,
                )
            _wait(device)
            if index:
                num, seconds = num + out.shape[1] - ids.shape[1], seconds + time.perf_counter() - start
        found[name] = {"tokens_per_s": num / seconds}
    return found


def memory(settings: RecordSettings) -> object:
    """Bytes allocated before a session, with it, and after it is closed."""
    if settings.pair.engine.device != "cuda":
        return {}
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with Session(settings.pair) as session:
        request = Request(prompt_id="x", tokens=(5, 6, 7), max_new_tokens=8, sampling=Sampling(0.0), ignore_eos=True)
        session.run(request, parse_policy("pearl"))
        held = torch.cuda.memory_allocated()
    del session
    torch.cuda.empty_cache()
    return {"before": before, "held": held, "after": torch.cuda.memory_allocated()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--target-device", default="", help="cuda:1 beside cuda: a process and a GPU each")
    parser.add_argument("--transport", default="mailbox")
    parser.add_argument("--target", default="random:llama-3.1-8b")
    parser.add_argument("--draft", default="random:qwen2.5-0.5b")
    parser.add_argument("--alpha", type=float, default=0.75)
    parser.add_argument("--num-prompts", type=int, default=6)
    parser.add_argument("--sections", nargs="+", default=None)
    arguments = parser.parse_args()
    device = arguments.device
    results = Results(arguments.output, device)
    folder = Path(tempfile.mkdtemp())
    embedded = RecordSettings(
        pair=PairSettings(
            engine=EngineSettings(kind=EngineKind.RESIDENT, device=device, capacity=512),
            target_device=arguments.target_device,
            transport=parse_transport(arguments.transport),
        ),
        decoding=DecodingSettings(max_new_tokens=64),
        prompts=PromptSettings(num=arguments.num_prompts),
    )
    dtype = "bfloat16" if device == "cuda" else "float32"
    shapes = replace(
        embedded,
        pair=replace(
            embedded.pair,
            target=arguments.target,
            draft=arguments.draft,
            engine=replace(embedded.pair.engine, dtype=dtype, capacity=1024),
        ),
        decoding=replace(
            embedded.decoding,
            temperatures=(0.0,),
            ignore_eos=True,
            acceptance=f"geometric:alpha={arguments.alpha},rank_decay=0.5",
            policies=(
                "autoregressive",
                "specbranch:uses_hrad=false,max_branches=1,draft_length=8,prior_length=8,epsilon=0",
            ),
        ),
    )
    exact = replace(
        embedded, pair=replace(embedded.pair, engine=replace(embedded.pair.engine, dtype="bfloat16"), verify_width=16)
    )

    def shape_steps() -> object:
        rate = results.found.get("bandwidth", {}).get("read_bytes_per_s")
        with Session(shapes.pair) as session:
            return step_times(shapes, session, rate, folder / "sweep")

    def early_launches() -> object:
        """Step times with each kernel launched while the one before it ends, in the same run as without."""
        found = {}
        for starts_early in (False, True) if device == "cuda" else ():
            with Session(shapes.pair) as session:
                for engine in (session.engine, session.target.engine):
                    engine.starts_early(starts_early)
                rate = results.found.get("bandwidth", {}).get("read_bytes_per_s")
                found[str(starts_early)] = step_times(shapes, session, rate, folder / f"early-{starts_early}")
        return found

    def confined_draft() -> object:
        """Step times with the draft on some multiprocessors only: what it costs the draft and saves the target."""
        found = {}
        for num_sms in (16, 32, 64) if device == "cuda" else ():
            with Session(replace(shapes.pair, draft_sms=num_sms)) as session:
                found[num_sms] = step_times(shapes, session, None, folder / f"sweep-{num_sms}")
        return found

    sections: dict[str, Callable[[], object]] = {
        "bandwidth": lambda: bandwidth(device),
        "steps": shape_steps,
        "early_launches": early_launches,
        "identity_float32": lambda: identity(embedded, 2),
        "speeds_shapes": lambda: speeds(shapes, folder / "shapes", SPEEDS),
        "eager_generate": lambda: eager_generate(arguments.target, device),
        "identity_bfloat16_fixed_width": lambda: identity(exact, 2),
        "memory": lambda: memory(embedded),
        "speeds_embedded": lambda: speeds(embedded, folder / "embedded", SPEEDS),
        "assisted": lambda: assisted(device),
        "confined_draft": confined_draft,
    }
    for name in arguments.sections or sections:
        results.section(name, sections[name])
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
