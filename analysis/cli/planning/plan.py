"""`specbranch plan`: how many devices hold a traffic, with which draft length at which load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from analysis.cli.conclusion import AsJson, conclude, console_for
from analysis.cli.options import MAX_COUNT, OutputDir, Seed, own_policies, within

if TYPE_CHECKING:
    from analysis.plan.planning import PlanResult


def plan(
    output_dir: OutputDir,
    traffic: Annotated[
        Path | None,
        typer.Option(help="Plan for the requests of this file: Azure, Mooncake, BurstGPT, Vidur, AIPerf ..."),
    ] = None,
    request_rate: Annotated[
        float | None, typer.Option(help="So many requests come in a second; of a file, instead of its own rate.")
    ] = None,
    burstiness: Annotated[
        float, typer.Option(help="Shape of the gaps' Gamma law: 1 is Poisson, less is burstier.")
    ] = 1.0,
    prompt_tokens: Annotated[
        float, typer.Option(help="Without a file: prompts have this many tokens, in the mean.")
    ] = 512,
    output_tokens: Annotated[
        float, typer.Option(help="Without a file: outputs have this many tokens, in the mean.")
    ] = 256,
    length_cv: Annotated[float, typer.Option(help="Without a file: both vary by this share of their mean.")] = 0.5,
    goodput: Annotated[
        str, typer.Option(help="A request is good if it meets these, in milliseconds: ttft, tpot, e2el.")
    ] = "ttft:1000 tpot:50",
    attainment: Annotated[float, typer.Option(help="This share of the requests must be good.")] = 0.95,
    acceptance: Annotated[
        str,
        typer.Option(
            help="Share of drafts accepted at positions 1, 2, ... as engines print them, such as 0.72,0.51,0.36, or the "
            "acceptance.json of `specbranch import`."
        ),
    ] = "",
    run: Annotated[
        Path | None, typer.Option(help="Take acceptance from this run folder of `specbranch record`.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="The target has this shape, or that of an id or folder.")
    ] = "llama-3.1-8b",
    draft: Annotated[str, typer.Option(help="The draft has this shape, or that of an id or folder.")] = "llama-3.2-1b",
    draft_method: Annotated[
        str, typer.Option(help="Engines name the draft's method so: draft_model, eagle, eagle3, mtp, ngram ...")
    ] = "draft_model",
    hardware: Annotated[str, typer.Option(help="The target runs on this device: h100, a100-80gb, l40s ...")] = "h100",
    num_devices: Annotated[int, typer.Option(help="This many devices share the target's matrices.")] = 1,
    bits: Annotated[float, typer.Option(help="Each weight takes this many bits.")] = 16.0,
    costs: Annotated[
        Path | None, typer.Option(help="Take step costs from this file instead of data sheets; needs --kv-tokens.")
    ] = None,
    kv_tokens: Annotated[
        int | None,
        typer.Option(help="The memory holds this many tokens, as the engine's log says (GPU KV cache size)."),
    ] = None,
    max_length: Annotated[int, typer.Option(help="Drafts have up to this many tokens.")] = 5,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            callback=own_policies,
            help="Also plan this method, its draft on a device of its own, such as specbranch:draft_length=4, or a method's "
            "name alone, whose settings then follow from the costs of a step.",
        ),
    ] = None,
    shared_draft: Annotated[
        bool, typer.Option("--shared-draft", help="Also plan these methods with one draft device for all replicas.")
    ] = False,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="Also plan lengths that a rule chooses in every step: goodput (SmartSpec) or moving_average (SGLang)."
        ),
    ] = None,
    price: Annotated[float | None, typer.Option(help="A device costs this much an hour.")] = None,
    max_num_seqs: Annotated[int, typer.Option(help="The engine runs up to this many requests at once.")] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option(help="A step takes up to this many new tokens.")] = 8192,
    router: Annotated[
        str, typer.Option(help="Requests go to replicas by least_outstanding_tokens, round_robin or prefix_aware.")
    ] = "least_outstanding_tokens",
    prefix_caching: Annotated[
        bool,
        typer.Option(
            "--prefix-caching", help="Known beginnings of prompts are not read again; a Mooncake file has them."
        ),
    ] = False,
    num_prompts: Annotated[
        int, typer.Option(callback=within(1, MAX_COUNT), help="Each simulated run of a replica has this many requests.")
    ] = 1200,
    precision: Annotated[
        float, typer.Option(help="Replicate until the best rate is known to this share of it, six times at most.")
    ] = 0.03,
    workers: Annotated[int, typer.Option(help="Simulate in this many processes; the results are the same.")] = 1,
    backend: Annotated[str, typer.Option(help="Work in processes of this machine, or on dask.")] = "processes",
    scheduler: Annotated[str | None, typer.Option(help="The Dask scheduler has this address.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Instead of planning, predict this table of a measured server from a part of it, and say the errors."
        ),
    ] = None,
    fit_k: Annotated[str, typer.Option(help="With --check: fit to these draft lengths.")] = "1,5",
    fit_concurrency: Annotated[str, typer.Option(help="With --check: fit drafts at these concurrencies.")] = "1,16,128",
) -> None:
    """Plan capacity: the fewest devices that hold a traffic within its objectives, and the draft length at each load."""
    if check is not None:
        from analysis.cli.planning.plan_check import check_measured

        check_measured(check, output_dir, fit_k=fit_k, fit_concurrency=fit_concurrency, workers=workers)
        return
    from analysis.cli.tables import print_lines
    from analysis.explore.work.scale_out import Workers
    from analysis.plan.inputs import acceptance_of, machine_from, new_folder, policies_of, traffic_of
    from analysis.plan.planning import PlanSettings, make_plan
    from analysis.study.planned import Planned
    from sim.serving.cluster import Router
    from sim.serving.settings import Server
    from traces.folder.writer import check_new_folder
    from traces.metrics.serving import Objectives

    where = Workers(count=workers, backend=backend, scheduler=scheduler)  # type: ignore[arg-type]  # it refuses others
    if router not in list(Router):
        raise ValueError(f"unknown router {router!r}; known are {', '.join(Router)}.")
    settings = PlanSettings(
        objectives=Objectives.parse([goodput]),
        attainment=attainment,
        max_length=max_length,
        policies=tuple(policy or ()),
        rules=tuple(rule or ()),
        shares_draft=shared_draft,
        num_requests=num_prompts,
        precision=precision,
        server=Server(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, prefix_caching=prefix_caching
        ),
        router=Router(router),
        seed=seed,
    )
    known, traces = acceptance_of(acceptance, run, max_length)
    planned = Planned(target=target, draft=draft, hardware=hardware, num_devices=num_devices, bits=bits)
    machine = machine_from(planned, costs, kv_tokens=kv_tokens, price_per_hour=price)
    wanted = traffic_of(
        traffic,
        request_rate=request_rate,
        burstiness=burstiness,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        length_cv=length_cv,
    )
    check_new_folder(output_dir)  # before settings are searched for
    labels, lines = policies_of(settings.policies, machine, known, traces, settings, wanted)
    settings = replace(settings, policies=labels)
    told = console_for(as_json)
    print_lines(told, lines)
    new_folder(output_dir)
    result = make_plan(wanted, machine, known, settings, traces=traces, workers=where)
    from analysis.plan.files import write_plan

    write_plan(result, output_dir, draft=draft, draft_method=draft_method)
    _print(told, result, output_dir)
    conclude([output_dir], as_json=as_json)


def _print(console: Console, result: PlanResult, output_dir: Path) -> None:
    """The verdict, a table, and where the rest is."""
    from rich.table import Table

    from analysis.plan.verdict import capacity_sentence, cost_per_million_tokens, length_sentence

    console.print(length_sentence(result.table), style="bold", highlight=False)
    console.print(capacity_sentence(result), style="bold", highlight=False)
    console.print(
        f"\n{result.traffic.source}; {result.settings.objectives.label()} ms for {result.settings.attainment:.0%} of requests",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("method", min_width=10)
    for name in ("req/s", "replicas", "$/M tok", "TTFT ms", "TPOT ms", "KV", "tok/round"):
        table.add_column(name, justify="right")
    for each in result.methods:
        low, high = each.capacity.interval
        rate = f"{each.capacity.mean:.3g}"
        if each not in result.finalists:
            table.add_row(each.method.name, rate, *[""] * 6, style="dim")
            continue
        cost, run = cost_per_million_tokens(result, each), each.at_traffic
        table.add_row(
            each.method.name,
            f"{rate} ± {(high - low) / 2:.2g}",
            "-" if each.num_replicas is None else str(each.num_replicas),
            "-" if cost is None else f"{cost:.3g}",
            "-" if run is None else f"{1e3 * run.summary.p50_ttft_s:.0f}, {1e3 * run.summary.p99_ttft_s:.0f}",
            "-" if run is None else f"{1e3 * run.summary.p50_tpot_s:.1f}, {1e3 * run.summary.p99_tpot_s:.1f}",
            "-" if run is None else f"{run.kv_share:.0%}",
            "-" if run is None else f"{run.acceptance_length:.2f}",
        )
    console.print(table)
    console.print(
        "req/s: what a replica holds, 95% over replications. TTFT, TPOT: p50, p99 at the traffic.", style="dim"
    )
    console.print(
        f"for vLLM, SGLang and TensorRT-LLM (engines.md), all methods and figures: {output_dir}", highlight=False
    )
