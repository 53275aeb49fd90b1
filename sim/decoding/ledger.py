"""The ledger of a round: everything its times depend on, but for where its sequence stands."""

from __future__ import annotations

from typing import NamedTuple


class Ledger(NamedTuple):
    """What was forwarded and what came of it, as counts; written by the step machine when a round closes.

    num_carried: pending tokens from the round before. draft_lag: tokens that the first serial forward had to process; 0
    when the draft's law was known, so that the first token cost no forward. num_serial: tokens drafted while the target
    waited; num_withdrawn of the drafted ones were not submitted. look_lag: tokens that the look forwarded; 0 without one.
    The rest as in `traces.schema.Round`.
    """

    num_carried: int
    draft_lag: int
    num_serial: int
    num_withdrawn: int
    num_pending: int
    look_lag: int
    num_branches: int
    num_branch_steps: int
    num_accepted: int
    num_emitted: int
    is_hit: bool
    num_kept: int
    is_finished: bool
