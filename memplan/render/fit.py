"""The answer of `memplan fit` on the terminal: methods, frontier, changes, waterfall, decision, GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memplan.planner.answers.fit.changes import Effect
from memplan.planner.answers.fit.command import command_line, options
from memplan.planner.answers.fit.frontier import BATCHES
from memplan.planner.answers.fit.gpus import CardChoice, Shared
from memplan.planner.answers.parts import deciding
from memplan.planner.answers.search import Fit
from memplan.planner.answers.verdict import margin_of, not_counted, uncounted
from memplan.planner.prediction import Prediction
from memplan.planner.tables.units import gib
from memplan.render.lengths import lengths_lines
from memplan.render.sentences import paragraph
from memplan.render.terminal import SHOWN_WARNINGS
from memplan.render.text import count, number, short_gib

MOST_CHANGES = 8
VERDICTS = {
    "fits": Text("yes", style="green"),
    "tight": Text("tight", style="yellow"),
    "no": Text("no", style="red"),
    None: Text("at least", style="yellow"),
}


def fit_screen(
    fit: Fit,
    shared: Shared | None,
    alike: Sequence[Shared],
    largest: tuple[str, int] | None,
    confirmed: Sequence[tuple[str, Prediction]],
    warnings: Sequence[str] = (),
    explain: bool = False,
    width: int = 80,
) -> list[RenderableType]:
    """What fits, what to choose, what to type next; with `explain` every boundary and change as well."""
    setup = fit.setup
    title = Text(fit.model, style="bold").append(
        f" on {fit.gpu.name}, {short_gib(fit.gpu.usable_bytes)} usable · batch {setup.micro_batch:,} × "
        f"{setup.sequence_length:,} tokens · recipe {setup.recipe}",
        style="not bold",
    )
    bound = "at most" if fit.not_modelled else "the largest that fits"
    note = Text(f"batch, sequence: {bound}, with the other as requested", style="dim")
    parts: list[RenderableType] = [largest_line(fit), title, Text(), methods_table(fit), note, Text()]
    parts += [paragraph(head, text) for head, text in advice_lines(fit, shared, width - 10)]
    if largest is not None:
        parts.append(largest_model_line(fit, largest))
    parts += [confirmed_line(what, prediction) for what, prediction in confirmed]
    if explain:
        parts += [Text(), *_explained(fit, shared, alike)]
    parts += [paragraph("Warning", line) for line in (warnings if explain else warnings[:SHOWN_WARNINGS])]
    if not explain:
        more = len(warnings) - SHOWN_WARNINGS
        said = f" · {more} more warnings" if more > 0 else ""
        hint = f"--explain every limit and change{said} · --emit axolotl|trl|llamafactory|peft"
        parts += [Text(), Text(hint, style="dim")]
    return parts


def advice_lines(fit: Fit, shared: Shared | None, room: int) -> Iterator[tuple[str, str]]:
    """What to choose and why, what saves most, which GPU is enough, and what to type."""
    method = fit.decision.method
    if fit.not_modelled:
        yield "No word", not_counted(fit.not_modelled)
    yield "Choose", f"{method}: {_because(fit)}" if method else _nothing(fit)
    if not fit.asked.holds and (which := deciding(fit.parts)):
        yield "Decides", f"for {fit.setup.method} as asked: {which}"
    if saves := _saves(fit, room):
        yield "Save", saves
    yield "GPU", "; ".join(_gpus(fit, shared))
    yield from lengths_lines(fit.lengths, fit.setup.allocator, fit.asked.verdict)
    if method:
        yield "Next", _next(fit)


def _nothing(fit: Fit) -> str:
    """What to do where no method fits as asked, mild changes included: less of it, or another GPU."""
    if not fit.waterfall or not fit.waterfall[-1].fits or fit.not_modelled:
        return f"nothing fits: {fit.decision.reasons[-1]}"
    last = fit.waterfall[-1]
    fields = {key: value for step in fit.waterfall for key, value in step.fields.items()}
    return (
        f"nothing fits at these sizes; {fit.setup.method} does with {options(fields)}: it needs "
        f"{gib(last.after)}"
    )


def _because(fit: Fit) -> str:
    """The reason that says what the chosen method needs, without its name."""
    named = f"{fit.decision.method} "
    reason = next((r for r in fit.decision.reasons if r.startswith(named + "fits")), fit.decision.reasons[0])
    return reason.removeprefix(named).removeprefix("fits: ")


def _saves(fit: Fit, room: int) -> str:
    """What single changes to the setup as asked save, as many as a line holds; of several values for a field
    the best.
    """
    found: list[str] = []
    fields: set[str] = set()
    for effect in fit.changes:
        if fields & effect.fields.keys():
            continue
        fields |= effect.fields.keys()
        makes = effect.fits and not fit.asked.holds and not fit.not_modelled
        option = effect.text.partition(": ")[2] or effect.text
        text = f"{short_gib(effect.saved)} {option}{' (fits)' if makes else ''}"
        if found and len("    ".join([*found, text])) > room:
            break
        found.append(text)
    return "    ".join(found)


def _gpus(fit: Fit, shared: Shared | None) -> Iterator[str]:
    """The smallest GPU, alone or shared, for what was asked and for what is recommended."""
    if fit.chosen_cards is not None and (name := _card(fit.chosen_cards)):
        yield f"smallest for this choice: {name}"
    name = _card(fit.cards)
    yield (
        f"for {fit.setup.method} as asked: {name}"
        if name
        else f"no single common GPU holds {fit.setup.method} as asked"
    )
    if shared is not None and (shared.count or 0) > 1:
        bound = "at least " if fit.not_modelled else ""
        yield f"or {bound}{shared.count} × {fit.gpu.name} ({shared.parallel})"


def _card(cards: CardChoice) -> str | None:
    """The smallest GPU in words; None where no single common GPU holds the setup."""
    return cards.smallest or (f"at least {cards.at_least}" if cards.at_least else None)


def _next(fit: Fit) -> str:
    setup = fit.setup if fit.chosen is None or fit.chosen.setup is None else fit.chosen.setup
    return command_line(fit.typed or fit.model, setup, fit.gpu.name)


def _explained(fit: Fit, shared: Shared | None, alike: Sequence[Shared]) -> Iterator[RenderableType]:
    """Every boundary, every single change, the changes in order, the decision's reasons, the GPUs."""
    if fit.engine == "formula":  # a trace has no grid
        yield from (frontier_table(fit), Text())
    if fit.changes:
        yield changes_table(f"single changes to {fit.setup.method}", fit.changes[:MOST_CHANGES])
    if fit.waterfall:
        yield Text()
        yield changes_table(
            "changes applied in order, until it fits"
            if fit.waterfall[-1].fits and not fit.not_modelled
            else "changes applied in order: still not enough"
            if not fit.waterfall[-1].fits
            else "changes applied in order",
            fit.waterfall,
        )
        yield Text("savings do not add up, because the peak is a maximum", style="dim")
    yield Text()
    yield from decision_lines(fit)
    yield from card_lines(fit, shared, alike)


