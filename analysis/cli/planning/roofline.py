"""`specbranch roofline`: what a pair would take on hardware you do not have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.cli.options import MAX_COUNT, TrustRemoteCode, console, within

if TYPE_CHECKING:
    from analysis.study.planned import Planned


def roofline(
    output: Annotated[
        Path, typer.Option(help="Write to this new file; give it to explore or simulate as --calibration.")
    ],
    target: Annotated[
        str, typer.Option(help="The target has this shape, such as llama-3.1-70b, or that of an id or folder.")
    ],
    draft: Annotated[str, typer.Option(help="The draft has this shape, or that of an id or folder.")],
    hardware: Annotated[
        str, typer.Option(help="The target runs on this device: h100, a100-80gb, l40s, mi300x ...")
    ] = "h100",
    num_devices: Annotated[
        int, typer.Option(callback=within(1, MAX_COUNT), help="This many devices share the target's matrices.")
    ] = 1,
    draft_hardware: Annotated[
        str, typer.Option(help="The draft runs on one such device of its own; by default on the target's.")
    ] = "",
    bits: Annotated[float, typer.Option(callback=within(0.01, 64), help="Each weight takes this many bits.")] = 16.0,
    context: Annotated[
        int, typer.Option(callback=within(1, 1 << 40), help="The cache typically holds this many tokens.")
    ] = 1024,
    bandwidth_share: Annotated[
        float, typer.Option(callback=within(1e-6, 1), help="Memory reaches this share of the data sheet's bandwidth.")
    ] = 0.9,
    peak_share: Annotated[
        float, typer.Option(callback=within(1e-6, 1), help="Products reach this share of the data sheet's 16-bit peak.")
    ] = 0.7,
    layer_us: Annotated[
        float,
        typer.Option(
            callback=within(0, 1e9), help="Launches and collectives take this many microseconds in each layer."
        ),
    ] = 20.0,
    host_us: Annotated[
        float, typer.Option(callback=within(0, 1e9), help="The host works this many microseconds in each round.")
    ] = 500.0,
    uncertainty: Annotated[
        float,
        typer.Option(
            callback=within(0, 0.99), help="Each of these may be wrong by this share; a study says what depends on it."
        ),
    ] = 0.2,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Latencies of a pair on hardware you do not have, from weights, bandwidth and peak, for explore and simulate."""
    from analysis.explore.inputs import write_roofline
    from analysis.study.planned import Planned

    planned = Planned(
        target=target,
        draft=draft,
        hardware=hardware,
        num_devices=num_devices,
        draft_hardware=draft_hardware,
        bits=bits,
        context_tokens=context,
        bandwidth_share=bandwidth_share,
        peak_share=peak_share,
        layer_s=1e-6 * layer_us,
        host_s=1e-6 * host_us,
        uncertainty=uncertainty,
        trusts_remote_code=trust_remote_code,
    )
    write_roofline(planned.latency(), output)
    _print_forwards(planned)
    console.print(
        f"calibration: {output}; next: specbranch explore --calibration {output} --alignment geometric:alpha=0.8 --output-dir "
        "NEW, or with --run and the acceptance that you recorded",
        highlight=False,
        soft_wrap=True,
    )
    if not draft_hardware:
        console.print("both models on the same devices: add --placement shared_device --interference 1.5")


def _print_forwards(planned: Planned) -> None:
    """What some forwards take, and on which device."""
    from rich.table import Table

    from traces.schema import OpKind

    latency = planned.latency()

    def ms(kind: OpKind, num_tokens: int, num_rows: int = 1) -> float:
        return 1e3 * float(latency.mean_array(kind, num_tokens, num_rows, planned.context_tokens))

    table = Table(title=f"{planned.target} and {planned.draft}", title_justify="left", box=None, pad_edge=False)
    table.add_column(f"one forward after {planned.context_tokens} tokens")
    table.add_column("ms", justify="right")
    table.add_column("on")
    target, draft = latency.target_hardware.name, latency.draft_hardware.name
    for what, kind, num_tokens, num_rows, place in (
        ("target, 1 token", OpKind.VERIFY, 1, 1, target),
        ("target, 8 tokens", OpKind.VERIFY, 8, 1, target),
        ("target, 64 tokens", OpKind.VERIFY, 64, 1, target),
        ("draft, 1 token", OpKind.DRAFT, 1, 1, draft),
        ("draft, 8 branches", OpKind.BRANCH, 1, 8, draft),
    ):
        table.add_row(what, f"{ms(kind, num_tokens, num_rows):.3g}", place)
    console.print(table)
    console.print("ms: the mean of one forward on that device, by data sheets", style="dim", highlight=False)
    console.print(f"target over draft: {ms(OpKind.VERIFY, 1) / ms(OpKind.DRAFT, 1):.1f}", highlight=False)
