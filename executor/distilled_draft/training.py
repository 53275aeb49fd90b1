"""Make a draft for one target: let the target write conversations, and let the draft learn from them. Both can go on later."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from executor.distilled_draft.conversations import template_of
from executor.distilled_draft.corpus import Corpus
from executor.distilled_draft.learning import CHECKPOINT_FILE, DRAFT_FOLDER, Learner
from executor.distilled_draft.settings import DraftSettings, Say
from executor.distilled_draft.texts import read_texts, write_text_shards
from executor.distilled_draft.writing import write_corpus
from executor.models.loading import eos_token_ids, fingerprint, load_tokenizer
from executor.models.names import resolve_model
from executor.models.sources.base import ModelError
from executor.models.stored.distilled import DraftCard, vocabulary_digest
from executor.models.stored.gguf_files import local_path

CORPUS_FOLDER = "conversations"
_WRITING_SHARE = 0.5  # of the time, where one call does both
_READING_SHARE = 0.2  # of the writing time, where there are texts


class Stage(enum.StrEnum):
    """What one call does."""

    WRITE = "write"
    LEARN = "learn"
    BOTH = "both"


def train_draft(
    settings: DraftSettings,
    output_dir: Path,
    *,
    minutes: float,
    stage: Stage = Stage.BOTH,
    resumes: bool = False,
    corpus: Path | None = None,
    texts: Path | None = None,
    say: Say = print,
) -> Path:
    """Write for half of the minutes and learn for the other half; gives the folder of the best draft on held-out answers.

    corpus: folder of the conversations; None for output_dir / conversations. They are kept, and read whoever wrote them.
    texts: folder of text files that the target reads for a fifth of the writing time. resumes: whether training goes on from
    output_dir's checkpoint. Raises ValueError where there is one and it does not.
    """
    if not resumes and stage is not Stage.WRITE and (output_dir / CHECKPOINT_FILE).is_file():
        raise ValueError(f"{output_dir} holds a draft in training: go on with --resume, or choose another folder.")
    folder = local_path(resolve_model(settings.target, "target"))
    target = _load(folder, settings.device)
    tokenizer = load_tokenizer(folder)
    corpus = corpus or output_dir / CORPUS_FOLDER
    share = _WRITING_SHARE if stage is Stage.BOTH else 1.0
    if stage is not Stage.LEARN:
        writing_minutes = minutes * share
        if texts is not None:
            reading = _READING_SHARE * writing_minutes
            write_text_shards(target, tokenizer, read_texts(texts), settings.writing, corpus, minutes=reading, say=say)
            writing_minutes -= reading
        template = template_of(tokenizer, eos_token_ids(folder))
        write_corpus(target, tokenizer, template, settings.writing, corpus, minutes=writing_minutes, say=say)
    if stage is not Stage.WRITE:
        learner = Learner(settings, target, Corpus(corpus))
        if resumes and learner.resume(output_dir):
            say(f"going on after {learner.num_steps} steps and {learner.num_tokens / 1e6:.2f} M tokens")
        else:
            learner.fit()
        card = DraftCard(
            target=settings.target,
            target_fingerprint=fingerprint(folder),
            vocabulary=vocabulary_digest(tokenizer.get_vocab()),
        )
        learner.learn(minutes * share, output_dir, card, say)
    return output_dir / DRAFT_FOLDER


def _load(folder: str | Path, device: str) -> Any:
    try:
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ModelError(f"the target in {folder} cannot be loaded ({str(error).splitlines()[0]}).") from error
    return module.eval().requires_grad_(False).to(device)
