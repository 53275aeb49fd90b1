"""`specbranch published`: the papers' operating points, simulated beside their numbers."""

from __future__ import annotations

from typing import Annotated

import typer

from analysis.cli.options import OutputDir, Seed, console, within


def published(
    output_dir: OutputDir,
    num_requests: Annotated[
        int, typer.Option(callback=within(1, 10_000), help="Simulate this many requests at each point.")
    ] = 16,
    num_tokens: Annotated[
        int, typer.Option(callback=within(1, 100_000), help="Let each request emit this many tokens.")
    ] = 250,
    seed: Seed = 0,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit",
            help="Fit the parameters of confidence and H-RAD to the published HumanEval cells and the sweep of epsilon "
            "again (some minutes), in place of the stored ones.",
        ),
    ] = False,
) -> None:
    """Every method simulated at published operating points, and over speed ratio and acceptance: where each wins.

    Two tables: one with signals that tell nothing, and SpecBranch's own tables with confidence and H-RAD as informed as
    some of the published numbers imply, judged on the others.
    """
    from analysis.cli.progress import progress_bar
    from analysis.papers.informed import FITTED, fit_knowledge
    from analysis.papers.informed_report import print_informed
    from analysis.papers.published import Effort
    from analysis.papers.report import print_published, write_published

    effort = Effort(num_requests=num_requests, num_tokens=num_tokens, seed=seed)
    knowledge = FITTED
    if fit:
        with progress_bar(console, "fitting") as report:
            knowledge = fit_knowledge(effort, progress=report)
    rows, informed = write_published(
        output_dir, effort, knowledge=knowledge, progress=lambda title: progress_bar(console, title)
    )
    print_published(console, rows)
    print_informed(console, informed)
    console.print(f"what explains the differences, and where each method wins: {output_dir}/published.md")
    console.print(f"figure: {output_dir}/where_each_wins.png")
