"""What an optimizer's step makes of each trainable tensor, variable by variable: the steps that several rows of
`optimizers.py` share or that are long.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Mode = Literal["foreach", "fused", "loop"]
"""How a step walks the trainable tensors: lists of all of them, one kernel over such a list, or one tensor after
another.
"""


Shape = Literal["like", "gram", "blocks", "low", "basis", "square", "left", "values", "right", "channels"]


class Make(NamedTuple):
    """A tensor that a step makes for a trainable tensor (one list of them under `foreach`), and the variable
    that then holds it: what that held before is freed afterwards.

    shape: like the trainable tensor; `gram`: the square of its shorter side; `blocks`: one value for each of
    a quantized state's blocks; of a projected matrix `low`: its projected gradient; `basis`: what projects it;
    `square`: a matrix of its rank; `left`, `values`, `right`: its singular vectors and values; `channels`: one
    value for each entry of its longer side. dtype: "like" it, or a name. `unless` it already has this dtype,
    where the step makes no copy. `quantized`: only where the states are.
    """

    variable: str
    what: str
    shape: Shape = "like"
    dtype: str = "like"
    unless: str = ""
    quantized: bool = False


class Drop(NamedTuple):
    """Variables that a step lets go before it goes on; others last until they are made anew, for the next
    tensor too.
    """

    variables: tuple[str, ...]


class Release(NamedTuple):
    """The trainable tensor's own gradient goes before the step ends, `unless` it has this dtype; what the
    variable `instead` holds stays as its gradient.
    """

    unless: str = ""
    instead: str = ""


Step = tuple[Make | Drop | Release, ...]
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

_SVD: Step = (  # torch.linalg.svd with cuSOLVER's gesvdj, which overwrites a copy; then `rank` vectors of one side
    Make("left", "left singular vectors", "left", "float32"),
    Make("values", "singular values", "values", "float32"),
    Make("right", "right singular vectors", "right", "float32"),
    Make("copy", "gradient, in columns for cuSOLVER", dtype="float32"),
    Drop(("copy",)),
    Make("square", "singular values on a diagonal", "square", "float32"),
    Make("scaled", "singular vectors, scaled", "low", "float32"),
    Drop(("square",)),
)
_BASIS: Step = (
    Make("matrix", "gradient in fp32", dtype="float32", unless="float32"),
    *_SVD,
    Make("basis", "singular vectors that are kept", "basis", unless="float32"),
    Drop(("matrix", "left", "values", "right", "scaled", "basis")),
)
_BACK: Step = (
    Make("back", "update, projected back"),
    Make("update", "update, projected back and scaled"),
    Drop(("back",)),
)
ADAMW: Step = (  # each variable lasts until the next tensor's takes its place, so does the update of a whole matrix
    Drop(("gradient",)),
    Make("denominator", "square root of exp_avg_sq"),
    Make("update", "exp_avg, divided"),
)
_LOW_ADAMW: Step = (
    Make("gradient", "projected gradient", "low"),
    Make("denominator", "square root of exp_avg_sq", "low"),
    Make("update", "exp_avg, divided", "low"),
)
GALORE_ADAMW: Step = (Drop(("gradient",)), *_BASIS, *_LOW_ADAMW, *_BACK)
GALORE_8BIT: Step = (  # the matrix is away while its projection is stepped in its place
    *_BASIS,
    Make("gradient", "projected gradient", "low"),
    Make("saved", "copy of the matrix"),
    Make("data", "projected gradient in the matrix's place", "low"),
    Drop(("saved",)),
    Release(instead="gradient"),
    *_BACK,
    Drop(("update", "data")),
)
GALORE_ADAFACTOR: Step = (
    Drop(("gradient",)),
    Make("gradient", "gradient in fp32", dtype="float32", unless="float32"),
    *_SVD,
    Drop(("left", "values", "right", "scaled")),
    Make("gradient", "projected gradient", "low", "float32"),
    Drop(("weight",)),
    Make("weight", "in fp32", dtype="float32", unless="float32"),
    Make("squares", "squared gradient", "low", "float32"),
    Make("update", "squared gradient + eps", "low", "float32"),
    Drop(("squares",)),
    Make("update", "update of low rank", "low", "float32"),
    Make("back", "update, projected back", dtype="float32"),
    Make("update", "update, projected back and scaled", dtype="float32"),
    Drop(("back",)),
    Make("negative", "update, negated", dtype="float32"),
    Drop(("negative",)),
)
APOLLO: Step = (  # from the second step on, whose growth is limited by the first one's norm
    Drop(("gradient",)),
    Make("matrix", "gradient in fp32", dtype="float32", unless="float32"),
    Make("drawn", "random numbers", "basis", "float32"),
    Make("random", "random projection", "basis", "float32"),
    Drop(("drawn",)),
    Make("basis", "random projection that is kept", "basis", unless="float32"),
    Drop(("matrix", "random", "basis")),
    *_LOW_ADAMW,
    Make("factors", "scaling factors", "channels"),
    Make("scaled", "gradient, scaled"),
    Make("scaled", "gradient, scaled and limited"),
    Drop(("update",)),
)
LOMO: Step = (
    Make("gradient", "gradient in fp32", dtype="float32", unless="float32"),
    Release(unless="float32"),
    Make("weight", "in fp32", dtype="float32", unless="float32"),
)
ADALOMO: Step = (
    Make("gradient", "gradient in fp32", dtype="float32", unless="float32"),
    Release(unless="float32"),
    Make("square", "squared gradient", dtype="float32"),
    Make("update", "squared gradient + eps", dtype="float32"),
    Drop(("square",)),
    Make("update", "update", dtype="float32"),
    Make("weight", "in fp32", dtype="float32", unless="float32"),
)
