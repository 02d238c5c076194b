"""The answer of `memplan fit` on the terminal: methods, frontier, changes, waterfall, decision, GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memplan.planner.answers.fit.changes import Effect
from memplan.planner.answers.fit.command import command_line
from memplan.planner.answers.fit.frontier import BATCHES
from memplan.planner.answers.fit.gpus import CardChoice, JobsAnswer, Shared
from memplan.planner.answers.search import Fit
from memplan.planner.answers.verdict import MARGIN, uncounted
from memplan.planner.prediction import Prediction
from memplan.planner.tables.units import gib
from memplan.render.text import count, number

MOST_CHANGES = 8


def fit_screen(
    fit: Fit,
    shared: Shared | None,
    alike: Sequence[Shared],
    largest: tuple[str, int] | None,
    confirmed: Sequence[tuple[str, Prediction]],
    warnings: Sequence[str] = (),
) -> list[RenderableType]:
    """Everything, top to bottom."""
    setup = fit.setup
    title = Text(f"{fit.model} on {fit.gpu.name}", style="bold")
    title.append(
        f": {gib(fit.gpu.usable_bytes)} usable; micro-batch {setup.micro_batch:,} x "
        f"{setup.sequence_length:,} tokens, "
        f"recipe {setup.recipe}",
        style="not bold",
    )
    parts: list[RenderableType] = [
        largest_line(fit),
        title,
        Text(),
        methods_table(fit),
        Text(),
        frontier_table(fit),
    ]
    if fit.changes:
        parts += [Text(), changes_table(f"single changes to {setup.method}", fit.changes[:MOST_CHANGES])]
    if fit.waterfall:
        heading = (
            "changes applied in order, until it fits"
            if fit.waterfall[-1].fits
            else "changes applied in order: still not enough"
        )
        parts += [
            Text(),
            changes_table(heading, fit.waterfall),
            Text("savings do not add up, because the peak is a maximum", style="dim"),
        ]
    parts += [Text(), *decision_lines(fit), *card_lines(fit, shared, alike, largest)]
    for what, prediction in confirmed:
        parts.append(confirmed_line(what, prediction))
    return [*parts, *(Text(f"warning: {line}", style="yellow") for line in warnings)]


def largest_line(fit: Fit) -> Text:
    """The first line: the largest micro-batch as asked, or with what the choice needs."""
    at, asked = f"at {fit.setup.sequence_length:,} tokens", fit.asked
    if asked.largest_batch is not None:
        text = f"largest micro-batch {at}: {asked.largest_batch:,} with {asked.method} as asked"
        return Text(text, style="bold green")
    chosen = fit.chosen
    if chosen is None or chosen.largest_batch is None:
        return Text(f"no micro-batch fits {at}", style="bold red")
    changes = [
        f"{name}={'+'.join(v) if isinstance(v, tuple) else v}" for name, v in fit.decision.fields.items()
    ]
    with_ = ", ".join([chosen.method, *changes])
    return Text(f"largest micro-batch {at}: {chosen.largest_batch:,} with {with_}", style="bold yellow")


def methods_table(fit: Fit) -> Table:
    """One row per method: what it needs, whether it fits, and its limits."""
    title = "batch, sequence: the largest that fits with the other as requested"
    table = Table(
        box=None, pad_edge=False, show_edge=False, caption=title, caption_justify="left", caption_style="dim"
    )
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
        word = {
            "fits": Text("yes", style="green"),
            "tight": Text("tight", style="yellow"),
            "no": Text("no", style="red"),
        }[entry.verdict]
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
        setup = fit.setup if fit.chosen is None or fit.chosen.setup is None else fit.chosen.setup
        command = command_line(fit.typed or fit.model, setup, fit.gpu.name)
        lines.append(Padding(Text(f"next: {command} (--emit writes a training file)"), (0, 0, 0, 2)))
    return lines


def card_lines(
    fit: Fit, shared: Shared | None, alike: Sequence[Shared], largest: tuple[str, int] | None
) -> list[Text]:
    """The smallest GPU, the smallest number of GPUs, and how much room the limits leave."""
    lines = [Text(_smallest(f"{fit.setup.method} as requested", fit.cards))]
    if fit.chosen_cards is not None:
        lines.append(Text(_smallest("the recommended setup", fit.chosen_cards)))
    if shared is not None and (shared.count or 0) > 1:
        how = " and ".join([shared.parallel, *(f"{name}={value}" for name, value in shared.needs.items())])
        needed = f"{shared.count} x {fit.gpu.name} with {how}, {gib(shared.device_bytes)} each"
        lines.append(Text(f"minimum: {needed}"))
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
    elif shared is None and not fit.asked.fits:
        lines.append(
            Text(
                f"minimum number of {fit.gpu.name}: unknown, the formula has no rule for this setup",
                style="dim",
            )
        )
    if largest is not None:
        lines.append(
            Text(
                f"largest model in the catalog for {fit.setup.method} on {fit.gpu.name}: {largest[0]} "
                f"({count(largest[1])} parameters)"
            )
        )
    if fit.error:
        lines.append(
            Text(f"limits leave room for the formula's worst recorded error, {fit.error:.1%}", style="dim")
        )
    elif fit.setup.parallel == "none":
        text = (
            "limits leave what the allocator needs beside the tensors, and "
            f"{MARGIN['formula']:.1%} for the replay's own error"
        )
        lines.append(Text(text, style="dim"))
    elif share := uncounted(fit.setup):
        text = f"boundaries leave no room for fragmentation, {share:.0%} or less in 19 of 20 traced setups"
        lines.append(Text(text, style="dim"))
    return lines


def _smallest(what: str, cards: CardChoice) -> str:
    if cards.smallest is None or cards.smallest_bytes is None:
        return f"no single common GPU holds {what}"
    return f"smallest common GPU for {what}: {cards.smallest} ({gib(cards.smallest_bytes)} needed)"


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


def jobs_screen(answer: JobsAnswer) -> list[RenderableType]:
    """One row per job, then the one GPU that is cheapest for all of them."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name, justify in (
        ("job", "left"),
        ("needs", "right"),
        ("smallest GPU", "left"),
        ("cheapest GPU", "left"),
        ("price", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, size, smallest, cheapest in answer.jobs:
        price = answer.prices.get(cheapest) if cheapest else None
        table.add_row(
            name, gib(size), smallest or "none", cheapest or "-", "-" if price is None else f"{price:g}"
        )
    one = answer.one_for_all or "no single GPU"
    return [table, Text(), Text(f"one GPU for every job: {one}")]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
