"""Replay a recorded run under another policy: which rounds would it have run, and how fast?"""

from analysis.check.predict import predict
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.replay import replay
from sim.latency.fitted import FittedLatency
from traces.fits.calibration import calibrate
from traces.folder.run import read_run
from traces.metrics.counts import count_rounds

run = read_run("runs/demo-1/recorded")
policy = Pearl(draft_length=6)

rounds = [turn for trace in run.traces() for turn in replay(policy, trace)]  # exact, no model of acceptance
print(f"{count_rounds(rounds).tokens_per_target_forward:.2f} tokens per target forward")

speeds = predict([policy], run.traces(), FittedLatency(calibrate(run))).speeds  # time is modelled
for speed in speeds:
    print(f"T = {speed.temperature:g}: {speed.tokens_per_s:.0f} tokens/s {speed.interval}")
