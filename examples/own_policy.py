"""A policy of your own: ten lines, and the simulator and the real models run it like any other.

python examples/own_policy.py runs/own
cd examples && specbranch explore --run ../runs/own/recorded --output-dir ../runs/own/more --policy own_policy:EveryOther
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import specbranch
from specbranch.policies import Defaults, Observation, Signal


@dataclass(frozen=True)
class EveryOther(Defaults):
    """Draft in every second round only."""

    draft_length: int = 4

    def draft_more(self, seen: Observation, pending: Sequence[Signal]) -> int:
        return 0 if pending or seen.num_rounds % 2 else self.draft_length


def main(output_dir: str) -> None:
    """Run it for real beside plain decoding, then explore its settings on the simulator."""
    folder = Path(output_dir)
    policies = ["autoregressive", EveryOther(2)]
    run = specbranch.record(folder / "recorded", policies=policies, temperatures=[0], num_prompts=3, max_new_tokens=32)
    print(f"the same tokens as plain decoding: {run.summary['tokens_identical']}")
    found = specbranch.explore(run.folder, folder / "explored", policies=[EveryOther(n) for n in (1, 2, 3, 4)])
    for speed in found.best(4):
        print(f"{speed.policy}: {speed.tokens_per_s:.0f} tokens/s")


if __name__ == "__main__":
    main(*sys.argv[1:])
