"""docs/cli.md: every command with its arguments, options and help, from the click commands themselves.

Write it again with `python -m memplan.render.cli_docs > docs/cli.md`; a test fails when it is stale.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from memplan.cli.main import COMMANDS, group

INTRO = r"""# Command reference

Generated from the commands' help. `memplan MODEL [OPTIONS]` is short for `memplan plan MODEL [OPTIONS]`; options can come before or after
MODEL. Messages go to stderr. In sizes that you type, GB means 10^9 bytes and GiB means 2^30; printed sizes are in GiB, MiB or KiB.

| exit code | meaning |
|---|---|
| 0 | success; it fits (also a tight fit, with a warning); also a refuted claim, and an answer of no from `ask` |
| 1 | does not fit the GPU given (`compare` and `fit`: nothing considered fits; `report` still writes its page) |
| 2 | usage error or unreadable input |
| 3 | network error, gated model, or offline |
| 4 | outside tolerance |
| 70 | a bug in memplan |
| 130 | Ctrl-C |

## Completion in a shell

TAB completes commands, models, GPUs, methods, recipes and optimizers after one line in the shell's own file:

| shell | file | line |
|---|---|---|
| bash 4.4 or later | `~/.bashrc` | `eval "$(_MEMPLAN_COMPLETE=bash_source memplan)"` |
| zsh | `~/.zshrc` | `eval "$(_MEMPLAN_COMPLETE=zsh_source memplan)"` |
| fish | `~/.config/fish/completions/memplan.fish` | `_MEMPLAN_COMPLETE=fish_source memplan \| source` |
"""


def page() -> str:
    """The whole of docs/cli.md as Markdown."""
    context = click.Context(group, info_name="memplan", **group.context_settings)
    parts = [INTRO]
    for name in COMMANDS:
        command = group.get_command(context, name)
        if command is not None and not command.hidden:
            parts.append("\n".join(_section(command, context, name)))
    return "\n".join(parts) + "\n"


def _section(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    yield f"## memplan {name}\n"
    yield f"    memplan {name} {' '.join(command.collect_usage_pieces(context))}\n"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "").replace("\f", "")
    yield ""
    found = (
        parameter.get_help_record(context)
        for parameter in command.get_params(context)
        if parameter.name != "help"
    )
    records = [record for record in found if record and record[1]]
    if records:
        yield "| option | |\n|---|---|"
        yield from (f"| `{_cell(option)}` | {_cell(text)} |" for option, text in records)
        yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
