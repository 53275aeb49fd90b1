"""Collect H-RAD data: decode prompts with the pair, then one pass of the target along every finished sequence."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from executor.hrad.dataset import (
    Dataset,
    DatasetMeta,
    Purpose,
    accepted_lengths,
    drafted_signals,
    running_rates,
    save_dataset,
)
from executor.hrad.features import class_inputs_along
from executor.hrad.predictor import HradError
from executor.models.engines.base import Engine
from executor.models.loading import fingerprint, load_engine, load_tokenizer, source_of
from executor.models.names import resolve_model
from executor.models.settings import PairSettings
from executor.recording.prompts import encode_prompt, load_prompts, settled_form
from executor.recording.recorder import record_run
from executor.recording.settings import DecodingSettings, PromptSettings, RecordSettings
from traces.folder.run import Run
from traces.progress import Report, silent

SOURCES = {"training": Purpose.TRAINING, "held_out": Purpose.EVALUATION}


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """What to collect.

    purpose: "training" data comes from the prompts `training` or a file, "evaluation" data from `held_out` or a file.
    decoding: its policies are not used. draft_length: gamma of the classes. num_feature_layers: K, the target's last blocks
    that are looked at.
    """

    purpose: Purpose = Purpose.TRAINING
    pair: PairSettings = field(default_factory=PairSettings)
    prompts: PromptSettings = field(default_factory=lambda: PromptSettings(source="training", num=120))
    decoding: DecodingSettings = field(default_factory=lambda: DecodingSettings(temperatures=(0.0, 0.7, 1.0)))
    draft_length: int = 8
    num_feature_layers: int = 4

    def __post_init__(self) -> None:
        if SOURCES.get(self.prompts.source, self.purpose) != self.purpose:
            right = next(name for name, purpose in SOURCES.items() if purpose == self.purpose)
            raise HradError(
                f"{self.prompts.source} prompts are never used for {self.purpose}; take {right} or a file of your own."
            )
        if self.draft_length < 1 or self.num_feature_layers < 1:
            raise HradError(
                f"draft_length and num_feature_layers must be at least 1, but got {self.draft_length} and "
                f"{self.num_feature_layers}."
            )


def collect(settings: CollectSettings, output_dir: str | Path, *, progress: Report = silent) -> Dataset:
    """Decode and look; writes the run folder `run` and the dataset into output_dir. progress counts requests.

    Raises HradError as `dataset_of` does.
    """
    recording = RecordSettings(
        pair=settings.pair,
        decoding=replace(settings.decoding, policies=("fixed_length:draft_length=3",)),
        prompts=settings.prompts,
        tail_depth=settings.draft_length - 1,
    )
    source = source_of(
        resolve_model(settings.pair.target, "target"), trusts_remote_code=settings.pair.engine.trusts_remote_code
    )
    _check_layers(settings, source.num_layers())
    run = record_run(recording, Path(output_dir) / "run", progress=progress)
    looking = replace(settings.pair.target_engine, num_feature_layers=settings.num_feature_layers)
    target = load_engine(resolve_model(settings.pair.target, "target"), looking)
    dataset = dataset_of(run, target, settings)
    save_dataset(output_dir, dataset)
    return dataset


@torch.inference_mode()
def dataset_of(run: Run, engine: Engine, settings: CollectSettings) -> Dataset:
    """The rows of a recorded run; engine: the target, keeping the features of its last blocks.

    Raises HradError where the target has too few blocks, or no request is long enough to be labelled.
    """
    _check_layers(settings, engine.num_layers)
    target, draft = resolve_model(settings.pair.target, "target"), resolve_model(settings.pair.draft, "draft")
    tokenizer = load_tokenizer(target, trusts_remote_code=settings.pair.engine.trusts_remote_code)
    prompts = load_prompts(settings.prompts.source, settings.prompts.num, skip=settings.prompts.skip)
    form = settled_form(settings.prompts.form, tokenizer, prompts)
    index_of = {prompt.prompt_id: index for index, prompt in enumerate(prompts)}
    generated = {
        int(str(request_id)): rows.token.astype(int).tolist()
        for request_id, rows in run.alignment.groupby("request_id", sort=False)
    }
    parts: dict[str, list[NDArray[np.generic]]] = {}
    for trace in run.traces():
        num_accepted = accepted_lengths(trace.ranks, settings.draft_length)
        num_rows, prompt = len(num_accepted), prompts[index_of[trace.prompt_id]]
        if not num_rows:
            continue
        prompt_tokens = list(encode_prompt(tokenizer, prompt, form))
        tokens = [*prompt_tokens, *generated[trace.request_id]]
        inputs = torch.cat(list(class_inputs_along(engine, tokens, len(prompt_tokens))))[:num_rows]
        rows = {
            "inputs": inputs.to("cpu", torch.float16).numpy(),
            "num_accepted": num_accepted,
            "signals": drafted_signals(trace, num_rows, settings.draft_length),
            "running_rate": running_rates(trace.ranks, num_rows),
            "prompts": np.full(num_rows, index_of[trace.prompt_id]),
            "temperatures": np.full(num_rows, trace.temperature),
        }
        for name, values in rows.items():
            parts.setdefault(name, []).append(values)
    if not parts:
        raise HradError(
            f"no request has {settings.draft_length} tokens, so none can be labelled; raise max_new_tokens or shorten "
            "draft_length."
        )
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    meta = DatasetMeta(
        purpose=settings.purpose,
        target_fingerprint=fingerprint(target),
        draft_fingerprint=fingerprint(draft),
        draft_length=settings.draft_length,
        num_feature_layers=settings.num_feature_layers,
        hidden_size=engine.hidden_size,
        embedding_size=arrays["inputs"].shape[1] - settings.num_feature_layers * engine.hidden_size,
        temperatures=settings.decoding.temperatures,
        prompt_keys=prompt_keys(settings),
    )
    return Dataset(meta=meta, **arrays)


def _check_layers(settings: CollectSettings, num_layers: int) -> None:
    if settings.num_feature_layers > num_layers:
        raise HradError(
            f"the target has {num_layers} blocks, so the last {settings.num_feature_layers} cannot be looked at; use "
            "a smaller num_feature_layers."
        )


def prompt_keys(settings: CollectSettings) -> tuple[str, ...]:
    """Hashes of the prompts' texts: they show whether two data sets share a prompt, whatever its name."""
    prompts = load_prompts(settings.prompts.source, settings.prompts.num, skip=settings.prompts.skip)
    return tuple(hashlib.sha256(prompt.text.encode()).hexdigest()[:12] for prompt in prompts)
