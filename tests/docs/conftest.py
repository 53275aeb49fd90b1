"""Every session of these tests is a light one, unless a test asks for real ones."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _all_light(light_sessions: None) -> None:
    """See `tests.light_sessions`."""
