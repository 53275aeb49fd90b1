"""The pair that a command of H-RAD decodes with, from its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executor.models.settings import PairSettings


def pair_of(
    *,
    target: str,
    draft: str,
    engine: str,
    device: str,
    dtype: str,
    capacity: int,
    ignore_generation_config: bool,
    allow_vocab_difference: bool,
    trust_remote_code: bool,
) -> PairSettings:
    """Raises ValueError for an unknown engine or impossible settings."""
    from executor.models.settings import EngineSettings, PairSettings, parse_engine

    chosen = EngineSettings(
        kind=parse_engine(engine), device=device, dtype=dtype, capacity=capacity, trusts_remote_code=trust_remote_code
    )
    return PairSettings(
        target=target,
        draft=draft,
        engine=chosen,
        ignores_generation_config=ignore_generation_config,
        allows_vocab_difference=allow_vocab_difference,
    )
