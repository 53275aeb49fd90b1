"""The end of a report: what it does not show, and what to do now."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.report.answers import Answers
from analysis.report.elements import Element, Section, Text
from analysis.report.material import Arm, settings_of
from analysis.verdict import label_for


def limits_section(arms: Sequence[Arm]) -> Section:
    """What a reader might take from the numbers and should not."""
    texts: list[str] = []
    for arm in arms:
        run = arm.measured or arm.recorded
        settings = None if run is None else settings_of(run)
        if settings is not None and settings.pair.target == "embedded":
            texts.append(
                "The embedded pair is a small language model that ships with specbranch. Its numbers say nothing about large "
                "models."
            )
        if arm.measured is not None:
            texts.append(
                "Requests ran one at a time. Under load verifications share their batch with other requests, and speculation "
                "gains less: `specbranch plan` answers that."
            )
            num = arm.measured.requests.prompt_id.nunique()
            texts.append(
                f"Intervals are over {num} prompts of one source. Other prompts are accepted differently, and no interval "
                "here knows of them."
            )
        if arm.explored is not None and arm.validation is None and not arm.comparison:
            texts.append(
                "Speed-ups of the exploration are predictions. Nothing of them was measured until `specbranch validate` ran."
            )
        if arm.explored is not None:
            texts += [f"Not in this trace: {limit}." for limit in arm.explored.summary.get("limits", ())]
        if arm.measured is not None and arm.validation is None and not arm.comparison:
            texts.append(
                "No prediction stands beside these measurements, so that nothing here tells how good predictions are."
            )
        if arm.plans:
            texts.append(
                "A plan is a simulation of a server. Hold it to a load test of the server before buying devices."
            )
    texts.append("Decoding is timed after the prompt was read; time to the first token is not part of any speed-up.")
    elements: list[Element] = [Text(text=text) for text in dict.fromkeys(texts)]
    return Section(name="limits", title="What this does not show", elements=elements)


def recommendation_section(answers: Answers) -> Section | None:
    """What to do, in a sentence for each verdict."""
    elements: list[Element] = []
    for verdict in answers.verdicts:
        where = f"{verdict.where}: " if verdict.where else ""
        if verdict.is_shown and verdict.policy:
            elements.append(Text(text=f"{where}use this policy."))
            elements.append(Text(text=f"--policy {label_for(verdict.policy)}", is_code=True))
        elif verdict.policy:
            elements.append(Text(text=f"{where}stay with plain decoding until a method is shown to be faster."))
    for step in dict.fromkeys(verdict.next_step for verdict in answers.verdicts if verdict.next_step):
        elements.append(Text(text=f"Next: {step}"))
    for plan in answers.arm.plans:
        elements.append(Text(text=f"The engines' configuration files stand in {plan.folder}."))
    if not elements:
        return None
    return Section(name="recommendation", title="Recommendation", elements=elements)
