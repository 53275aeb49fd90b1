"""The top of a report: what was run, the verdict, and the headline numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.report.answers import Answers
from analysis.report.elements import Element, Facts, Figures, Section, Table, Text
from analysis.report.material import Arm, settings_of
from analysis.verdict import Verdict, label_for, name_of, verdict_lines
from traces.folder.run import Run


def verdict_section(answers: Answers, title: str = "Verdict") -> Section:
    """The answer first, with its headline."""
    elements: list[Element] = []
    shown = [verdict for verdict in answers.verdicts if verdict.policy is not None]
    entries = [_headline(answers, each) for each in shown[:3]]
    if entries:
        elements.append(Figures(entries=entries))
    verdicts = answers.verdicts
    lines = [line.strip() for line in verdict_lines(verdicts)]
    elements += [Text(text=line, is_strong=line in {each.lines()[0] for each in verdicts}) for line in lines]
    chosen = dict.fromkeys(each.policy for each in verdicts if each.is_shown and each.policy)
    elements += [Text(text=f"--policy {label_for(policy)}", is_code=True) for policy in chosen]
    for plan in answers.arm.plans if answers.arm.runs else ():
        elements += [Text(text=str(line)) for line in plan.summary.get("verdict", ())]
    if not elements:
        elements.append(Text(text="These runs hold nothing that a verdict could be made of."))
    return Section(name="verdict", title=title, elements=elements)


def _headline(answers: Answers, verdict: Verdict) -> tuple[str, str, str]:
    if verdict.speedup is None:
        return "Not shown", f"{verdict.where}: no method is shown to beat plain decoding", ""
    low, high = verdict.interval or (float("nan"), float("nan"))
    span = f"95% interval {low:.2f} to {high:.2f}" if verdict.interval else ""
    kind = "measured" if answers.arm.speeds else "predicted"
    if not verdict.is_shown or verdict.policy is None:
        told = f"the fastest was {kind} at {verdict.speedup:.2f} times its speed"
        return "Not shown", f"{verdict.where}: no method is shown to beat plain decoding; {told}", span
    return (
        f"{verdict.speedup:.2f} times",
        f"{verdict.where}: {name_of(verdict.policy)} against plain decoding, {kind}",
        span,
    )


def ran_section(arms: Sequence[Arm]) -> Section:
    """Which models, on what, with which settings, when."""
    elements: list[Element] = []
    for arm in arms:
        if len(arms) > 1:
            elements.append(Text(text=arm.name))
        run = arm.measured or arm.recorded or next(iter(arm.runs), None)
        if run is not None:
            elements.append(Facts(entries=facts_of(run)))
        for plan in arm.plans:
            elements.append(Facts(entries=_facts_of_plan(plan.summary)))
    rows = [
        [arm.name, run.folder.name, str(run.meta.get("kind")), _count(run), _date(run), _state(run)]
        for arm in arms
        for run in arm.runs
    ]
    columns = ("name", "folder", "kind", "requests", "begun (UTC)", "state")
    if rows:
        elements.append(
            Table(columns=columns, rows=rows, num_names=3, is_folded=True, title=f"Run folders ({len(rows)})")
        )
    return Section(name="ran", title="What was run", elements=elements)


def facts_of(run: Run) -> list[tuple[str, str]]:
    """A run's pair, devices and settings."""
    facts: list[tuple[str, Any]] = []
    settings = settings_of(run)
    if settings is not None:
        pair, decoding = settings.pair, settings.decoding
        facts += [
            ("target", pair.target),
            ("draft", pair.draft),
            ("engine", f"{pair.engine.kind}, {pair.engine.dtype}"),
            ("devices", ", ".join(map(str, run.meta.get("devices") or [pair.engine.device]))),
            ("temperatures", ", ".join(f"{value:g}" for value in decoding.temperatures)),
            ("answers", f"up to {decoding.max_new_tokens} tokens, seed {decoding.seed}"),
            ("prompts", f"{settings.prompts.source}, {run.requests.prompt_id.nunique()} of them"),
            ("policies", f"{run.requests.policy.nunique()}"),
        ]
        if decoding.acceptance:
            facts.append(("acceptance", f"synthetic: {decoding.acceptance}; the tokens prove nothing"))
    versions = run.meta.get("versions")
    facts += [
        ("noise", run.meta.get("noise_rule")),
        (
            "software",
            ", ".join(f"{name} {value}" for name, value in versions.items()) if isinstance(versions, dict) else "",
        ),
        ("platform", run.meta.get("platform")),
        ("commit", str(run.meta.get("git_commit") or "")[:12]),
        ("begun", run.meta.get("date")),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _facts_of_plan(summary: dict[str, Any]) -> list[tuple[str, str]]:
    names = {
        "traffic": "traffic",
        "requests_per_s": "requests a second",
        "objectives": "objectives, ms",
        "attainment": "share that must meet them",
        "best_method": "best method",
        "num_devices": "devices",
    }
    return [(text, str(summary[name])) for name, text in names.items() if summary.get(name) is not None]


def _count(run: Run) -> str:
    return "-" if run.requests.empty else str(len(run.requests))


def _date(run: Run) -> str:
    return str(run.meta.get("date", ""))[:16].replace("T", " ")


def _state(run: Run) -> str:
    return "complete" if run.is_complete else "cut short"
