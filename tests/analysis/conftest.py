"""A small real recording, shared by the tests of the analyses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.pair import Session
from executor.recording.recorder import record_run
from tests.settings import record_settings
from traces.fits.acceptance import fit


@pytest.fixture(scope="session", autouse=True)
def _all_light(light_sessions: None) -> None:
    """Every session of these tests is a light one: `tests.light_sessions`."""


@pytest.fixture(scope="module", autouse=True)  # not for the session: other folders' tests share the process
def _few_resamples() -> Iterator[None]:
    """Explorations fit eight models of acceptance to 60 resamples each, which tests/traces/fits/acceptance judges."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "NUM_RESAMPLES", 3)
        yield


@pytest.fixture(scope="session")
def recorded(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the embedded pair: two policies, two temperatures, three prompts."""
    folder = tmp_path_factory.mktemp("runs") / "recorded"
    settings = record_settings(num_prompts=3, max_new_tokens=24, capacity=512)
    record_run(settings, folder, session=session)
    return folder
