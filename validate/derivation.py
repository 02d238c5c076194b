"""The derivation by hand: what an interview answer would write on a board, at the moment of the peak. Each
line is arithmetic to redo.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import Mlp, ModelSpec
from memplan.planner.inputs.tasks import headed
from memplan.planner.prediction import Breakdown, Prediction, Row
from memplan.planner.tables.methods import METHODS
from memplan.profiler.localized_message import LocalizedMessage, said

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
SHOWN = 5  # the largest tensors of a component that are written out


@dataclass(frozen=True)
class Line:
    """One step: what, the arithmetic, and its bytes. `of_which` marks what the line before already holds."""

    what: str  # English, and the key of its Chinese
    arithmetic: LocalizedMessage
    bytes: int
    of_which: bool = False


def by_hand(spec: ModelSpec, prediction: Prediction) -> list[Line]:
    """Weights, adapters, gradients alive then and states by arithmetic; activations tensor by tensor, largest
    first.
    """
    setup, moment = prediction.setup, prediction.moment(prediction.peak.moment)
    lines = _weights(setup, headed(spec, setup), prediction)
    if METHODS[setup.method].trains == "nothing":
        return [*lines, *_others(moment)]
    trained = prediction.trainable_parameters
    adapter = METHODS[setup.method].trains == "adapter"
    width = WIDTH[setup.adapter_dtype if adapter else setup.weight_dtype]
    if adapter:
        lines.append(
            Line(
                "adapter weights", said("{count:,} x {width} B", count=trained, width=width), trained * width
            )
        )
    alive, states = moment.components["gradients"], moment.components["optimizer_states"]
    lines.append(Line("gradients", _of_size(trained, width, alive), alive))
    each = said("{count:,} x {each:.3g} B", count=trained, each=states / max(1, trained))
    lines.append(
        Line("optimizer states", said("{optimizer}: {each}", optimizer=setup.optimizer, each=each), states)
    )
    return [*lines, *_others(moment)]


def _others(moment: Breakdown) -> Iterator[Line]:
    for what in ("activations", "temporaries"):
        yield from _tensors(what, [row for row in moment.rows if row.component == what])


def _tensors(what: str, rows: Sequence[Row]) -> Iterator[Line]:
    """The sum of a component, then its largest tensors, each with its shape."""
    total = sum(row.charged for row in rows)
    if not total:
        return
    yield Line(what, said("{rows} kinds of tensors, the largest:", rows=len(rows)), total)
    for row in sorted(rows, key=lambda row: -row.charged)[:SHOWN]:
        if 50 * row.charged < total:
            return
        yield Line(row.name, said("{product} B", product=_product(row)), row.charged, of_which=True)


def _product(row: Row) -> str:
    """count x shape x bytes an element, as it stands in the row."""
    elements = row.count * prod(row.shape)
    width = row.charged / elements if elements else 0
    shape = " x ".join(f"{extent:,}" for extent in row.shape)
    count = f"{row.count} x " if row.count > 1 else ""
    return f"{count}{shape} x {width:g}"


def _of_size(count: int, width: int, alive: int) -> LocalizedMessage:
    whole = said("{count:,} x {width} B", count=count, width=width)
    if alive >= count * width:
        return whole
    return said("{whole}, {share:.0%} alive at the peak", whole=whole, share=alive / max(1, count * width))


def _weights(setup: Setup, spec: ModelSpec, prediction: Prediction) -> list[Line]:
    parameters, width = prediction.model.parameters, WIDTH[setup.weight_dtype]
    if setup.quant_type == "none":
        return [
            Line("weights", said("{count:,} x {width} B", count=parameters, width=width), parameters * width)
        ]
    linear = sum(
        count * one.in_features * one.out_features for count, layer in spec.layers for one in layer.linears()
    )
    experts = sum(count * _expert_parameters(layer.mlp) for count, layer in spec.layers)
    bits = _bits(setup)
    other = 4 if setup.kbit_prepare else width
    rest = parameters - linear - experts
    lines = [
        Line(
            "quantized linear layers with constants",
            said("{count:,} x {bits:.3f} bits", count=linear, bits=bits),
            round(linear * bits / 8),
        )
    ]
    if experts:
        lines.append(
            Line(
                "experts, which are not quantized",
                said("{count:,} x {width} B", count=experts, width=other),
                experts * other,
            )
        )
    return [
        *lines,
        Line(
            "embeddings, head, norms and biases",
            said("{count:,} x {width} B", count=rest, width=other),
            rest * other,
        ),
    ]


def _bits(setup: Setup) -> float:
    """Bits a weight: four and a share of a block's constant, quantized again or not (QLoRA, section 3); eight
    for LLM.int8().
    """
    if setup.quant_type == "int8":
        return 8
    return 4 + (
        8 / setup.quant_block + 32 / (setup.quant_block * 256)
        if setup.double_quant
        else 32 / setup.quant_block
    )


def _expert_parameters(mlp: object) -> int:
    """Weights of experts kept as whole parameters, which 4-bit loading leaves alone."""
    return 0 if isinstance(mlp, Mlp) else sum(prod(shape) for _, shape in mlp.parameters)  # type: ignore[attr-defined]
