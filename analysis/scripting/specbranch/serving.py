"""Plan capacity, read what engines print, report on runs, from a script: no models run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.explore.work.scale_out import Workers
from analysis.plan.advice import ConstantTimes, LengthAdvice, advise_one_request
from analysis.plan.files import write_plan
from analysis.plan.inputs import acceptance_of, machine_from, new_folder, traffic_of
from analysis.plan.numbers import acceptance_from
from analysis.plan.planning import PlanResult, PlanSettings, make_plan
from analysis.report.build import make_report
from analysis.study.planned import Planned
from sim.serving.cluster import Router
from sim.serving.settings import Server
from specbranch.simulating import Policies, labels_of
from traces.fits.step_costs import AcceptanceByPosition
from traces.importers.engines.catalog import read_engine_files as read_files
from traces.importers.engines.records import EngineFile, Served
from traces.metrics.serving import Objectives

__all__ = ["advise", "plan", "read_engine_files", "report"]


def plan(  # long: one argument an option of the command
    output_dir: str | Path | None = None,
    *,
    traffic: str | Path | None = None,
    request_rate: float | None = None,
    burstiness: float = 1.0,
    prompt_tokens: float = 512,
    output_tokens: float = 256,
    length_cv: float = 0.5,
    goodput: str = "ttft:1000 tpot:50",
    attainment: float = 0.95,
    acceptance: str | Path | Sequence[float] = "",
    run: str | Path | None = None,
    target: str = "llama-3.1-8b",
    draft: str = "llama-3.2-1b",
    draft_method: str = "draft_model",
    hardware: str = "h100",
    num_devices: int = 1,
    bits: float = 16.0,
    costs: str | Path | None = None,
    kv_tokens: int | None = None,
    max_length: int = 5,
    policies: Policies = (),
    rule: Sequence[str] = (),
    shared_draft: bool = False,
    price: float | None = None,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 8192,
    router: str = Router.LEAST_OUTSTANDING_TOKENS,
    prefix_caching: bool = False,
    num_prompts: int = 1200,
    precision: float = 0.03,
    workers: int = 1,
    backend: str = "processes",
    scheduler: str | None = None,
    seed: int = 0,
) -> PlanResult:
    """Plan capacity, as `specbranch plan` does with these options: the fewest devices that hold a traffic, and the draft
    length at each load.

    acceptance: shares of drafts accepted at positions 1, 2, ..., or a file of them. output_dir: a new folder for the files;
    None writes none. Raises ValueError for what cannot be planned.
    """
    where = Workers(count=workers, backend=backend, scheduler=scheduler)  # type: ignore[arg-type]  # it refuses others
    settings = PlanSettings(
        objectives=Objectives.parse([goodput]),
        attainment=attainment,
        max_length=max_length,
        policies=tuple(labels_of(policies)),
        rules=tuple(rule),
        shares_draft=shared_draft,
        num_requests=num_prompts,
        precision=precision,
        server=Server(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, prefix_caching=prefix_caching
        ),
        router=Router(router),
        seed=seed,
    )
    known, traces = acceptance_of(_as_text(acceptance), None if run is None else Path(run), max_length)
    planned = Planned(target=target, draft=draft, hardware=hardware, num_devices=num_devices, bits=bits)
    machine = machine_from(planned, None if costs is None else Path(costs), kv_tokens=kv_tokens, price_per_hour=price)
    wanted = traffic_of(
        None if traffic is None else Path(traffic),
        request_rate=request_rate,
        burstiness=burstiness,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        length_cv=length_cv,
    )
    if output_dir is not None:
        new_folder(Path(output_dir))
    result = make_plan(wanted, machine, known, settings, traces=traces, workers=where)
    if output_dir is not None:
        write_plan(result, Path(output_dir), draft=draft, draft_method=draft_method)
    return result


def advise(
    per_position: str | Path | Sequence[float] | AcceptanceByPosition,
    *,
    target_ms: float,
    draft_ms: float,
    max_length: int | None = None,
    context: int = 1024,
) -> list[LengthAdvice]:
    """A row for each draft length of one request, 0 included (`analysis.plan.advice.best_length` chooses). Raises ValueError.

    per_position: shares of drafts accepted at positions 1, 2, ..., or a file of them. target_ms: a step without a draft;
    draft_ms: a draft token, milliseconds.
    """
    if isinstance(per_position, AcceptanceByPosition):
        acceptance = per_position
    else:
        acceptance = acceptance_from(_as_text(per_position), "per_position")
    longest = max_length or min(len(acceptance.conditional) + 2, 32)
    model = ConstantTimes(1e-3 * target_ms, 1e-3 * draft_ms)
    return advise_one_request(model, acceptance, max_length=longest, context=context)


def read_engine_files(
    files: Sequence[str | Path],
    *,
    draft_length: int | None = None,
    draft: str = "draft",
    draft_method: str = "draft_model",
) -> list[EngineFile]:
    """What `specbranch import` understands of metrics pages, benchmarks and logs of serving engines. draft_length: where a
    file does not say it. Raises ValueError for a file of no known kind."""
    served = Served(draft_length=draft_length, draft=draft, method=draft_method)
    return read_files(list(map(Path, files)), served)


def report(runs: str | Path | Sequence[str | Path], output: str | Path = "report.html") -> Path:
    """One HTML file about run folders, with the verdict first; two are compared. Raises ValueError where it exists already."""
    make_report([Path(runs)] if isinstance(runs, str | Path) else list(map(Path, runs)), Path(output))
    return Path(output)


def _as_text(shares: str | Path | Sequence[float]) -> str:
    return str(shares) if isinstance(shares, str | Path) else ",".join(map(str, shares))
