"""What a predictor is trained and judged on: one row a position, and the folder that it is kept in.

A row stands for "the target's newest token is at this position: how many of a full draft of `draft_length` tokens after
it would be accepted?" Under shared noise the alignment trace answers it: drafted tokens are accepted as long as the
committed token has rank 0 in the draft's noisy order.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from executor.hrad.predictor import SCHEMA_VERSION, HradError
from traces.files import whole_file, write_text
from traces.schema import RequestTrace

ARRAYS_NAME, META_NAME = "dataset.safetensors", "dataset.json"
REJECT, CONFIDENCE, ACCEPT = range(3)
RATE_MEMORY = 16.0  # tokens over which the running acceptance average forgets


class Purpose(enum.StrEnum):
    """What a dataset may be used for; the two never mix."""

    TRAINING = "training"
    EVALUATION = "evaluation"


@dataclass(frozen=True, kw_only=True)
class DatasetMeta:
    """Which pair and which prompts a dataset comes from. prompt_keys: hashes of the prompts' texts."""

    purpose: Purpose
    target_fingerprint: str
    draft_fingerprint: str
    draft_length: int
    num_feature_layers: int
    hidden_size: int
    embedding_size: int
    temperatures: tuple[float, ...]
    prompt_keys: tuple[str, ...]
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Rows of all requests, n of them.

    inputs:       (n, num_inputs) float16, see `features.class_inputs`.
    num_accepted: (n,) of the draft_length tokens drafted there.
    signals:      (n, draft_length, 3) largest probability, entropy and noisy margin of those tokens.
    running_rate: (n,) share of the draft's tokens that were right, over the last tokens of the request.
    prompts:      (n,) index into meta.prompt_keys. temperatures: (n,).
    """

    meta: DatasetMeta
    inputs: NDArray[np.float16]
    num_accepted: NDArray[np.int64]
    signals: NDArray[np.float32]
    running_rate: NDArray[np.float64]
    prompts: NDArray[np.int64]
    temperatures: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.num_accepted)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) classes: 0 none accepted, 2 all accepted, 1 otherwise."""
        return classes_of(self.num_accepted, self.meta.draft_length)

    def rows(self, chosen: NDArray[np.bool_]) -> Dataset:
        """The chosen rows; prompt_keys stay, so that indices keep their meaning."""
        return Dataset(meta=self.meta, **{name: array[chosen] for name, array in _arrays(self).items()})


def with_last_layers(dataset: Dataset, num_feature_layers: int) -> Dataset:
    """The same rows as if only the target's last so many blocks had been looked at; the embedding stays.

    Raises HradError where the data holds fewer.
    """
    meta = dataset.meta
    if not 1 <= num_feature_layers <= meta.num_feature_layers:
        raise HradError(
            f"the data holds the last {meta.num_feature_layers} blocks, so the last {num_feature_layers} cannot be taken; "
            "collect with a larger num_feature_layers."
        )
    inputs = dataset.inputs[:, (meta.num_feature_layers - num_feature_layers) * meta.hidden_size :]
    return replace(dataset, meta=replace(meta, num_feature_layers=num_feature_layers), inputs=inputs)


def with_draft_length(dataset: Dataset, draft_length: int) -> Dataset:
    """The same rows as if drafts had this length. Raises HradError where the data's drafts are shorter."""
    meta = dataset.meta
    if not 1 <= draft_length <= meta.draft_length:
        raise HradError(
            f"the data tells how much of {meta.draft_length} drafted tokens was accepted, so nothing is known of "
            f"{draft_length}; collect with a larger draft_length."
        )
    return replace(
        dataset,
        meta=replace(meta, draft_length=draft_length),
        num_accepted=np.minimum(dataset.num_accepted, draft_length),
        signals=dataset.signals[:, :draft_length],
    )


def classes_of(num_accepted: NDArray[np.int64], draft_length: int) -> NDArray[np.int64]:
    """Class of each accepted length.

    >>> classes_of(np.array([0, 1, 7, 8]), 8).tolist()
    [0, 1, 1, 2]
    """
    return np.where(num_accepted == 0, REJECT, np.where(num_accepted >= draft_length, ACCEPT, CONFIDENCE))


def accepted_lengths(ranks: Sequence[int], draft_length: int) -> NDArray[np.int64]:
    """Accepted tokens of a full draft before each position 0..N - draft_length of a sequence of N tokens.

    Later positions are left out, all of them: the sequence ends within their draft, and to keep only those whose draft
    fails earlier would bias the classes towards rejection.

    >>> accepted_lengths([0, 0, 3, 0, 0], 2).tolist()
    [2, 1, 0, 2]
    """
    is_right = np.asarray(ranks) == 0
    num = len(is_right) - draft_length + 1
    if num < 1:
        return np.zeros(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(is_right, draft_length)
    lengths: NDArray[np.int64] = np.cumprod(windows, axis=1).sum(axis=1)
    return lengths


def drafted_signals(trace: RequestTrace, num_rows: int, draft_length: int) -> NDArray[np.float32]:
    """Signals of the tokens that a full draft would consist of, (num_rows, draft_length, 3).

    On the path of the committed tokens they are recorded as they are; after the draft's own wrong token in the tails.
    """
    mismatch, signals = trace.num_tokens, np.empty((num_rows, draft_length, 3), np.float32)
    for position in range(trace.num_tokens - 1, -1, -1):
        if trace.ranks[position]:
            mismatch = position
        if position < num_rows:
            on_path = trace.signals[position : min(mismatch + 1, position + draft_length)]
            rest = draft_length - len(on_path)
            signals[position] = [*on_path, *(trace.tails[mismatch][:rest] if rest else ())]
    return signals


def running_rates(ranks: Sequence[int], num_rows: int) -> NDArray[np.float64]:
    """Exponentially forgetting average of right draft tokens before each position, from one half."""
    rate, rates = 0.5, []
    for rank in ranks[:num_rows]:
        rates.append(rate)
        rate += (float(rank == 0) - rate) / RATE_MEMORY
    return np.array(rates)


def save_dataset(folder: str | Path, dataset: Dataset) -> None:
    """Write a dataset into a folder."""
    folder = Path(folder)
    with whole_file(folder / ARRAYS_NAME) as place:
        save_file({name: np.ascontiguousarray(array) for name, array in _arrays(dataset).items()}, place)
    write_text(folder / META_NAME, json.dumps(asdict(dataset.meta), indent=2) + "\n")


def load_dataset(folder: str | Path) -> Dataset:
    """Read a dataset. Raises HradError where there is none, or one that cannot be read."""
    path = Path(folder) / META_NAME
    if not path.is_file():
        raise HradError(f"no H-RAD data at {folder}: it has no {META_NAME}; give a folder that hrad collect wrote.")
    try:
        meta = TypeAdapter(DatasetMeta).validate_json(path.read_bytes())
        if meta.schema_version != SCHEMA_VERSION:
            raise HradError(f"{path} has schema version {meta.schema_version}, this code reads {SCHEMA_VERSION}.")
        return Dataset(meta=meta, **load_file(Path(folder) / ARRAYS_NAME))
    except (OSError, ValidationError, SafetensorError, TypeError) as error:
        raise HradError(f"cannot read {folder}: {str(error).splitlines()[0]}; collect the data again.") from error


def _arrays(dataset: Dataset) -> dict[str, Any]:  # arrays of several types
    names = ("inputs", "num_accepted", "signals", "running_rate", "prompts", "temperatures")
    return {name: getattr(dataset, name) for name in names}
