"""Methods side by side, and two setups against each other, on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from memplan.planner.answers.compare import Column, Difference, components_of, kept
from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import gib
from memplan.render.lengths import batches
from memplan.render.text import count, label, number


def compare_screen(
    model: str,
    setup: Setup,
    found: Sequence[Column],
    tasks: int,
    gpu: Gpu | None,
    width: int = 80,
    explain: bool = False,
) -> list[RenderableType]:
    """One column a method, one row a fact; more methods than `width` columns hold go into tables one under
    another. With `explain` precision, computation and merging as well.
    """
    where = f" on {gpu.name}" if gpu else ""
    title = Text(f"{model}{where}", style="bold").append(
        f": micro-batch {setup.micro_batch:,} x {setup.sequence_length:,} tokens, recipe {setup.recipe}",
        style="not bold",
    )
    able = [column for column in found if column.prediction is not None]
    merging = _merging(able).items() if explain else ()
    notes = [Text(f"{', '.join(methods)}: {text}") for text, methods in merging]
    notes += [Text(f"lengths {text}") for text in _lengths(able)]
    notes += [Text(line) for line in _uneven(able)]
    notes += [Text(f"{c.method}: {c.error}", style="red") for c in found if c.error]
    closing = Text(
        "forgetting: full fine-tuning changes every weight, adapters leave the base frozen "
        "(general experience, not computed)"
        if explain
        else f"--explain precision, computation, merging{'' if gpu else ' · --gpu NAME'} · --methods A,B,...",
        style="dim",
    )
    return [
        title,
        *(part for table in tables(able, tasks, gpu, width, explain) for part in (Text(), table)),
        Text(),
        *notes,
        closing,
    ]


def _lengths(able: Sequence[Column]) -> list[str]:
    """What --lengths say of the batches, which are the same for every method."""
    found = [c.prediction.extra["lengths"] for c in able if c.prediction and "lengths" in c.prediction.extra]
    alike = [{name: value for name, value in each.items() if name != "fits_up_to"} for each in found]
    return [batches(each) for each in alike[:1]]


def tables(
    able: Sequence[Column], tasks: int, gpu: Gpu | None, width: int, explain: bool = False
) -> list[Table]:
    """As few tables as `width` allows, each with as many methods as it holds."""
    console = Console(width=1000)
    found: list[Table] = []
    rest = list(able)
    while rest:
        sizes = range(len(rest), 0, -1)
        made = {n: _table(rest[:n], able[0], tasks, gpu, explain) for n in sizes}
        size = next((n for n in sizes if console.measure(made[n]).maximum <= width), 1)
        found.append(made[size])
        rest = rest[size:]
    return found


Cell = Callable[[Column], str | Text]


def _facts(first: Column, tasks: int, explain: bool) -> Iterator[tuple[str, Cell]]:
    """The rows of the table: what each is called, and its cell for one method."""
    base = first.cost.total if first.cost else 1
    yield "needs (device)", lambda c: number(_of(c).peak.device_bytes)
    for name in COMPONENTS:
        yield f"  {label(name)}", lambda c, name=name: number(components_of(_of(c))[name])  # type: ignore[misc]
    yield "  context, rounding", lambda c: number(_of(c).peak.device_bytes - _of(c).peak.allocated_bytes)
    yield "peak moment", lambda c: label(_of(c).peak.moment).replace("optimizer ", "")
    yield "trained", _where_trained(lambda c: count(_of(c).trainable_parameters))
    yield "saved per task", _where_trained(lambda c: gib(_of(c).checkpoint_bytes))
    if tasks > 1 or explain:
        yield f"saved, {tasks} tasks" if tasks > 1 else "saved, with base", lambda c: gib(kept(_of(c), tasks))
    if not explain:
        return
    yield "trained share", _where_trained(lambda c: f"{c.trainable_share:.3%}")
    for what in ("base", "adapter", "computation"):
        yield f"{what} precision", lambda c, what=what: _short(c.precision()[what])  # type: ignore[misc]
    yield f"FLOPs, {first.method} = 1", lambda c: f"{c.cost.total / base:.2f}" if c.cost else "-"
    yield "dequantized per step", _dequantized
    yield "merging needs", _merge_needs


def _where_trained(cell: Cell) -> Cell:
    return lambda column: cell(column) if _of(column).trainable_parameters > 0 else "-"


def _dequantized(column: Column) -> str:
    return count(column.cost.dequantized) if column.cost and column.cost.dequantized else "-"


def _merge_needs(column: Column) -> str:
    if column.merge_bytes is None:
        return "-"
    return gib(column.merge_bytes) if column.merge_bytes else "nothing"


def _largest(column: Column) -> str:
    return column.largest[0] if column.largest else "-"


def _table(
    able: Sequence[Column], first: Column, tasks: int, gpu: Gpu | None, explain: bool = False
) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("GiB", style="dim", no_wrap=True)
    for column in able:
        table.add_column(column.method, justify="right", no_wrap=True)
    facts = list(_facts(first, tasks, explain))
    if gpu is not None:
        facts.insert(0, ("fits", lambda c: _verdict(_of(c))))
        if any(column.largest for column in able):
            facts.append(("largest model", _largest))
    for name, cell in facts:
        table.add_row(name, *(cell(column) for column in able))
    return table


def _merging(able: Sequence[Column]) -> dict[str, list[str]]:
    """What merging means, in words, with the methods of which it is true."""
    found: dict[str, list[str]] = {}
    for column in able:
        if column.merge_bytes is not None:
            found.setdefault(column.merge, []).append(column.method)
    return found


def _uneven(able: Sequence[Column]) -> list[str]:
    """Where recipe and method decide differently about checkpointing, the columns differ by more than the
    method: said, with a remedy.
    """
    with_it = [c.method for c in able if _of(c).setup.checkpointing != "none"]
    without = [c.method for c in able if _of(c).setup.checkpointing == "none"]
    if not with_it or not without:
        return []
    verb = "uses" if len(with_it) == 1 else "use"
    return [
        f"{' and '.join(with_it)} {verb} gradient checkpointing by default in this recipe, the "
        "others do not: pass --checkpointing or --no-checkpointing to compare like with like"
    ]


def _of(column: Column) -> Prediction:
    assert column.prediction is not None
    return column.prediction


def _short(text: str) -> str:
    return text.replace(" + double quantization", " dq")


def _verdict(prediction: Prediction) -> Text:
    words = {"fits": ("yes", "green"), "tight": ("tight", "yellow"), "no": ("no", "red")}
    text, style = words.get(str(prediction.gpus[0].verdict), ("at least", "yellow"))
    return Text(text, style=style)


def pair_screen(
    one: Prediction,
    two: Prediction,
    found: Sequence[Difference],
    model_bytes: int,
    files: tuple[str, str] = ("", ""),
) -> list[RenderableType]:
    """Two predictions, their components, and what each difference moves; `files`: the training files that
    said so, empty without.
    """
    sizes = Table(box=None, pad_edge=False, show_edge=False)
    sizes.add_column("GiB", style="dim")
    for name in ("first", "second", "difference"):
        sizes.add_column(name, justify="right")
    first, second = one.peak.device_bytes, two.peak.device_bytes
    sizes.add_row("device peak", number(first), number(second), _signed(second - first))
    left, right = components_of(one), components_of(two)
    for name in COMPONENTS:
        sizes.add_row(
            f"  {label(name)}", number(left[name]), number(right[name]), _signed(right[name] - left[name])
        )
    sizes.add_row("peak moment", label(one.peak.moment), label(two.peak.moment), "")
    sides = [
        f"{file or prediction.model.name} ({prediction.setup.method}, recipe {prediction.setup.recipe})"
        for file, prediction in zip(files, (one, two), strict=True)
    ]
    title = Text(" against ".join(sides), style="bold")
    moving = [difference for difference in found if difference.then or difference.alone]
    if not moving and not model_bytes:
        return [title, Text(), sizes, Text(), Text("no difference affects memory"), *_still(found)]
    closing = Text(
        "alone: this setting changed in the first setup; in order: changes applied one after "
        "another, which add up to the total",
        style="dim",
    )
    return [
        title,
        Text(),
        sizes,
        Text(),
        _differences(one, two, moving, model_bytes),
        Text(),
        *_still(found),
        closing,
    ]


def _differences(one: Prediction, two: Prediction, moving: Sequence[Difference], model_bytes: int) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("setting", overflow="fold", min_width=18)
    for name in ("first", "second"):
        table.add_column(name, overflow="fold")
    table.add_column("alone", justify="right", no_wrap=True)
    table.add_column("in order", justify="right", no_wrap=True)
    if model_bytes or one.model.name != two.model.name:
        table.add_row("model", one.model.name, two.model.name, "", _signed(model_bytes))
    for difference in sorted(moving, key=lambda entry: -abs(entry.then)):
        alone = "-" if difference.alone is None else _signed(difference.alone)
        table.add_row(
            ", ".join(difference.fields),
            _values(difference.first),
            _values(difference.second),
            alone,
            _signed(difference.then),
        )
    return table


def _still(found: Sequence[Difference]) -> list[Text]:
    """The settings that differ and move nothing here, in one line."""
    names = [
        name
        for difference in found
        if not difference.then and not difference.alone
        for name in difference.fields
    ]
    return [Text(f"differ without effect here: {', '.join(names)}", style="dim")] if names else []


def _values(values: tuple[object, ...]) -> str:
    return (
        ", ".join(",".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)
        or "-"
    )


def _signed(nbytes: int) -> str:
    return "-" if nbytes == 0 else f"{'+' if nbytes > 0 else '-'}{number(abs(nbytes))}"
