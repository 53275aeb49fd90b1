"""Record a pair of your own, and say which draft length is the best for it on this machine.

python examples/record_pair.py meta-llama/Llama-3.1-8B meta-llama/Llama-3.2-1B my.jsonl runs/mine
"""

import sys
from pathlib import Path

import specbranch
from specbranch.policies import Autoregressive, FixedLength


def main(target: str, draft: str, prompts: str, output_dir: str, num_prompts: str = "16") -> None:
    """Any Hugging Face ids or folders of one vocabulary; prompts are lines of JSON with a field `prompt`."""
    folder = Path(output_dir)
    run = specbranch.record(
        folder / "recorded",
        target=target,
        draft=draft,
        prompts=prompts,
        num_prompts=int(num_prompts),
        temperatures=[0],
        max_new_tokens=64,
    )
    print(f"the same tokens under every policy: {run.summary['tokens_identical']}")
    policies = [Autoregressive(), *(FixedLength(length) for length in range(1, 9))]
    found = specbranch.explore(run.folder, folder / "explored", policies=policies)
    for speed in found.best(3):
        print(f"{speed.policy}: {speed.tokens_per_s:.0f} tokens/s, {speed.speedup:.2f} times plain decoding")
    print(found.doubt)  # empty where nothing is known against these times


if __name__ == "__main__":
    main(*sys.argv[1:])