def largest_line(fit: Fit) -> Text:
    """The first line: the largest micro-batch as asked, or with what the choice needs."""
    at, asked = f"at {fit.setup.sequence_length:,} tokens", fit.asked
    bound = "at most " if fit.not_modelled else ""
    if asked.largest_batch is not None:
        text = f"largest micro-batch {at}: {bound}{asked.largest_batch:,} with {asked.method} as asked"
        return Text(text, style="bold yellow" if bound else "bold green")
    chosen = fit.chosen
    if chosen is None or chosen.largest_batch is None:
        return Text(f"no micro-batch fits {at}", style="bold red")
    with_ = f"{chosen.method} {options(fit.decision.fields)}".rstrip()
    text = f"largest micro-batch {at}: {bound}{chosen.largest_batch:,} with {with_}"
    return Text(text, style="bold yellow")


def methods_table(fit: Fit) -> Table:
    """One row per method: what it needs, whether it fits, and its limits."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name, justify in (
        ("method", "left"),
        ("needs", "right"),
        ("fits", "left"),
        ("batch", "right"),
        ("sequence", "right"),
        ("trained", "right"),
        ("saved\nper task", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for entry in fit.methods:
        if entry.error is not None:
            table.add_row(entry.method, "-", Text(entry.error, style="dim"))
            continue
        word = VERDICTS[entry.verdict]
        table.add_row(
            entry.method,
            gib(entry.device_bytes),
            word,
            _number(entry.largest_batch),
            _number(entry.longest_sequence),
            count(entry.trainable_parameters),
            gib(entry.checkpoint_bytes),
        )
    return table


def frontier_table(fit: Fit) -> Table | Text:
    """The longest sequence that fits at each micro-batch, for the methods that fit at all."""
    able = [
        entry
        for entry in fit.methods
        if entry.error is None and any(longest for _, longest in entry.frontier)
    ]
    if not able:
        return Text("no method fits at any micro-batch or sequence length")
    table = Table(
        box=None,
        pad_edge=False,
        show_edge=False,
        title="longest sequence by micro-batch",
        title_justify="left",
        title_style="",
    )
    table.add_column("method")
    for batch in BATCHES:
        table.add_column(str(batch), justify="right")
    for entry in able:
        known = dict(entry.frontier)
        table.add_row(entry.method, *(_number(known.get(batch)) for batch in BATCHES))
    return table


def changes_table(title: str, effects: Sequence[Effect]) -> Table:
    """One row per change: what it saves, what is then needed, and what it costs."""
    table = Table(
        box=None, pad_edge=False, show_edge=False, title=title, title_justify="left", title_style=""
    )
    table.add_column("change", overflow="fold", ratio=3)
    table.add_column("saves\nGiB", justify="right", no_wrap=True)
    table.add_column("then\nneeds", justify="right", no_wrap=True)
    table.add_column("costs", overflow="fold", style="dim", ratio=2)
    for effect in effects:
        needs = Text(number(effect.after), style="green" if effect.fits else "red")
        table.add_row(effect.text, number(effect.saved), needs, effect.cost)
    return table


def decision_lines(fit: Fit) -> list[RenderableType]:
    """The method to choose, why, and what to type next."""
    method = fit.decision.method
    word, style = (method, "bold green") if method else ("nothing fits", "bold red")
    lines: list[RenderableType] = [Text("recommended: ", style="bold").append(word, style=style)]
    lines += [Padding(Text(reason), (0, 0, 0, 2)) for reason in fit.decision.reasons]
    if method:
        lines.append(Padding(Text(f"next: {_next(fit)} (--emit writes a training file)"), (0, 0, 0, 2)))
    return lines


def card_lines(fit: Fit, shared: Shared | None, alike: Sequence[Shared]) -> list[Text]:
    """The smallest GPU, the smallest number of GPUs, and how much room the limits leave."""
    lines = [Text(_smallest(f"{fit.setup.method} as requested", fit.cards))]
    if fit.chosen_cards is not None:
        lines.append(Text(_smallest("the recommended setup", fit.chosen_cards)))
    if shared is not None and (shared.count or 0) > 1:
        how = " and ".join([shared.parallel, *(f"{name}={value}" for name, value in shared.needs.items())])
        needed = f"{shared.count} x {fit.gpu.name} with {how}, {gib(shared.device_bytes)} each"
        lines.append(Text(f"minimum: {'at least ' if fit.not_modelled else ''}{needed}"))
        rest = [each for each in alike if each.parallel != shared.parallel]
        others = ", ".join(
            f"{each.parallel} {gib(each.device_bytes)}{'' if each.fits else ' (no)'}" for each in rest
        )
        lines.append(
            Text(f"  on the same number of GPUs: {others}; no multi-GPU run has been recorded", style="dim")
        )
    elif shared is not None and shared.count is None:
        each = f"{gib(shared.device_bytes)} each"
        lines.append(
            Text(
                f"even 1,024 x {fit.gpu.name} with {shared.parallel} do not hold it: {each}, most of it "
                "not sharded",
                style="dim",
            )
        )
    elif shared is None and not fit.asked.holds:
        lines.append(
            Text(
                f"minimum number of {fit.gpu.name}: unknown, the formula has no rule for this setup",
                style="dim",
            )
        )
    if fit.error:
        lines.append(
            Text(
                f"limits leave room for the {fit.engine}'s worst recorded error, {fit.error:.1%}", style="dim"
            )
        )
    elif fit.setup.parallel == "none":
        room = margin_of(fit.engine, fit.setup)
        own = f", and {room:.1%} for the replay's own error" if room else ""
        text = f"limits leave what the allocator needs beside the tensors{own}"
        lines.append(Text(text, style="dim"))
    elif share := uncounted(fit.setup):
        text = f"boundaries leave no room for fragmentation, {share:.0%} or less in 19 of 20 traced setups"
        lines.append(Text(text, style="dim"))
    return lines


def largest_model_line(fit: Fit, largest: tuple[str, int]) -> Text:
    """The largest model that the method as asked holds on the GPU."""
    bound = "at most " if fit.not_modelled else ""
    return Text(
        f"largest model in the catalog for {fit.setup.method} on {fit.gpu.name}: {bound}{largest[0]} "
        f"({count(largest[1])} parameters)"
    )


def _smallest(what: str, cards: CardChoice) -> str:
    name = _card(cards)
    if name is None or cards.smallest_bytes is None:
        return f"no single common GPU holds {what}"
    return f"smallest common GPU for {what}: {name} ({gib(cards.smallest_bytes)} needed)"


def confirmed_line(what: str, prediction: Prediction) -> Text:
    """One cell of the frontier, asked of the trace."""
    verdict = prediction.gpus[0]
    words = {
        "fits": "fits",
        "tight": "fits only if the allocator releases its cache, or with expandable segments",
        "no": "does not fit",
        "None": f"at least; {verdict.why}",
    }
    text = f"trace, {what}: {gib(prediction.peak.device_bytes)}, {words[str(verdict.verdict)]}"
    if prediction.smallest_capacity_bytes is not None:
        text += f"; smallest sufficient capacity: {gib(prediction.smallest_capacity_bytes)}"
    return Text(text)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
