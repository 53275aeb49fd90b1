"""Train the embedded pair: tokenizer, target, and drafts distilled from the target.

    GOMP_SPINCOUNT=0 OMP_NUM_THREADS=1 python -m executor.embedded_pair.training.train cpu --output-dir my_pair

GOMP_SPINCOUNT=0 matters on a CPU: the OpenMP runtime's spinning barriers cut throughput many-fold as soon as another
process is busy. The weights that the project ships are pinned files: another Python version has another standard
library, so a new training gives a similar pair, not the same.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from executor.embedded_pair.settings import PRESETS, TrainingSettings, shortened
from executor.embedded_pair.shapes import load_model, load_tokenizer
from executor.embedded_pair.streams import read_corpus
from executor.embedded_pair.training.data_parallel import run_in_team
from executor.embedded_pair.training.distillation import distil_drafts, write_own_text
from executor.embedded_pair.training.target import train_against_loops, train_target

STAGES = ("target", "unlikelihood", "own-text", "drafts")
OWN_TEXT_FILE = "own_text.pt"


def train_pair(settings: TrainingSettings, output_dir: Path, stages: Sequence[str] = STAGES) -> None:
    """Train the pair into output_dir/<model name>, or redo some of the stages on what lies there.

    Prints its progress. Models are written as training goes on, so an interrupted run leaves usable ones.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    target_folder, own_text_file = output_dir / settings.target_name, output_dir / OWN_TEXT_FILE
    tokenizer = None if "target" in stages else load_tokenizer(target_folder)
    corpus = read_corpus(vocab_size=settings.vocab_size, library=settings.library, tokenizer=tokenizer)
    print(
        f"corpus: {sum(map(len, corpus.training)):,} training and {len(corpus.held_out):,} held-out tokens", flush=True
    )
    if "target" in stages:
        run_in_team(train_target, settings.num_processes, settings, corpus, target_folder)
    if "unlikelihood" in stages and settings.unlikelihood is not None:
        plan = settings.unlikelihood
        run_in_team(train_against_loops, settings.num_processes, settings, plan, corpus, target_folder)
    if "own-text" in stages:
        torch.set_num_threads(max(torch.get_num_threads(), settings.num_processes))
        own_text = write_own_text(load_model(target_folder, settings.device), corpus, settings)
        torch.save(own_text, own_text_file)
    if "drafts" in stages:
        own_text = torch.load(own_text_file, weights_only=True)
        run_in_team(distil_drafts, settings.num_processes, settings, corpus, own_text, output_dir)
        own_text_file.unlink()  # it can be written again, and is no part of the pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument(
        "--library", type=Path, help="a standard library to learn from; by default the running Python's"
    )
    parser.add_argument("--max-minutes", type=float, help="shorten the schedules to about this wall time")
    arguments = parser.parse_args()
    settings = replace(PRESETS[arguments.preset](), library=arguments.library)
    if arguments.max_minutes is not None:
        settings = shortened(settings, arguments.max_minutes)
    train_pair(settings, arguments.output_dir, arguments.stages)


if __name__ == "__main__":
    main()
