"""From run folders to the report's file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.report.answers import Answers, doubts_of
from analysis.report.elements import Section
from analysis.report.material import Arm, read_arms
from analysis.report.page.render import Page, render
from analysis.report.sections.acceptance import acceptance_section
from analysis.report.sections.closing import limits_section, recommendation_section
from analysis.report.sections.comparison import comparison_section
from analysis.report.sections.elsewhere import elsewhere_section
from analysis.report.sections.methods import methods_section, prediction_section
from analysis.report.sections.sensitivity import sensitivity_section
from analysis.report.sections.serving import serving_section
from analysis.report.sections.summary import ran_section, verdict_section
from analysis.report.sections.time_use import time_section
from analysis.report.sections.timeline import timeline_section
from analysis.report.sections.what_if import what_if_section
from traces.files import write_text
from traces.folder.run import RunError
from traces.progress import Report, silent


def make_report(folders: Sequence[Path], output: Path, *, progress: Report = silent) -> Path:
    """Write one HTML file about runs; an existing file is refused. folders: what record, validate, compare, demo, explore,
    simulate or plan wrote; several recorded ones are compared with the first. Raises RunError, and OSError
    where the file cannot be written."""
    if output.exists():
        raise RunError(f"{output} exists already, and nothing is overwritten; name another file with --output.")
    if output.suffix.lower() not in (".html", ".htm"):
        raise RunError(f"{output} should end in .html, so that a browser opens it.")
    arms = read_arms(folders)
    page = Page(
        title=_title(arms), subtitle=_subtitle(arms), warnings=_warnings(arms), sections=sections_of(arms, progress)
    )
    text = render(page)
    write_text(output, text)
    return output


def sections_of(arms: Sequence[Arm], progress: Report = silent) -> list[Section]:
    """All sections that the arms have something for, the verdict first."""
    main = arms[0]
    answers = Answers(main)
    makers: list[Callable[[], Section | None]] = [
        lambda: verdict_section(answers, "Verdict" if len(arms) == 1 else f"Verdict on {main.name}"),
        lambda: comparison_section(arms),
        lambda: methods_section(main),
        lambda: prediction_section(main),
        lambda: timeline_section(main),
        lambda: acceptance_section(main),
        lambda: time_section(main),
        lambda: sensitivity_section(answers),
        lambda: what_if_section(main),
        lambda: elsewhere_section(main),
        lambda: serving_section(main),
        lambda: ran_section(arms),
        lambda: limits_section(arms),
        lambda: recommendation_section(answers),
    ]
    made = []
    for done, make in enumerate(makers):
        progress(done, len(makers))
        made.append(make())
    progress(len(makers), len(makers))
    return [section for section in made if section is not None]


def _title(arms: Sequence[Arm]) -> str:
    return " against ".join(arm.name for arm in arms)


def _subtitle(arms: Sequence[Arm]) -> str:
    if not any(arm.runs for arm in arms):
        return "How much traffic a server holds, with speculation and without it."
    return "How should this pair decode? Measured, predicted, and what would change the answer."


def _warnings(arms: Sequence[Arm]) -> list[str]:
    texts = []
    for arm in arms:
        for doubt in doubts_of(arm):
            text = f"{doubt[0].upper()}{doubt[1:]}."
            texts.append(f"{arm.name}: {text}" if len(arms) > 1 else text)
    return texts
