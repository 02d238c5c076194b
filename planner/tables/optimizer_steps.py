"""What an optimizer's step makes of each trainable tensor, variable by variable: the steps that several rows of
`optimizers.py` share or that are long.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Mode = Literal["foreach", "fused", "loop"]
"""How a step walks the trainable tensors: lists of all of them, one kernel over such a list, or one tensor after
another.
"""


class Make(NamedTuple):
    """A tensor that a step makes for a trainable tensor (one list of them under `foreach`), and the variable
    that then holds it: what that held before is freed afterwards.

    shape: like the trainable tensor; `gram`: the square of its shorter side; `blocks`: one value for each of
    a quantized state's blocks. dtype: "like" it, or a name. `unless` it already has this dtype, where the
    step makes no copy. `quantized`: only where the states are.
    """

    variable: str
    what: str
    shape: Literal["like", "gram", "blocks"] = "like"
    dtype: str = "like"
    unless: str = ""
    quantized: bool = False


class Drop(NamedTuple):
    """Variables that a step lets go before it goes on; others last until they are made anew, for the next
    tensor too.
    """

    variables: tuple[str, ...]


Step = tuple[Make | Drop, ...]
IN_PLACE: Step = ()

ADAFACTOR: Step = (  # each variable lasts until the next tensor's takes its place
    Drop(("gradient",)),
    Make("gradient", "gradient in fp32", dtype="float32", unless="float32"),
    Drop(("weight",)),
    Make("weight", "in fp32", dtype="float32", unless="float32"),
    Make("square", "squared gradient", dtype="float32"),
    Make("update", "squared gradient + eps", dtype="float32"),
    Drop(("square",)),
    Make("update", "update", dtype="float32"),
    Make("negative", "update, negated", dtype="float32"),
    Drop(("negative",)),
)
NEWTON_SCHULZ = (  # one iteration; variables hold the last one's tensors until they are made anew
    Make("gram", "update times its transpose", "gram", "bfloat16"),
    Make("polynomial", "polynomial of that product", "gram", "bfloat16"),
    Make("orthogonal", "orthogonalized update", dtype="bfloat16"),
)
MUON: Step = (
    Make("update", "update: gradient and momentum"),
    Make("orthogonal", "update in bfloat16", dtype="bfloat16", unless="bfloat16"),
    *(5 * NEWTON_SCHULZ),  # DEFAULT_NS_STEPS
    Drop(("update", "orthogonal", "gram", "polynomial")),
)

_SCALES = (
    Make("first scale", "new scales of exp_avg", "blocks", "float32", quantized=True),
    Make("second scale", "new scales of exp_avg_sq", "blocks", "float32", quantized=True),
)
_SCALED = (
    Make("first", "exp_avg in fp32, scaled", dtype="float32", quantized=True),
    Make("second", "exp_avg_sq in fp32, scaled", dtype="float32", quantized=True),
)
_CODES = (
    Make("first codes", "codes of exp_avg in int64", dtype="int64", quantized=True),
    Make("second codes", "codes of exp_avg_sq in int64", dtype="int64", quantized=True),
)
# what Inductor's CUDA code makes of one tensor's step: a reduction over blocks first, then the packing
TORCHAO_8: Step = (*_SCALES, *_SCALED, Drop(("first", "second")), Drop(("first scale", "second scale")))
TORCHAO_4: Step = (
    *_SCALES,
    *_SCALED,
    *_CODES,
    Drop(("first", "first codes")),
    Drop(("first scale",)),
    Drop(("second", "second codes")),
    Drop(("second scale",)),
)

ANY_PRECISION: Step = (  # centered_variance lasts until the next tensor's
    Make("root", "square root of exp_avg_sq", dtype="float32"),
    Make("denominator", "square root of exp_avg_sq, bias corrected", dtype="float32"),
    Drop(("root",)),
)
GROK: Step = (  # states come from the host, in turn; each local variable lasts until the next tensor's
    Make("average", "exp_avg, from the host"),
    Make("square", "exp_avg_sq, from the host"),
    Make("slow", "grok_ema, from the host"),
    Make("scaled", "grok_ema, scaled"),
    Make("gradient", "gradient and scaled grok_ema"),
    Drop(("scaled",)),
    Make("root", "square root of exp_avg_sq"),
    Drop(("root",)),
)
"""exp_avg and exp_avg_sq are made in one assignment, so that both of the last tensor's are still there: here one
goes earlier, which a peak shows only where a tensor is over twice the one after it.
"""
