"""From the metrics page of a vLLM or SGLang server to the draft length that suits its traffic.

curl -s localhost:8000/metrics > before.txt; sleep 900; curl -s localhost:8000/metrics > after.txt
python examples/engine_metrics.py 34 3 before.txt after.txt
"""

import sys

import specbranch


def main(target_ms: str, draft_ms: str, *pages: str) -> None:
    """target_ms: a step of your server without a draft; draft_ms: a draft token."""
    files = specbranch.read_engine_files(pages)
    for line in [sentence for file in files for sentence in file.unknown]:
        print(f"not in these pages: {line}")
    served = next(record for file in files for record in file.acceptance)
    print(f"served with {served.draft_length} draft tokens, {served.mean_acceptance_length:.2f} tokens a step")
    rows = specbranch.advise(served.marginal, target_ms=float(target_ms), draft_ms=float(draft_ms))
    for row in rows:
        guess = " (beyond what was served)" if row.is_guess else ""
        print(f"{row.draft_length} draft tokens: {row.speedup:.2f} times plain decoding{guess}")
    best = max((row for row in rows if not row.is_guess), key=lambda row: row.speedup)
    print(f"--speculative-config '{{\"num_speculative_tokens\": {best.draft_length}, ...}}'")


if __name__ == "__main__":
    main(*sys.argv[1:])
