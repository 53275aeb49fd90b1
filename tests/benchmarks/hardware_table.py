"""The hardware table of docs/measured.md, made from a file of results of `hardware.py`.

python tests/benchmarks/hardware_table.py tests/benchmarks/results/h100_2026-11-27.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from traces.metrics.machine_speed import drift_sentence

NAMES = {"fixed_length": "fixed length", "outcome_hedging": "outcome hedging", "specbranch": "specbranch, no H-RAD"}


def render(found: dict[str, Any]) -> str:
    """Markdown of one machine's results; a section that was not measured or failed says so."""
    lines = [f"{found['device']}, torch {found['torch']}, {found['date']}.", "", "| measured | value |", "|---|---|"]
    bandwidth = found.get("bandwidth", {}).get("read_bytes_per_s")
    lines.append(f"| memory read | {bandwidth / 1e12:.2f} TB/s |" if bandwidth else "| memory read | not measured |")
    steps = found.get("steps", {})
    for model in ("target", "draft"):
        if model in steps:
            one = steps[model]
            gap = f"{one['over_floor']:.2f} times its bytes over the rate"
            lines.append(f"| {model}: one decoding step | {one['step_ms']:.2f} ms, {gap} |")
    if "verify_8_over_1" in steps:
        lines.append(f"| verification of 8 tokens over one | {steps['verify_8_over_1']:.2f} |")
    shapes, eager = found.get("speeds_shapes", {}), found.get("eager_generate", {}).get("tokens_per_s")
    plain = next((entry for entry in shapes.get("measured", []) if entry["policy"] == "autoregressive"), None)
    if plain and eager:
        ratio = plain["tokens_per_s"] / eager
        lines.append(
            f"| autoregressive decoding, transformers' eager generate | {plain['tokens_per_s']:.0f}, {eager:.0f} tokens/s: "
            f"{ratio:.1f} times |"
        )
    overlap = shapes.get("overlap", {})
    if isinstance(overlap, dict) and overlap:
        lines.append(
            f"| overlapped rounds over the longer side, over both sides in turn | {overlap['wall_over_bound']:.2f}, "
            f"{overlap['wall_over_serial']:.2f} |"
        )
    for name in ("identity_float32", "identity_bfloat16_fixed_width"):
        entry = found.get(name)
        if entry is None or "failed" in entry:
            lines.append(f"| {name.replace('_', ' ')} | unmeasured |")
        else:
            lines.append(
                f"| {name.replace('_', ' ')} | {entry['num_runs']} runs, {len(entry['different_tokens'])} differ |"
            )
    if speeds := shapes.get("adjusted") or shapes.get("measured"):  # results of older versions have raw ones only
        lines += ["", "| method, synthetic acceptance | tokens/s [95%] | speed-up [95%] |", "|---|---|---|"]
        for entry in speeds:
            low, high = entry["interval"]
            gain, (least, most) = entry["speedup"], entry["speedup_interval"]
            lines.append(
                f"| {_short(entry['policy'])} | {entry['tokens_per_s']:.0f} [{low:.0f}, {high:.0f}] "
                f"| {gain:.2f} [{least:.2f}, {most:.2f}] |"
            )
        lines.append("")
        if drift := drift_sentence(shapes.get("drift_range") or (1.0, 1.0)):
            lines.append(f"{drift[0].upper()}{drift[1:]}.")
        lines.append(
            f"Predicted beside measured: mean error {shapes['mean_abs_relative_error']:.1%}, worst "
            f"{shapes['worst_abs_relative_error']:.1%}; {shapes['num_rounds_compared']:,} executed rounds "
            f"{'all' if shapes['rounds_identical'] else 'NOT all'} equal to the replayed ones."
        )
    return "\n".join(lines) + "\n"


def _short(label: str) -> str:
    """A policy's name with its draft length and branches."""
    name, _, rest = label.partition(":")
    settings = dict(part.split("=", 1) for part in rest.split(",") if part)
    length, branches = settings.get("draft_length"), settings.get("max_branches")
    words = [NAMES.get(name, name)]
    if length:
        words.append(length)
    if branches and name == "specbranch":
        words.append(f"({branches} branches)")
    return " ".join(words)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(render(json.loads(Path(path).read_text(encoding="utf-8"))))
