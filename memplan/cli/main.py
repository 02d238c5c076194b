"""The command line: `memplan MODEL` means `memplan plan MODEL`. Every error is one message and an exit
code.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from memplan.cli.stopping import interrupts_are_heard
from memplan.planner import __version__
from memplan.planner.tables.errors import MemplanError, tidy

COMMANDS: dict[str, str] = {
    "plan": "memplan.cli.plan:command",
    "list": "memplan.cli.list:command",
    "claims": "memplan.cli.claims:command",
    "validate": "memplan.cli.validate:command",
    "ask": "memplan.cli.ask:command",
    "check": "memplan.cli.check:command",
    "compare": "memplan.cli.compare:command",
    "diff": "memplan.cli.diff:command",
    "fit": "memplan.cli.fit:command",
    "oom": "memplan.cli.oom:command",
    "report": "memplan.cli.report:command",
    "ui": "memplan.cli.ui:command",
    "profile": "memplan.cli.profile:command",
    "campaign": "memplan.cli.campaign:command",
    "dry-run": "memplan.cli.dry_run:command",
}
"""Every command -> module:attribute. A module is imported when its command runs, so that none pays for
another's imports.
"""

BUG, INTERRUPTED, BROKEN_PIPE = 70, 130, 141
"""Exit codes outside the contract's 0 to 4: a defect of memplan, Ctrl-C, and a reader that went away (as
shells count signals).
"""


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EBADF)
"""What writing to standard output fails with: a full disk or quota, a broken or a closed one."""

LAUNCH_LINE = "launch-line"
HIDDEN = {LAUNCH_LINE: "memplan.cli.launch:command"}


class Commands(click.Group):
    """The group that inserts `plan` when the first word is no command, so that options may stand before
    MODEL.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default command: `plan` before a model, the launch line before a leading `--`."""
        if "--" in args and (
            args[0] == "--" or args[0].startswith("-")
        ):  # memplan [OPTIONS] -- accelerate launch ...
            args = [LAUNCH_LINE, *args]
        elif args and args[0] not in COMMANDS and args[0] not in ("--help", "-h", "--version"):
            args = ["plan", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Commands and, since `plan` may be left out, models."""
        from memplan.cli.completion import completes

        return [*super().shell_complete(ctx, incomplete), *completes("model")(ctx, None, incomplete)]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None where there is none."""
        home = COMMANDS.get(cmd_name) or HIDDEN.get(cmd_name)
        if home is None:
            return None
        module, _, attribute = home.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        gc.enable()  # `main` switched it off: what imports make is no garbage
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="memplan", message="%(prog)s %(version)s")
def group() -> None:
    """How much GPU memory a fine-tuning run needs, and where every byte goes.

    \b
    memplan MODEL [OPTIONS]   is short for   memplan plan MODEL [OPTIONS]
    memplan llama-7b --method qlora --gpu rtx-4090
    memplan -- accelerate launch train.py --config train.yaml

    MODEL is a name from `memplan list models`, a Hugging Face id, a folder, a config.json or a training
    configuration file.

    \b
    Exit codes: 0 ok or fits, 1 does not fit, 2 usage, 3 network,
    4 outside tolerance.
    """


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code; messages go to standard error, never a traceback for a
    user's mistake.
    """
    try:
        with group.make_context(
            "memplan", list(args)
        ) as context:  # click's own main() would turn a broken pipe into exit 1
            result = group.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    except MemplanError as error:
        return _complain(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:  # `memplan` alone: the help itself, where messages go
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.UsageError as error:
        name = error.ctx.command_path if error.ctx else "memplan"
        return _complain(f"{' '.join(error.format_message().split())} (see '{name} --help')", 2)
    except click.ClickException as error:
        return _complain(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            return _defect()
        _drop_output()
        return _complain(f"cannot write the answer: {error.strerror}", 2)
    except Exception:
        return _defect()
    return result if isinstance(result, int) else 0


def _defect() -> int:
    import traceback

    traceback.print_exc()
    return _complain("this is a bug in memplan, not in your input: please report the lines above", BUG)


def _drop_output() -> None:
    """Standard output that cannot be written goes nowhere, so that the interpreter's own flush at exit finds
    a reader.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str, code: int) -> int:
    print(f"memplan: {tidy(message)}", file=sys.stderr)
    return code


def main(argv: Any = None) -> None:
    """The console script."""
    gc.set_threshold(300_000)  # an answer allocates much and frees nothing: fewer collections, the same bound
    gc.disable()  # until the command is imported
    atexit.register(gc.freeze)  # the process ends: the interpreter need not look for garbage once more
    if sys.stderr is None:  # closed: nobody hears a message, and none goes to standard output instead
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.exit(_complain("cannot write the answer: standard output is closed", 2))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an ASCII-only pipe gets '?', not a traceback
    if "_MEMPLAN_COMPLETE" in os.environ:  # shell completion, click's own
        group.main(prog_name="memplan")
    with interrupts_are_heard():
        code = run(sys.argv[1:] if argv is None else argv)
    sys.exit(code)
