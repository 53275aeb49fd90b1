"""The command line: the list of commands, and what `specbranch` does with an error.

Every command works on run folders and prints a small table. Nothing heavy is imported before a command needs it: torch
only by the commands that run real models.
"""

from __future__ import annotations

import sys
import warnings

import typer
from rich.console import Console

from analysis.cli.hrad.ablate import ablate
from analysis.cli.hrad.collect import collect
from analysis.cli.hrad.evaluate import evaluate
from analysis.cli.hrad.train import train
from analysis.cli.models.compare import compare
from analysis.cli.models.demo import demo
from analysis.cli.models.record import record
from analysis.cli.models.train_pair import train_pair
from analysis.cli.models.validate import validate
from analysis.cli.planning.calibrate import calibrate
from analysis.cli.planning.explore import explore
from analysis.cli.planning.plot import plot
from analysis.cli.planning.published import published
from analysis.cli.planning.roofline import roofline
from analysis.cli.planning.simulate import simulate

app = typer.Typer(
    name="specbranch",
    help="Decide how a large language model should decode: record, calibrate, explore, validate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
hrad_app = typer.Typer(
    help="H-RAD: predict from the target's features how much of a draft will be accepted.", no_args_is_help=True
)
pair_app = typer.Typer(help="The embedded draft/target pair.", no_args_is_help=True)
app.add_typer(hrad_app, name="hrad")
app.add_typer(pair_app, name="pair")
for _command in (record, calibrate, roofline, simulate, explore, plot, published, validate, compare, demo):
    app.command()(_command)
for _hrad_command in (collect, train, evaluate, ablate):
    hrad_app.command()(_hrad_command)
pair_app.command("train")(train_pair)


def main() -> None:
    """Entry point: an expected error is one line on standard error and exit code 1; a warning is one line, too."""
    warnings.showwarning = _show_warning
    try:
        app(standalone_mode=False)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        Console(stderr=True).print("interrupted; what was recorded before stays readable.")
        sys.exit(130)
    except Exception as error:
        if not _is_expected(error):
            raise
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        _print_line(f"error: {message}")
        sys.exit(getattr(error, "exit_code", 1))


def _print_line(text: str) -> None:
    """One line on standard error, whatever the text's own line breaks."""
    Console(stderr=True, soft_wrap=True).print(" ".join(text.split()), markup=False, highlight=False)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """In the place of Python's own form, which shows a line of source: that says nothing to a user."""
    _print_line(f"warning: {message}")


def _is_expected(error: Exception) -> bool:
    """Whether an error speaks to the user: bad input, a place that cannot be read or written, a failed worker."""
    return (
        isinstance(error, ValueError | OSError)
        or hasattr(error, "format_message")  # typer's own usage errors
        or type(error).__name__ == "ExecutorError"  # known by name, so that torch is not imported for it
    )


if __name__ == "__main__":
    main()
