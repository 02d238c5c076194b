"""memplan ask "65B QLoRA 48GB?": a claim or a question in a sentence, Chinese or English."""

from __future__ import annotations

import click

from memplan.cli.options import HELP, lengths_option
from memplan.cli.progress import Progress

MOST_READ = 4096
"""Characters read from standard input: more than a sentence may have, so that a longer one is refused."""


@click.command("ask", context_settings=HELP, short_help="Answer a question in English or Chinese.")
@click.argument("sentence", nargs=-1, required=True)
@click.option(
    "--lang", type=click.Choice(("en", "zh")), help="Language of the answer. Default: that of the question."
)
@click.option("--explain", is_flag=True, help="Show every default and the sum worked out by hand.")
@lengths_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def command(
    sentence: tuple[str, ...], lang: str | None, explain: bool, lengths: str | None, as_json: bool
) -> None:
    """Answer SENTENCE, such as "65B QLoRA 48GB?" or "7B 全参数微调 80GB 够吗": the verdict, the
    assumptions, the limits and the other methods; with --explain the sum worked out by hand. SENTENCE `-`
    reads standard input. Words that are not used are listed. The exit code is 0 even if the answer is no.
    """
    import sys

    from memplan.planner.inputs.lengths import read_lengths
    from memplan.planner.tables.errors import UsageError
    from memplan.validate.questions.replies import ask, to_document

    text = " ".join(sentence)
    if text.strip() == "-":
        try:
            text = sys.stdin.read(MOST_READ).strip()
        except UnicodeDecodeError:
            raise UsageError("ask: standard input is not text in UTF-8") from None
    with Progress("ask", as_json):
        replies = ask(text, lang, lengths=None if lengths is None else read_lengths(lengths))
    if as_json:
        from memplan.render.json import write

        write(to_document(replies))
        return
    from memplan.render.console import show
    from memplan.render.reply import reply_screen

    for number, reply in enumerate(replies):
        if number:
            show("")
        show(*reply_screen(reply, explain))
