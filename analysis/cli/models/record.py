"""`specbranch record`: run a pair for real."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.cli.options import (
    MAX_COUNT,
    NOT_IDENTICAL,
    AllowVocabDifference,
    Capacity,
    Chat,
    Draft,
    DType,
    Hrad,
    IgnoreGenerationConfig,
    MaxNewTokens,
    NumPrompts,
    OutputDir,
    Policies,
    Repeats,
    Seed,
    SkipPrompts,
    Target,
    Temperatures,
    TrustRemoteCode,
    console,
    prompt_form,
    within,
)

if TYPE_CHECKING:
    from executor.recording.settings import RecordSettings
    from traces.folder.run import Run


def record(
    output_dir: OutputDir,
    target: Target = "embedded",
    draft: Draft = "embedded",
    policy: Policies = None,
    temperature: Temperatures = None,
    top_k: Annotated[
        int, typer.Option(callback=within(0), help="Sample from the k most probable tokens only; 0 takes all.")
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(callback=within(), help="Sample from the most probable tokens up to this mass only; 1 takes all."),
    ] = 1.0,
    prompts: Annotated[
        str, typer.Option(help="Use these prompts: `held_out`, `training`, `questions`, or a .jsonl file.")
    ] = "held_out",
    chat: Chat = None,
    num_prompts: NumPrompts = 16,
    skip_prompts: SkipPrompts = 0,
    timed_prompts: Annotated[
        int,
        typer.Option(
            callback=within(0, MAX_COUNT),
            help="Decode only this many prompts under every policy, the rest under the first one; 0 decodes all so.",
        ),
    ] = 0,
    max_new_tokens: MaxNewTokens = 96,
    repeats: Repeats = 1,
    seed: Seed = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End an answer where this text appears; give it once for each text.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option(help="Go on after an end-of-sequence token, up to the limit of tokens.")
    ] = False,
    tail_depth: Annotated[
        int, typer.Option(callback=within(0, 1024), help="Record this many draft tokens after each wrong one.")
    ] = 16,
    engine: Annotated[
        str, typer.Option(help="Run the models on this engine: static, hugging_face, or resident (GPUs, graphs).")
    ] = "static",
    device: Annotated[
        str, typer.Option(help="Run both models (or the draft alone) on this device: cpu, cuda or cuda:N.")
    ] = "cpu",
    target_device: Annotated[str, typer.Option(help="Run the target on this device, if it is another one.")] = "",
    transport: Annotated[
        str,
        typer.Option(
            help="Two processes talk through this: mailbox (shared memory) or distributed (torch: NCCL, gloo)."
        ),
    ] = "mailbox",
    dtype: DType = "float32",
    capacity: Capacity = 1024,
    verify_width: Annotated[
        int,
        typer.Option(
            callback=within(0, 1024),
            help="Verify this many rows every time (resident engine only); 0 takes as many as needed.",
        ),
    ] = 0,
    draft_sms: Annotated[
        int,
        typer.Option(
            callback=within(0, MAX_COUNT),
            help="Let the draft use this many multiprocessors of a shared GPU; 0 lets it use all.",
        ),
    ] = 0,
    acceptance: Annotated[
        str,
        typer.Option(
            help="Decide outcomes by a law, geometric:alpha=0.8 or run:FOLDER, not by the models' own tokens."
        ),
    ] = "",
    hrad: Hrad = "",
    rule: Annotated[
        str,
        typer.Option(
            help="Verify by this rule: shared (noise that both models share), ratio (rejection sampling, as engines do), or "
            "point_mass (their greedy draft). The last two run serial policies, in one process."
        ),
    ] = "shared",
    model_sampling: Annotated[
        bool,
        typer.Option(
            "--model-sampling", help="Sample as the target's generation_config says: temperature, top-k, top-p."
        ),
    ] = False,
    ignore_generation_config: IgnoreGenerationConfig = False,
    allow_vocab_difference: AllowVocabDifference = False,
    trust_remote_code: TrustRemoteCode = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run of the same settings that was cut short in this folder.")
    ] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Time a grid of contexts, widths and branches instead of decoding.")
    ] = False,
    sweep_batch: Annotated[
        list[int] | None,
        typer.Option(
            callback=within(1, 1024),
            help="With --sweep, also time steps of this many requests at once, for `plan`; give it once for each number.",
        ),
    ] = None,
) -> None:
    """Run a pair for real and write down everything that happened."""
    from executor.remote.starting import start_ahead

    if engine != "resident" and not (sweep or rule != "shared"):
        start_ahead()  # it imports while we do
    from analysis.check.identity import why_tokens_differ
    from analysis.cli.progress import progress_bar
    from analysis.cli.tables import print_doubt, print_reason, print_speeds
    from analysis.tuning.auto import is_auto
    from executor.models.loading import sampling_of
    from executor.models.settings import EngineSettings, PairSettings, parse_engine, parse_transport
    from executor.recording.recorder import record_run
    from executor.recording.settings import DecodingSettings, PromptSettings, RecordSettings
    from sim.decoding.rules import parse_rule
    from traces.metrics.machine_speed import machine_speed_of
    from traces.metrics.speeds import doubt_of, measured_speeds

    defaults = DecodingSettings()
    temperatures = tuple(temperature or defaults.temperatures)
    if model_sampling:
        if temperature or top_k or top_p != 1:
            raise ValueError("--model-sampling takes temperature, top-k and top-p from the model; give it or those.")
        sampling = sampling_of(target, trusts_remote_code=trust_remote_code)
        temperatures, top_k, top_p = (sampling.temperature,), sampling.top_k, sampling.top_p
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
            policies=tuple(policy or defaults.policies),
            temperatures=temperatures,
            top_k=top_k,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop_strings=tuple(stop or ()),
            ignore_eos=ignore_eos,
            acceptance=acceptance,
        ),
        prompts=PromptSettings(
            source=prompts, num=num_prompts, skip=skip_prompts, num_timed=timed_prompts or None, form=prompt_form(chat)
        ),
        repeats=repeats,
        tail_depth=tail_depth,
    )
    if sweep_batch and not sweep:
        raise ValueError("--sweep-batch is a part of --sweep; give both.")
    if sweep:
        from executor.recording.batches import BatchGrid
        from executor.recording.sweep import Grid, record_sweep

        batches = BatchGrid(batches=tuple(sorted(set(sweep_batch)))) if sweep_batch else None
        with progress_bar(console, "sweeping") as report:
            swept = record_sweep(settings, output_dir, Grid(), batches=batches, progress=report).requests
        print_doubt(console, doubt_of(int((~swept.is_clean).sum()), len(swept)))
        console.print(f"run folder: {output_dir}; fit it with: specbranch calibrate --run {output_dir}")
        return
    if any(map(is_auto, settings.decoding.policies)):
        if resume:
            raise typer.BadParameter(
                "a method without settings chooses them anew: give the labels that the run recorded (its config.yaml).",
                param_hint="'--resume'",
            )
        run = _record_auto(settings, output_dir)
    else:
        with progress_bar(console, "recording") as report:
            run = record_run(settings, output_dir, resumes=resume, progress=report)
    machine = machine_speed_of(run.requests, run.rounds)
    speeds, adjusted = (measured_speeds(run.requests, rounds) for rounds in (run.rounds, machine.adjusted(run.rounds)))
    print_speeds(console, "Measured", speeds, machine, adjusted)
    verdict = run.summary["tokens_identical"]
    why = "acceptance is synthetic" if acceptance else f"the rule {rule} draws anew for each policy"
    identical = {True: "yes", False: "NO", None: f"not claimed, {why}"}
    console.print(f"tokens identical under every policy: {identical[verdict]}")
    if verdict is False:
        print_reason(console, why_tokens_differ(run.requests, dtype))
    console.print(f"run folder: {output_dir}")
    if verdict is False:
        raise typer.Exit(NOT_IDENTICAL)


def _record_auto(settings: RecordSettings, output_dir: Path) -> Run:
    """A recording whose settings follow from a short one before it."""
    from analysis.cli.progress import progress_bar
    from analysis.cli.tables import print_lines
    from analysis.tuning.auto import is_auto, resolution_lines, resolve
    from analysis.tuning.preview import preview
    from executor.hrad.predictor import check_classes, predicted_window
    from executor.models.names import check_drafter
    from executor.pair import Session
    from executor.recording.recorder import record_run
    from executor.recording.schedule import check_prompts
    from executor.recording.synthetic import SyntheticAcceptance
    from sim.decoding.policies.catalog import label_of, parse_policy
    from traces.folder.writer import check_new_folder
    from traces.schema import Rule

    if settings.pair.rule is not Rule.SHARED:
        raise ValueError(
            f"with the rule {settings.pair.rule} no settings are chosen for a method's name alone: give them, such as "
            "--policy fixed_length:draft_length=4."
        )
    if settings.decoding.acceptance:
        SyntheticAcceptance(settings.decoding.acceptance)
    window = predicted_window(settings.pair.hrad)
    for label in settings.decoding.policies:
        policy = parse_policy(label)
        check_drafter(policy, settings.pair.draft)
        if not is_auto(label):
            check_classes(policy, window)
    check_new_folder(output_dir)
    check_prompts(settings)
    with Session(settings.pair) as session:
        with progress_bar(console, "choosing settings on a few prompts", is_transient=True) as report:
            traces, latency = preview(settings, session, progress=report)
        resolved = resolve(settings.decoding.policies, traces, latency)
        print_lines(console, resolution_lines(resolved))
        labels = tuple(map(label_of, resolved.values()))
        settings = replace(settings, decoding=replace(settings.decoding, policies=labels))
        with progress_bar(console, "recording") as report:
            return record_run(settings, output_dir, session=session, progress=report)
