"""Call the command line in this process."""

from __future__ import annotations

import sys

from analysis.cli.main import main


def call(*arguments: str) -> int:
    """Exit code of a command."""
    argv, sys.argv = sys.argv, ["specbranch", *arguments]
    try:
        main()
    except SystemExit as leave:
        return int(leave.code or 0)
    finally:
        sys.argv = argv
    return 0
