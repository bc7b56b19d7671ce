"""The program ``osrm``: its commands in pipeline order, and the handling of errors."""

import os
import signal
import sys
import warnings
from typing import Annotated, Any, TextIO, cast

import typer
from typer.core import TyperGroup

from osrm_cli.cli import console
from osrm_cli.cli.commands import (
    calibrate,
    collect,
    convert,
    demo,
    diagnose,
    evaluate,
    extract,
    init,
    merge,
    report,
    retrofit,
    sweep,
    train,
    verify,
)
from osrm_cli.cli.config_file import read_option_defaults
from osrm_cli.errors import OsrmError, describe_system_error
from osrm_cli.version import __version__

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_ENDING = (signal.SIGTERM, signal.SIGHUP)


class _Pipeline(TyperGroup):
    """Commands in pipeline order; user errors are printed in one line, with exit code 1."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        try:
            ctx.default_map = read_option_defaults(self._option_spellings())
            return super().invoke(ctx)
        except OsrmError as error:
            console.print_error(str(error), error.hint)
            raise typer.Exit(1) from None
        except (OSError, RuntimeError) as error:
            if (trouble := describe_system_error(error)) is None:
                raise
            console.print_error(trouble, None)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            console.print_error("interrupted", None)
            raise typer.Exit(_INTERRUPTED) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:
            # Completion needs no validated values, and importing the library that validates them takes half its time.
            for command in (self, *self.commands.values()):
                for parameter in command.get_params(ctx):
                    setattr(parameter, "process_value", _as_typed)  # noqa: B010 - mypy takes no method's assignment
        return super().parse_args(ctx, args)

    def _option_spellings(self) -> dict[str, dict[str, str]]:
        return {
            name: {
                option.removeprefix("--"): parameter.name
                for parameter in command.params
                for option in parameter.opts
                if option.startswith("--") and parameter.name
            }
            for name, command in self.commands.items()
        }


def _as_typed(_ctx: Any, value: Any) -> Any:
    return value


app = typer.Typer(
    cls=_Pipeline,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help starts three times faster
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=True,
)


def _print_version(show_version: bool) -> None:
    if show_version:
        print(f"osrm {__version__}", flush=True)
        raise typer.Exit


@app.callback()
def osrm(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make LoRA adapters mergeable.

    \b
    collect -> features/   activation statistics of each task, layer by layer
    init    -> starts/     an adapter orthogonal to the other tasks' activations
    train   -> adapters/   the adapter, fine-tuned
    merge   -> merged/     one model for all tasks
    eval    -> scores.json scores of each task and its single adapter
    """  # noqa: D301 - click looks for the character, not for a backslash


app.command("collect")(collect.collect)
app.command("init")(init.init)
app.command("train")(train.train)
app.command("merge")(merge.merge)
app.command("extract")(extract.extract)
app.command("calibrate")(calibrate.calibrate)
app.command("retrofit")(retrofit.retrofit)
app.command("eval")(evaluate.evaluate)
app.command("sweep")(sweep.sweep)
app.command("diagnose")(diagnose.diagnose)
app.command("report")(report.report)
app.command("convert")(convert.convert)
app.command("verify")(verify.verify)
app.command("demo")(demo.demo)


_received: list[int] = []  # signals that ask the program to end


def _terminate(signum: int, _frame: Any) -> None:
    """Exit as after Ctrl-C, so that staged files are removed."""
    for number in _ENDING:  # once is enough
        signal.signal(number, signal.SIG_IGN)
    _received.append(signum)
    sys.unraisablehook = _ignore_unraisable
    sys.exit(128 + signum)


def _ignore_unraisable(_unraisable: Any) -> None:
    """What a library cannot raise where the signal has hit it."""


def _report_unraisable(unraisable: Any) -> None:
    """Report what a library cannot raise, but for Ctrl-C: Python has lost it in a callback of its own."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def main() -> None:
    """Run the program."""
    sys.unraisablehook = _report_unraisable
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _terminate)
    sys.stderr = cast("TextIO", console.ExpendableStream(sys.stderr))
    if sys.stdout:
        sys.stdout = cast("TextIO", console.ResultStream(sys.stdout))
    warnings.simplefilter("ignore", FutureWarning)  # of libraries: users cannot fix them
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # else it reads what every installed package declares
    try:
        app(prog_name="osrm")
    except OsrmError as error:  # help or version could not be printed
        console.print_error(str(error), error.hint)
        sys.exit(1)
    except BaseException:
        if _received:  # libraries turn what interrupts them into errors of their own
            sys.exit(128 + _received[0])
        raise
    finally:  # nothing is staged any more: from here on, a signal ends the process at once
        for number in (*_ENDING, signal.SIGINT):
            if signal.getsignal(number) in (_terminate, signal.default_int_handler):
                signal.signal(number, signal.SIG_DFL)
