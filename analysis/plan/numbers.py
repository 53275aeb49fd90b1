"""Acceptance and step costs from what a user types; it imports little, so that an answer comes at once."""

from __future__ import annotations

import warnings
from pathlib import Path

from traces.fits.step_costs import AcceptanceByPosition, StepCosts, read_step_costs
from traces.importers.engines.records import AcceptanceRecord, read_acceptance


def acceptance_from(text: str, option: str) -> AcceptanceByPosition:
    """Acceptance alone; see `acceptance_and_record`."""
    return acceptance_and_record(text, option)[0]


def acceptance_and_record(text: str, option: str) -> tuple[AcceptanceByPosition, AcceptanceRecord | None]:
    """From marginal rates by position, as fractions (0.72,0.51), or from the acceptance.json of `specbranch import`, whose
    record is given besides.

    Warns where that says no more than a mean length. Raises ValueError for a list that does not fall, and a file that cannot
    be read.
    """
    if text.endswith(".json"):
        record = read_acceptance(Path(text))
        if not record.marginal:
            warnings.warn(
                f"{text} says a mean acceptance length of {record.mean_acceptance_length:.3g} alone; all positions are taken "
                "to be alike.",
                stacklevel=2,
            )
        return record.acceptance(), record
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r} is not a list of numbers; write 0.72,0.51,0.36.") from None
    if any(rate > 1 for rate in rates):
        raise ValueError(f"{option} {text!r}: shares lie in [0, 1]; divide percent by 100.")
    return AcceptanceByPosition.from_marginal(rates), None


def costs_from(path: Path) -> StepCosts:
    """Fitted step costs of a target and its draft. Raises ValueError for what cannot be read, and without a draft."""
    try:
        known = read_step_costs(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} does not hold step costs: {str(error).splitlines()[0]}") from None
    if known.draft is None:
        raise ValueError(f"{path} has no costs of a draft; fit them to a server that speculates.")
    return known
