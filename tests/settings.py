"""Settings for tests from single values, by the flat names that the first config.yaml had."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.models.settings import EngineSettings, PairSettings, parse_engine
from executor.recording.settings import RecordSettings, read_settings

if TYPE_CHECKING:
    from executor.models.engines.base import Engine


def record_settings(**flat: object) -> RecordSettings:
    """What to record, for example record_settings(capacity=512, num_prompts=2)."""
    settings = read_settings({"target": "embedded", **flat})
    assert settings is not None
    return settings


def pair_settings(**flat: object) -> PairSettings:
    """The pair alone, for example pair_settings(target=folder, capacity=256)."""
    return record_settings(**flat).pair


def load(path: str | Path, *, engine: str = "static", capacity: int | None = None, **settings: Any) -> Engine:
    """A model, with as many positions as it knows unless said otherwise."""
    from executor.models.loading import load_engine

    return load_engine(path, EngineSettings(kind=parse_engine(engine), capacity=capacity, **settings))
