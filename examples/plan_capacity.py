"""How many devices hold this traffic, and which draft length is best at which load?

python examples/plan_capacity.py 40 runs/planned
"""

import sys

import specbranch
from analysis.plan.verdict import capacity_sentence, length_sentence


def main(request_rate: str, output_dir: str, num_prompts: str = "1200") -> None:
    """Chats of 500 tokens in and 200 out on H100s, by data sheets; acceptance by position as vLLM prints it."""
    plan = specbranch.plan(
        output_dir,
        request_rate=float(request_rate),
        prompt_tokens=500,
        output_tokens=200,
        acceptance=[0.75, 0.55, 0.42, 0.32, 0.25],
        target="llama-3.1-8b",
        draft="llama-3.2-1b",
        hardware="h100",
        goodput="ttft:1000 tpot:25",
        num_prompts=int(num_prompts),
    )
    print(length_sentence(plan.table))
    print(capacity_sentence(plan))
    for each in plan.finalists:
        print(f"{each.method.name}: {each.capacity.mean:.1f} requests/s a replica, {each.num_replicas} replicas")


if __name__ == "__main__":
    main(*sys.argv[1:])
