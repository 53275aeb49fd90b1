"""A small real recording, shared by the tests of the analyses."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.pair import Session
from executor.recording.recorder import record_run
from tests.settings import record_settings


@pytest.fixture(scope="session")
def recorded(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the embedded pair: two policies, two temperatures, three prompts."""
    folder = tmp_path_factory.mktemp("runs") / "recorded"
    settings = record_settings(num_prompts=3, max_new_tokens=24, capacity=512)
    record_run(settings, folder, session=session)
    return folder
