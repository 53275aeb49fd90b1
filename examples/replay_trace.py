"""Replay a recorded run under another policy: which rounds would it have run, and how fast?"""

from analysis.prediction import predict
from sim.latency import FittedLatency
from sim.policies.pearl import Pearl
from sim.replay import replay
from traces.calibration import calibrate
from traces.metrics import count_rounds
from traces.runs import read_run

run = read_run("runs/demo-1/recorded")
policy = Pearl(draft_length=6)

rounds = [turn for trace in run.traces() for turn in replay(policy, trace)]  # exact, no model of acceptance
print(f"{count_rounds(rounds).tokens_per_target_forward:.2f} tokens per target forward")

speeds = predict([policy], run.traces(), FittedLatency(calibrate(run))).speeds  # time is modelled
for speed in speeds:
    print(f"T = {speed.temperature:g}: {speed.tokens_per_s:.0f} tokens/s {speed.interval}")
