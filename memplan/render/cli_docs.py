"""docs/cli.md: every command with its arguments, options and help, from the click commands themselves.

Write it again with `python -m memplan.render.cli_docs > docs/cli.md`; a test fails when it is stale.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from memplan.cli.main import COMMANDS, group

INTRO = """# Command reference

Generated from the commands' own help. `memplan MODEL [OPTIONS]` is short for `memplan plan MODEL [OPTIONS]`; options may stand before or
after MODEL. Exit codes: 0 ok or fits, 1 does not fit the GPU named (`compare` and `fit`: nothing that they considered does; `report` writes
its page all the same), 2 usage or unreadable input, 3 network, 4 outside tolerance; 70 is a defect of memplan, 130 Ctrl-C. A tight fit is 0
with a warning, a refuted claim and an answer of no to `ask` are 0. Messages go to standard error. In sizes that a person types, GB is
10^9 and GiB 2^30; printed sizes are GiB, MiB or KiB.
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
