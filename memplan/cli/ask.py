"""memplan ask "65B QLoRA 48GB?": a claim or a question in a sentence, Chinese or English."""

from __future__ import annotations

import click


@click.command("ask", short_help="Answer a question in English or Chinese.")
@click.argument("sentence", nargs=-1, required=True)
@click.option(
    "--lang", type=click.Choice(("en", "zh")), help="Language of the answer. Default: that of the question."
)
@click.option("--explain", is_flag=True, help="Show every default and the sum worked out by hand.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def command(sentence: tuple[str, ...], lang: str | None, explain: bool, as_json: bool) -> None:
    """Answer SENTENCE, such as "65B QLoRA 48GB?" or "7B 全参数微调 80GB 够吗": the verdict, the
    assumptions, the limits and the other methods; with --explain the sum worked out by hand. The exit code
    is 0 even if the answer is no.
    """
    from memplan.validate.answer import answer
    from memplan.validate.ask import read

    found = answer(read(" ".join(sentence), lang))
    if as_json:
        from memplan.render.json import write

        write(found.to_document())
        return
    from memplan.render.ask import screen
    from memplan.render.console import show

    show(*screen(found, explain))
