"""Who works when, under several policies, on one recorded request.

python examples/draw_rounds.py runs/mine rounds.png
"""

import sys
import tempfile

import matplotlib.pyplot as plt

import specbranch
from sim.latency.constant import ConstantLatency

POLICIES = ["autoregressive", "fixed_length:draft_length=4", "pearl:draft_length=6", "outcome_hedging:draft_length=6"]
LOOKS = {"verify": ("target verifies", "#0072b2"), "draft": ("draft, the target waits", "#e69f00")}
LOOKS |= dict.fromkeys(("look", "branch"), ("draft works ahead", "#56b4e9"))


def main(run_dir: str, output: str) -> None:
    """The first request; a target forward takes eight draft forwards (without `calibration`: measured times)."""
    with tempfile.TemporaryDirectory() as home:
        specbranch.simulate(run_dir, f"{home}/new", POLICIES, calibration=ConstantLatency(draft_s=1e-3, verify_s=8e-3))
        runs = [specbranch.read_run(f"{home}/new/{n:02d}-{p.partition(':')[0]}").ops for n, p in enumerate(POLICIES)]
        tables = [ops[(ops.request_id == ops.request_id[0]) & ops.kind.isin(LOOKS)] for ops in runs]
    figure, axes = plt.subplots(len(POLICIES), figsize=(8, 4.4), sharex=True, layout="constrained")
    for policy, ops, axis in zip(POLICIES, tables, axes, strict=True):
        for op in ops.itertuples():
            (label, colour), lane = LOOKS[op.kind], int(op.actor == "target")
            start, width = 1e3 * (op.start_s - ops.start_s.min()), 1e3 * (op.end_s - op.start_s)
            axis.barh(lane, width, left=start, height=0.9, label=label, color=colour, edgecolor="white", linewidth=0.5)
        axis.set(yticks=[0, 1], yticklabels=["draft", "target"], ylim=(-0.5, 1.5), title=policy)
    axes[-1].set_xlabel("simulated milliseconds; every row emits the same tokens")
    shown = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown, ncols=3, loc="outside upper center", frameon=False)
    figure.savefig(output, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
