"""memplan ask "65B QLoRA 48GB?": a claim or a question in a sentence, Chinese or English."""

from __future__ import annotations

import click


@click.command("ask", short_help="A question in a sentence (zh, en): verdict, boundary, derivation.")
@click.argument("sentence", nargs=-1, required=True)
@click.option(
    "--lang", type=click.Choice(("en", "zh")), help="Language of the answer. Default: the question's."
)
@click.option("--json", "as_json", is_flag=True, help="The JSON document on standard output.")
def command(sentence: tuple[str, ...], lang: str | None, as_json: bool) -> None:
    """Answer SENTENCE, such as "65B QLoRA 48GB?" or "7B 全参数微调 80GB 够吗": what was assumed, whether it fits,
    where that flips, and the derivation by hand. An answer of no is exit 0.
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

    show(*screen(found))
