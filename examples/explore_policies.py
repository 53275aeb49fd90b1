"""Which policy is the fastest for this pair on this hardware, and how sure is that?

specbranch record --output-dir runs/mine
python examples/explore_policies.py runs/mine runs/mine-explored
"""

import sys

import specbranch
from analysis.study.study import Conditions, Family, Range, Study


def main(run_dir: str, output_dir: str) -> None:
    """Three methods over their settings, with the draft on a device of its own or on the target's."""
    study = Study(
        policies=[
            "autoregressive",
            Family(method="fixed_length", settings={"draft_length": Range(first=1, last=8)}),
            Family(method="pearl", settings={"draft_length": Range(first=2, last=10)}),
            Family(
                method="specbranch",
                settings={"draft_length": Range(first=3, last=8), "max_branches": [1, 2, 4], "uses_hrad": [False]},
            ),
        ],
        conditions=Conditions(interference=[1.5]),
    )
    found = specbranch.explore(run_dir, output_dir, study=study)
    for scenario, ranking in found.rankings.items():
        print(f"{scenario}: {ranking.best}, the best with probability {ranking.probability_best:.2f}")
    print(found.pareto()[["scenario", "policy", "tokens_per_s", "speedup", "objective_memory"]].to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
