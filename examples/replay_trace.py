"""Replay a recorded run under another policy: which rounds would it have run, and how fast?

python examples/replay_trace.py runs/mine
"""

import sys

import specbranch
from analysis.check.predict import predict
from sim.decoding.replay import replay
from sim.latency.fitted import FittedLatency
from specbranch.policies import Pearl
from traces.metrics.counts import count_rounds


def main(run_dir: str) -> None:
    """PEARL with six draft tokens, whatever policy was recorded."""
    run, policy = specbranch.read_run(run_dir), Pearl(draft_length=6)
    rounds = [turn for trace in run.traces() for turn in replay(policy, trace)]  # exact, no model of acceptance
    print(f"{count_rounds(rounds).tokens_per_target_forward:.2f} tokens per target forward")
    latency = FittedLatency(specbranch.calibrate(run_dir))  # only time is modelled
    for speed in predict([policy], run.traces(), latency).speeds:
        print(f"T = {speed.temperature:g}: {speed.tokens_per_s:.0f} tokens/s {speed.interval}")


if __name__ == "__main__":
    main(*sys.argv[1:])
