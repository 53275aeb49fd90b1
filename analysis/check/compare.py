"""Every method on one pair, one machine, one set of prompts: measured beside predicted, with what each threw away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from analysis.check.comparison import COMPARISON, ComparedPolicy, compared_policies
from analysis.check.precision import Effort, Watch
from analysis.check.reports import write_report
from analysis.check.uncertainty import UNKNOWN_SPREAD, calibration_spread
from analysis.check.validate import validate
from analysis.check.validation import VALIDATION
from analysis.study.candidates import CALIBRATION_POLICIES, LOOKUP_CALIBRATION_POLICIES, hrad_calibration_policies
from analysis.tuning.ablation import ABLATION, ablate
from analysis.tuning.choosing import AUTO_TRIED, choose_lookup, choose_policies, without_losing_predictor
from analysis.tuning.free_running import with_free_drafts
from analysis.tuning.search import MAX_TRIED, Chosen
from analysis.tuning.what_if import WHAT_IF, WhatIf, merged, what_if
from sim.decoding.policies.catalog import label_of
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.latency.base import LatencyModel
from sim.latency.fitted import FittedLatency
from traces.fits.calibration import calibrate
from traces.folder.run import Run
from traces.folder.writer import check_new_folder
from traces.metrics.machine_speed import machine_speed_of
from traces.progress import Report, Stages, silent_stages
from traces.schema import RequestTrace

if TYPE_CHECKING:
    from executor.recording.settings import RecordSettings


PAIR_PROMPTS = {"embedded": "held_out", "smollm2": "questions"}  # of the pairs that are known by name


class Choose(Protocol):
    """Chooses a policy for each family, on traces of one temperature."""

    def __call__(
        self, traces: Sequence[RequestTrace], latency: LatencyModel, *, progress: Report
    ) -> Mapping[str, Chosen]:
        """Family -> its choice."""
        ...


def compare(
    output_dir: Path,
    *,
    target: str = "embedded",
    draft: str = "embedded",
    hrad: str = "",
    prompts: str = "held_out",
    temperatures: Sequence[float] = (0.0, 1.0),
    num_prompts: int = 32,
    max_new_tokens: int = 96,
    repeats: int = 1,
    is_quick: bool = False,
    seed: int = 0,
    ignores_generation_config: bool = False,
    allows_vocab_difference: bool = False,
    trusts_remote_code: bool = False,
    fit: Callable[[Run], LatencyModel] | None = None,
    effort: Effort | None = None,
    progress: Stages = silent_stages,
) -> list[ComparedPolicy]:
    """Record and calibrate on some prompts, choose each family's settings on the simulator, run all of them on others.

    Writes recorded/ and compared/ run folders, and recorded_lookup/ and compared_lookup/ for prompt lookup, whose draft is
    another one: its speed-up is over autoregressive decoding in its own run. The whole table stands in comparison.json, the
    same methods at other costs, DSI and SpecBranch's oracles in what_if.json (`analysis.tuning.what_if`), SpecBranch without
    each of its parts in ablation.json. An H-RAD predictor that SpecBranch is predicted no faster with is not measured, and the
    rows say so.
    fit: the latency model of a recorded run; None calibrates it. effort: when measuring may stop before all prompts are
    through, with each draft; None goes through all of them.
    """
    from executor.hrad.predictor import predicted_window
    from executor.models.settings import EngineSettings, PairSettings
    from executor.recording.schedule import check_prompts
    from executor.recording.settings import DecodingSettings, PromptSettings, RecordSettings

    check_new_folder(output_dir)
    settings = RecordSettings(
        pair=PairSettings(
            target=target,
            draft=draft,
            hrad=hrad,
            engine=EngineSettings(trusts_remote_code=trusts_remote_code),
            ignores_generation_config=ignores_generation_config,
            allows_vocab_difference=allows_vocab_difference,
        ),
        decoding=DecodingSettings(
            policies=CALIBRATION_POLICIES + hrad_calibration_policies(predicted_window(hrad)),
            temperatures=tuple(temperatures),
            max_new_tokens=max_new_tokens,
            seed=seed,
        ),
        prompts=PromptSettings(source=prompts, num=num_prompts),
    )
    both = check_prompts(replace(settings, prompts=replace(settings.prompts, num=2 * num_prompts)))
    settings = replace(settings, prompts=replace(settings.prompts, form=both.prompts.form))
    lookup = replace(
        settings,
        pair=replace(settings.pair, draft="prompt_lookup", hrad=""),
        decoding=replace(settings.decoding, policies=LOOKUP_CALIBRATION_POLICIES),
    )
    given: dict[str, Any] = {"repeats": repeats, "fit": fit, "effort": effort, "progress": progress}
    rows = _compare_pair(lookup, output_dir, "_lookup", choose_lookup, **given)
    choose = partial(choose_policies, max_tried=AUTO_TRIED if is_quick else MAX_TRIED)
    rows = [
        *_compare_pair(
            settings,
            output_dir,
            "",
            choose,
            ask_what_if=partial(what_if, is_quick=is_quick),
            lets_run_free=not is_quick,
            **given,
        ),
        *(row for row in rows if row.family != "autoregressive"),
    ]
    write_report(output_dir, COMPARISON, rows)
    return rows


def models_of(pair: str, *, target: str, draft: str, prompts: str) -> tuple[str, str, str]:
    """Target, draft and prompts of a comparison. pair: one that is known by name, in place of both models; empty leaves them.
    prompts: empty takes those that suit. Raises ValueError for a pair that is unknown, not at hand, or beside a model."""
    from executor.models.names import resolve_model

    if not pair:
        return target, draft, prompts or PAIR_PROMPTS["embedded"]
    if pair not in PAIR_PROMPTS:
        raise ValueError(f"unknown pair {pair!r}: choose {' or '.join(PAIR_PROMPTS)}.")
    if (target, draft) != ("embedded", "embedded"):
        raise ValueError("--pair names both models: leave out --target and --draft.")
    resolve_model(pair, "draft")  # what is not there is said before anything is decoded
    return pair, pair, prompts or PAIR_PROMPTS[pair]


def _compare_pair(
    settings: RecordSettings,
    output_dir: Path,
    suffix: str,
    choose: Choose,
    *,
    repeats: int,
    fit: Callable[[Run], LatencyModel] | None,
    effort: Effort | None,
    progress: Stages,
    ask_what_if: Callable[..., WhatIf] | None = None,
    lets_run_free: bool = False,
) -> list[ComparedPolicy]:
    """The comparison with one draft. ask_what_if: asks of traces and latencies what other costs would have brought.
    lets_run_free: whether drafts go on until the verdict comes where that is predicted to pay."""
    from executor.pair import Session
    from executor.recording.recorder import record, record_run
    from executor.recording.schedule import in_blocks, make_requests

    recorded_dir, compared_dir = (output_dir / f"{name}{suffix}" for name in ("recorded", "compared"))
    decoding, prompts = settings.decoding, settings.prompts
    with Session(settings.pair) as session:
        with progress(f"recording with draft {settings.pair.draft}") as report:
            recorded = record_run(settings, recorded_dir, session=session, progress=report)
        latency, traces = (fit or partial(_calibrated, seed=decoding.seed))(recorded), recorded.traces()
        families: dict[float, Mapping[str, Chosen]] = {}
        by_temperature = {
            temperature: [trace for trace in traces if trace.temperature == temperature]
            for temperature in decoding.temperatures
        }
        for temperature, usable in by_temperature.items():
            with progress(f"choosing settings at T = {temperature:g}") as report:
                families[temperature] = choose(usable, latency, progress=report)
        if ask_what_if is not None:
            with progress("choosing settings at other costs") as report:
                parts = [ask_what_if(usable, latency, progress=report) for usable in by_temperature.values()]
            write_report(output_dir, WHAT_IF, merged(parts))
            changed = [ablate(usable, latency, families[temperature]) for temperature, usable in by_temperature.items()]
            write_report(output_dir, ABLATION, [row for rows in changed for row in rows])
        families = {temperature: without_losing_predictor(chosen) for temperature, chosen in families.items()}
        if lets_run_free:
            with progress("letting drafts run free") as report:
                families = {
                    temperature: with_free_drafts(families[temperature], usable, latency, progress=report)
                    for temperature, usable in by_temperature.items()
                }
        policies = list(dict.fromkeys(choice.policy for chosen in families.values() for choice in chosen.values()))
        measuring = replace(
            settings,
            decoding=replace(decoding, policies=tuple(map(label_of, policies))),
            prompts=replace(prompts, skip=prompts.skip + prompts.num),
            repeats=repeats,
        )
        blocks = in_blocks(
            make_requests(measuring, session),
            lambda request: [
                *[Autoregressive()] * 2,  # twice: how far two runs of one policy are apart
                *dict.fromkeys(choice.policy for choice in families[request.sampling.temperature].values()),
            ],
            repeats=repeats,
            seed=decoding.seed,
        )
        watch = Watch(effort) if effort else None
        with progress("measuring") as report:
            measured = record(blocks, measuring, compared_dir, session=session, progress=report, is_enough=watch)
    spread = UNKNOWN_SPREAD
    if fit is None:
        machine = machine_speed_of(recorded.requests, recorded.rounds)
        spread = calibration_spread(recorded, machine, [Autoregressive(), *policies], traces)
    validation = validate(measured, traces, latency, seed=decoding.seed, spread=spread)
    rows = compared_policies(measured, validation, families)
    write_report(compared_dir, VALIDATION, validation)
    write_report(compared_dir, COMPARISON, rows)
    return rows


def _calibrated(run: Run, *, seed: int) -> LatencyModel:
    """The latencies of a run, whose calibration is left beside it."""
    calibration = calibrate(run, seed=seed)
    calibration.save(run.folder / "calibration.json")
    return FittedLatency(calibration)
