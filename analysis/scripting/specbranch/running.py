"""Record, validate and compare from a script: models run, and torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.check.compare import compare as compare_methods
from analysis.check.compare import models_of
from analysis.check.comparison import ComparedPolicy
from analysis.check.precision import Effort
from analysis.check.validate import validate_run
from analysis.check.validation import Validation
from analysis.cli.options import prompt_form
from analysis.study.candidates import validated_policies
from analysis.tuning.auto import is_auto, resolve_on_run
from executor.models.settings import EngineSettings, PairSettings, parse_engine, parse_transport
from executor.recording.recorder import record_run
from executor.recording.settings import DecodingSettings, PromptSettings, RecordSettings
from sim.decoding.rules import parse_rule
from sim.latency.base import LatencyModel
from specbranch.simulating import Policies, labels_of, stated
from traces.folder.run import Run
from traces.progress import Report, silent

__all__ = ["compare", "record", "validate"]


def record(  # long: one argument an option of the command
    output_dir: str | Path,
    *,
    target: str = "embedded",
    draft: str = "embedded",
    policies: Policies = DecodingSettings.policies,
    temperatures: Sequence[float] = DecodingSettings.temperatures,
    top_k: int = 0,
    top_p: float = 1.0,
    prompts: str = "held_out",
    chat: bool | None = None,
    num_prompts: int = 16,
    skip_prompts: int = 0,
    timed_prompts: int = 0,
    max_new_tokens: int = 96,
    repeats: int = 1,
    seed: int = 0,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
    tail_depth: int = 16,
    engine: str = "static",
    device: str = "cpu",
    target_device: str = "",
    transport: str = "mailbox",
    dtype: str = "float32",
    capacity: int = 1024,
    verify_width: int = 0,
    draft_sms: int = 0,
    acceptance: str = "",
    hrad: str = "",
    rule: str = "shared",
    ignore_generation_config: bool = False,
    allow_vocab_difference: bool = False,
    trust_remote_code: bool = False,
    resume: bool = False,
    progress: Report = silent,
) -> Run:
    """Run a pair for real and write down everything that happened, as `specbranch record` does with these options.

    Raises ValueError for settings that do not fit, ExecutorError where a model cannot be run.
    """
    if left_open := [each for each in policies if isinstance(each, str) and is_auto(each)]:
        raise ValueError(f"{left_open[0]} leaves its settings open; the command chooses them, a script says them.")
    settings = RecordSettings(
        pair=PairSettings(
            target=target,
            draft=draft,
            engine=EngineSettings(
                kind=parse_engine(engine),
                device=device,
                dtype=dtype,
                capacity=capacity,
                trusts_remote_code=trust_remote_code,
            ),
            target_device=target_device,
            transport=parse_transport(transport),
            hrad=hrad,
            verify_width=verify_width,
            draft_sms=draft_sms,
            ignores_generation_config=ignore_generation_config,
            allows_vocab_difference=allow_vocab_difference,
            rule=parse_rule(rule),
        ),
        decoding=DecodingSettings(
            policies=tuple(labels_of(policies)),
            temperatures=tuple(temperatures),
            top_k=top_k,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop_strings=tuple(stop),
            ignore_eos=ignore_eos,
            acceptance=acceptance,
        ),
        prompts=PromptSettings(
            source=prompts, num=num_prompts, skip=skip_prompts, num_timed=timed_prompts or None, form=prompt_form(chat)
        ),
        repeats=repeats,
        tail_depth=tail_depth,
    )
    return record_run(settings, Path(output_dir), resumes=resume, progress=progress)


def validate(
    run: str | Path,
    output_dir: str | Path,
    *,
    policies: Policies | None = None,
    calibration: str | Path | LatencyModel | None = None,
    num_prompts: int = 16,
    repeats: int = 1,
    precision: str = "",
    max_seconds: float = 0.0,
    seed: int = 0,
    trust_remote_code: bool = False,
    progress: Report = silent,
) -> Validation:
    """Run policies for real on prompts that were not recorded, and compare with the prediction. Raises ValueError."""
    latency = Path(calibration) if isinstance(calibration, str) else calibration
    chosen = list(resolve_on_run(stated(policies or ()), Path(run), latency=latency).values())
    return validate_run(
        Path(run),
        Path(output_dir),
        chosen or validated_policies(),
        latency=latency,
        num_prompts=num_prompts,
        repeats=repeats,
        seed=seed,
        trusts_remote_code=trust_remote_code,
        effort=Effort.of(precision, max_seconds),
        progress=progress,
    )


def compare(
    output_dir: str | Path,
    *,
    target: str = "embedded",
    draft: str = "embedded",
    hrad: str = "",
    pair: str = "",
    prompts: str = "",
    temperatures: Sequence[float] = (0.0, 1.0),
    num_prompts: int = 32,
    max_new_tokens: int = 96,
    repeats: int = 1,
    seed: int = 0,
    precision: str = "",
    max_seconds: float = 0.0,
    quick: bool = False,
    ignore_generation_config: bool = False,
    allow_vocab_difference: bool = False,
    trust_remote_code: bool = False,
) -> list[ComparedPolicy]:
    """Every method on the same prompts, each with the settings that the simulator chose. Raises ValueError.

    pair: embedded or smollm2, in place of both models. quick: smaller grids.
    """
    target, draft, prompts = models_of(pair, target=target, draft=draft, prompts=prompts)
    return compare_methods(
        Path(output_dir),
        target=target,
        draft=draft,
        hrad=hrad,
        prompts=prompts,
        temperatures=temperatures,
        num_prompts=num_prompts,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        is_quick=quick,
        effort=Effort.of(precision, max_seconds),
        seed=seed,
        ignores_generation_config=ignore_generation_config,
        allows_vocab_difference=allow_vocab_difference,
        trusts_remote_code=trust_remote_code,
    )
