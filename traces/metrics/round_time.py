"""How the times of a round's parts make up the round: the one place where it is said, for numbers and arrays alike."""

from __future__ import annotations

from typing import Any

import numpy as np


def round_seconds(serial: Any, ahead: Any, verify: Any, host: Any = 0.0, *, takes_turns: bool = False) -> Any:
    """Seconds of rounds from those of their parts; numbers, arrays or series that broadcast.

    The draft drafts (serial), then the target verifies while the draft works ahead, then the host settles. takes_turns:
    the two models share a device that runs one at a time, so that nothing overlaps.

    >>> float(round_seconds(serial=2.0, ahead=3.0, verify=5.0, host=0.5))
    7.5
    >>> round_seconds(serial=2.0, ahead=3.0, verify=5.0, host=0.5, takes_turns=True)
    10.5
    """
    acting = verify + ahead if takes_turns else np.maximum(verify, ahead)
    return serial + acting + host
