"""One summary across the scenarios of a study: the best policy of each, and one policy for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Across:
    """rows: (scenario, best policy, its speed-up over plain decoding, loss of `policy` there), in the order of the study.

    policy: of all policies that ran everywhere the one whose largest loss is the smallest; a loss is the share of the best
    speed of a scenario that is given up there. mean_loss, worst_loss: of it.
    """

    rows: tuple[tuple[str, str, float, float], ...]
    policy: str
    mean_loss: float
    worst_loss: float


def summarise_scenarios(table: pd.DataFrame) -> Across | None:
    """From the rows of an exploration (scenario, policy, tokens_per_s, speedup). None where there is one scenario, or no
    policy that ran in all of them (a search chooses its own in each)."""
    speeds = table.pivot_table(index="policy", columns="scenario", values="tokens_per_s", aggfunc="first", sort=False)
    everywhere = speeds.dropna()
    if speeds.shape[1] < 2 or everywhere.empty:
        return None
    losses = 1 - everywhere / speeds.max()
    policy = losses.max(axis=1).idxmin()
    lost = dict(zip(losses.columns, losses.loc[[policy]].to_numpy()[0].tolist(), strict=True))
    gains = dict(zip(zip(table["scenario"], table["policy"], strict=True), table["speedup"].tolist(), strict=True))
    rows = tuple(
        (str(scenario), str(best), gains[scenario, best], lost[scenario])
        for scenario, best in zip(speeds.columns, speeds.idxmax(), strict=True)
    )
    return Across(
        rows=rows, policy=str(policy), mean_loss=sum(lost.values()) / len(lost), worst_loss=max(lost.values())
    )
