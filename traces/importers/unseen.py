"""What to take for outcomes that another program did not write down: the command line offers it, so nothing heavy here."""

from __future__ import annotations

import enum


class Unseen(enum.StrEnum):
    """What to take for a position at which nobody asked the draft.

    Rounds of a fixed draft length are at least as many as in truth with REJECTED, and at most as many with ACCEPTED, so the
    two bound the answer: fewer rejections never delay a later round, since a round that starts further on ends no earlier.
    """

    REJECTED = "rejected"
    ACCEPTED = "accepted"
