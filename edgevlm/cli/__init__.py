"""The command line: `edgevlm VERB ...`.

Each verb is one thin module beside this one that parses, calls and prints; it is imported only when it is used, so that
`edgevlm --help` starts at once. Failures become three lines on standard error (what, where, hint) and an exit code.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from edgevlm._version import __version__
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.tables import printable

#: Verb -> one sentence for `edgevlm --help`. The verb's module has the same name and exposes `command`.
VERBS = {
    "export": "Compile a checkpoint into a bundle.",
    "estimate": "Forecast memory and speed of a model on a device.",
    "run": "Ask a bundle about an image.",
    "inspect": "Show what is in a bundle.",
    "build": "Build TensorRT engines into a bundle.",
    "lint": "Ask whether TensorRT will read a bundle.",
    "bench": "Measure speed, memory and accuracy of bundles.",
    "compare": "Say what got worse between two reports.",
    "report": "Join reports of several devices, or render one again.",
    "data": "List, verify and compare accuracy data sets and runs.",
    "study": "Compare many ways to compress one model.",
    "models": "List the models that can be exported.",
    "targets": "Devices to compile for, and this machine as one.",
    "pruners": "List the methods that make visual tokens fewer.",
    "zoo": "Make reference checkpoints and test images.",
    "doctor": "Check this machine and its runtimes.",
}

_INTERRUPTED = 130
_LONGEST_LINE = 500
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"edgevlm.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, subcommand_metavar="VERB ...")
@click.version_option(__version__, prog_name="edgevlm", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error, and warnings.")
def cli(debug: bool) -> None:
    """Compile small vision-language models for devices.

    Compress, lower, verify, measure and embed. Use "edgevlm VERB --help" for one verb.
    """
    if not debug:
        warnings.simplefilter("ignore")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    0: done. 1: it failed. 2: the input cannot be used. 130: interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(given))


def _run(arguments: list[str]) -> int:
    debug = False
    try:
        with cli.make_context("edgevlm", arguments) as ctx:
            debug = ctx.params["debug"]
            cli.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("\ninterrupted\n")
        return _INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(error.format_message() + "\n")
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        shown = readable(error)
        show_error(shown)
        return shown.exit_code
    return 0


def show_error(error: EdgeVLMError) -> None:
    """Print the error's parts, each on one line, on standard error."""
    for label, part in (("error", error.what), ("where", error.where), ("hint", error.hint)):
        if part:
            sys.stderr.write(f"{label}: {_shortened(printable(part))}\n")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_LINE else f"{text[: _LONGEST_LINE // 2]} ... {text[-_LONGEST_LINE // 2 :]}"


def readable(error: Exception) -> EdgeVLMError:
    """Any exception as an error of ours: what, where and what to do."""
    if isinstance(error, EdgeVLMError):
        return error
    if isinstance(error, click.ClickException):
        ctx = getattr(error, "ctx", None)
        path = ctx.command_path if ctx is not None else "edgevlm"
        return InputError(error.format_message(), path, f"see {path} --help")
    if isinstance(error, MemoryError):
        return EdgeVLMError("the memory is not enough", "this machine", "close other programs or take a smaller model")
    if isinstance(error, OSError):
        hint = "free some space" if error.errno in _DISK_FULL else "check that the path exists and may be used"
        return InputError(error.strerror or str(error), str(error.filename or ""), hint)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "edgevlm").startswith("edgevlm"):
        return EdgeVLMError(
            f"the Python package {error.name} is not installed",
            sys.prefix,
            "pip install 'edgevlm[all]', or the extra that names this package",
        )
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    return EdgeVLMError(
        f"a fault in edgevlm: {type(error).__name__}: {error}",
        f"{Path(last.filename).name}, line {last.lineno}" if last else "",
        "put --debug before the verb for the traceback, and report it",
    )


def _forget_output() -> None:
    """The reader has gone: keep the interpreter from flushing into the broken pipe when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
