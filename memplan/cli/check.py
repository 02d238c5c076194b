"""memplan check FILE: a text's sentences about training memory, each with a computed verdict."""

from __future__ import annotations

from pathlib import Path

import click

from memplan.cli.options import HELP
from memplan.cli.progress import Progress


@click.command(
    "check", context_settings=HELP, short_help="Check every sentence of a text about training memory."
)
@click.argument("file", type=click.Path())
@click.option(
    "--lang", type=click.Choice(("en", "zh")), help="Language of the output. Default: that of the text."
)
@click.option(
    "--html",
    "html_out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the annotated text as a page.",
)
@click.option(
    "--emit",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what was read as a claims file, to correct by hand.",
)
@click.option(
    "--measurements",
    type=click.Path(),
    metavar="DIR",
    help="Recorded runs, for claims about time. Default: ./measurements.",
)
@click.option(
    "--explain", is_flag=True, help="List every sentence that was not read, also those without a number."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def command(
    file: str,
    lang: str | None,
    html_out: Path | None,
    emit: Path | None,
    measurements: str | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Check FILE (Markdown, text or HTML; English or Chinese) sentence by sentence: supported, refuted,
    depends, not checkable or not understood, with one sentence why, the condition, and what would be right.
    Sentences that were not read are listed. The exit code is 0 even if a sentence is refuted.
    """
    from memplan.validate.collect import recorded
    from memplan.validate.evaluation_context import EvaluationContext
    from memplan.validate.kept import open_kept
    from memplan.validate.texts.check import check_text, read_document, to_document
    from memplan.validate.texts.emit import claims_toml
    from memplan.validate.texts.templates import files

    text = read_document(Path(file))
    models = {name: config for one in files() for name, config in one.models.items()}
    context = EvaluationContext(models=models, records=recorded(Path(measurements) if measurements else None))
    kept = open_kept(context, models)
    with Progress("check", as_json):
        checked = check_text(text, context, kept)
        kept.write()
    name = Path(file).name
    language = lang or ("zh" if sum("\u4e00" <= c <= "\u9fff" for c in text) * 10 > len(text) else "en")
    if html_out:
        from memplan.cli.output import write_file
        from memplan.render.check_page import page

        write_file(html_out, page(name, text, checked, language))
    if emit:
        from memplan.cli.output import write_file

        write_file(emit, claims_toml(checked))
    if as_json:
        from memplan.render.json import write

        write(to_document(name, checked))
        return
    from memplan.render.check import screen
    from memplan.render.console import show

    show(*screen(checked, language, explain))
