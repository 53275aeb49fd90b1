"""The command line: the list of commands, and what `specbranch` does with an error.

Every command works on run folders and prints a small table. Nothing heavy is imported before a command needs it: torch
only by the commands that run real models.
"""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from analysis.cli.hrad.ablate import ablate
from analysis.cli.hrad.ceiling import ceiling
from analysis.cli.hrad.collect import collect
from analysis.cli.hrad.evaluate import evaluate
from analysis.cli.hrad.train import train
from analysis.cli.models.compare import compare
from analysis.cli.models.demo import demo
from analysis.cli.models.fetch_pair import fetch_pair
from analysis.cli.models.record import record
from analysis.cli.models.train_pair import train_pair
from analysis.cli.models.validate import validate
from analysis.cli.planning.advise import advise
from analysis.cli.planning.calibrate import calibrate
from analysis.cli.planning.explore import explore
from analysis.cli.planning.import_files import import_files
from analysis.cli.planning.plan import plan
from analysis.cli.planning.plot import plot
from analysis.cli.planning.published import published
from analysis.cli.planning.roofline import roofline
from analysis.cli.planning.simulate import simulate
from analysis.cli.reporting.check import check
from analysis.cli.reporting.report import report
from analysis.cli.reporting.timeline import timeline
from traces.files import reason_of, remedy_of
from traces.processes import safe_children


def _print_version(is_asked: bool) -> None:
    if is_asked:
        import importlib.metadata  # a fifth of the time in which every command starts

        print(f"specbranch {importlib.metadata.version('specbranch')}")
        raise typer.Exit


app = typer.Typer(name="specbranch", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
hrad_app = typer.Typer(
    help="H-RAD: predict from the target's features how much of a draft will be accepted.", no_args_is_help=True
)
pair_app = typer.Typer(help="Draft/target pairs: train one, fetch a pretrained one.", no_args_is_help=True)


@app.callback()
def _any_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Say the version and end.")
    ] = False,
) -> None:
    """Decide how a large language model should decode: record, calibrate, explore, validate, plan."""


app.add_typer(hrad_app, name="hrad")
app.add_typer(pair_app, name="pair")
for _command in (
    record,
    calibrate,
    roofline,
    simulate,
    explore,
    advise,
    plan,
    plot,
    published,
    validate,
    compare,
    demo,
    report,
    timeline,
    check,
):
    app.command()(_command)
app.command("import")(import_files)
for _hrad_command in (ceiling, collect, train, evaluate, ablate):
    hrad_app.command()(_hrad_command)
pair_app.command("train")(train_pair)
pair_app.command("fetch")(fetch_pair)
INTERRUPTED = 130


class _Ended(SystemExit):
    """The system asked this process to end. Open files and processes are closed on the way out."""


def main() -> None:
    """Entry point: an expected error is one line on standard error and exit code 1; a warning is one line, too.

    A signal ends the command with 128 plus its number, as shells count: 130 for Ctrl-C, 143 for SIGTERM.
    """
    warnings.showwarning = _warning_lines()
    try:
        with safe_children(), _ending():
            code = app(standalone_mode=False)
    except typer.Exit as leave:
        code = leave.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except _Ended as end:
        _print_line(
            f"ended by {signal.Signals(int(str(end.code)) - 128).name}; what was recorded before stays readable."
        )
        sys.exit(end.code)
    except Exception as error:
        if not _is_expected(error):
            raise
        message = _usage_message(error) if hasattr(error, "format_message") else _message_of(error)
        _print_line(f"error: {message or type(error).__name__}")
        sys.exit(getattr(error, "exit_code", 1))
    if code == INTERRUPTED:  # typer makes this code of a KeyboardInterrupt, and gives it back
        _print_line("interrupted; what was recorded before stays readable.")
    if isinstance(code, int) and code:
        sys.exit(code)


def run() -> None:
    """`main` of a process that is ours alone. Once the command is over, Ctrl-C ends the process at once: what Python does then
    would answer it with a traceback of its own."""
    try:
        main()
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _ending() -> Iterator[None]:
    """Signals that would end this process at once end it in order: context managers close workers and run folders."""
    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    if threading.current_thread() is not threading.main_thread():  # only there may a handler be set
        numbers = []
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:  # what is ignored (nohup) stays ignored
            signal.signal(number, _end)
    if numbers:
        before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C on top would break the closing off
    raise _Ended(128 + number)


def _usage_message(error: Any) -> str:
    """Of one of typer's errors, which name the option but not always the value that was given for it."""
    message = str(error.format_message())
    names = getattr(getattr(error, "param", None), "opts", ())
    following = zip(sys.argv, [*sys.argv[1:], ""], strict=True)
    given = [
        value if argument == name else argument.removeprefix(f"{name}=")
        for argument, value in following
        for name in names
        if argument == name or argument.startswith(f"{name}=")
    ]
    if len(given) != 1 or "but got " in message or repr(given[0]) in message:  # of several: which one is meant?
        return message
    return f"{message.rstrip('.')}, but got {given[0]!r}."


def _message_of(error: Exception) -> str:
    """An error's own words; for one of the system's, the file, the reason and what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    what = f"cannot use {error.filename}: " if error.filename is not None else ""
    return f"{what}{reason_of(error)}; {remedy_of(error)}."


def _print_line(text: str) -> None:
    """One line on standard error, whatever the text's own line breaks."""
    Console(stderr=True, soft_wrap=True).print(" ".join(text.split()), markup=False, highlight=False)


def _warning_lines() -> Callable[..., None]:
    """In the place of Python's own form, which shows a line of source: that says nothing to a user. A command says it once."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            _print_line(f"warning: {message}")

    return show


def _is_expected(error: Exception) -> bool:
    """Whether an error speaks to the user: bad input, a place that cannot be read or written, a failed worker."""
    return (
        isinstance(error, ValueError | OSError)
        or hasattr(error, "format_message")  # typer's own usage errors
        # Known by name, so that torch is not imported for it; logits that are not numbers are one, too.
        or any(kind.__name__ == "ExecutorError" for kind in type(error).__mro__)
    )


if __name__ == "__main__":
    run()
