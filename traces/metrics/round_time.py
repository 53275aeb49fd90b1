"""How the times of a round's parts make up the round: the one place where it is said, for numbers and arrays alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Overlapped(NamedTuple):
    """Seconds until both models are done, and of each one's work as they came out; numbers or arrays."""

    whole: Any
    verify: Any
    ahead: Any


def overlapped(verify: Any, parts: Sequence[tuple[Any, Any, Any]]) -> Overlapped:
    """A verification and what the draft does meanwhile, part after part, on devices that slow each other down.

    verify: seconds of the verification alone. parts: of the draft's work seconds alone, and the paces of the target and of
    the draft while both work: shares of their speeds alone. Whoever is left goes on at full speed.

    >>> [float(seconds) for seconds in overlapped(5.0, [(2.0, 0.5, 0.5)])]
    [7.0, 7.0, 4.0]
    """
    left, verify_s, ahead_s = verify, 0.0 * verify, 0.0 * verify
    for seconds, target_pace, draft_pace in parts:
        both = np.minimum(left / target_pace, seconds / draft_pace)
        left = np.maximum(left - both * target_pace, 0.0)
        verify_s = verify_s + both
        ahead_s = ahead_s + both + np.maximum(seconds - both * draft_pace, 0.0)
    verify_s = verify_s + left
    return Overlapped(np.maximum(verify_s, ahead_s), verify_s, ahead_s)
