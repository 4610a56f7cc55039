"""The command line: parse, call, print. One file a command, imported when it is called."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import click

from kdbench import __version__
from kdbench.errors import UserError, first_line, nearest
from kdbench.progress import is_main, launched

COMMANDS = (
    "init",
    "check",
    "run",
    "distill",
    "spiral",
    "prune",
    "sparsify",
    "factorise",
    "export",
    "slim",
    "quantize",
    "convert",
    "evaluate",
    "bench",
    "profile",
    "pack",
    "bundle",
    "card",
    "report",
    "results",
    "backends",
    "zoo",
)
"""In the order of the work; each is a module beside this one with a click command of its name."""


class Commands(click.Group):
    """Loads a command when it is called, and answers an unknown one with the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"kdbench.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UserError(f"unknown command '{args[0]}': {nearest(args[0], COMMANDS)}")
        if launched() and args and args[0] != "distill":
            raise UserError(f"torchrun is for 'kdbench distill': call 'kdbench {args[0]}' by itself")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kdbench")
def cli() -> None:
    """Make a classifier smaller and faster, and prove on every backend what each step gains and costs.

    \b
    kdbench run digits                        the whole ladder on real data, in about 80 s
    kdbench bench a.onnx b.onnx               which is faster here, and is the difference real?
    kdbench quantize a.onnx --out b.onnx      static int8
    """


def main() -> None:
    """Runs the command line. A mistake of the user's is one line and exit status 2; Ctrl-C is 130.

    Of several processes that torchrun started, the main one speaks for all.
    """
    try:
        with _ctrl_c_is_never_lost():
            status = cli(standalone_mode=False)
            sys.stdout.flush()
    except UserError as error:
        _fail(str(error), 2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context else ""
        _fail(" ".join(error.format_message().split()) + hint, 2)
    except (click.Abort, KeyboardInterrupt):
        if is_main():
            click.echo("kdbench: interrupted; what is finished is kept", err=True)
        sys.stdout.flush()
        # Everything is written and every worker ended; unloading torch would take another second.
        os._exit(130)
    except BrokenPipeError:
        os._exit(1)  # whoever read the output has gone
    except (OSError, UnicodeEncodeError) as error:
        _fail(f"cannot go on: {first_line(error)}", 2)
    _end(status if isinstance(status, int) else 0)


@contextmanager
def _ctrl_c_is_never_lost() -> Iterator[None]:
    """Python drops a KeyboardInterrupt that strikes in a weak reference's callback or a finalizer: raise it again."""
    hook, alarm = sys.unraisablehook, signal.signal(signal.SIGALRM, signal.default_int_handler)
    terminate = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that scratch files are cleared

    def raise_again(dropped: "sys.UnraisableHookArgs") -> None:
        if dropped.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            hook(dropped)

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGTERM, terminate)


def _fail(message: str, status: int) -> None:
    if is_main():
        click.echo(f"kdbench: {message}", err=True)
    _end(status)


def _end(status: int) -> None:
    """Ends the process; under torchrun at once, as gloo's threads may abort an interpreter that takes itself down
    (pytorch issue 190489)."""
    if launched():
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
