"""The events of resizing embedding and head, once they are read.

transformers 5.24 modeling_utils.py _resize_token_embeddings: one after the other is made anew beside the
old one; new rows are drawn around the old ones' mean and covariance, which takes two fp32 copies of the old
matrix. n rows of width H, N of them afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Protocol

from memplan.planner.formula.replay.dora import Writer
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.gpus import find_gpu, gpus
from memplan.planner.tables.reductions import THREADS_PER_SM, staging

USUAL_GPU = "a100-80gb"
_MOMENTS = "_init_added_embeddings_weights_with_mean"


class Load(Writer, Protocol):
    """What resizing needs of the load that is under way. `held`: the id of each tensor that stays; `read`:
    see `as_read`.
    """

    spec: ModelSpec
    held: dict[tuple[int, int], int]
    read: dict[int, ParameterSpec]

    def arrives(self, stored: ParameterSpec) -> str:
        """The dtype in which a base tensor comes from the checkpoint."""
        ...


def as_read(spec: ModelSpec, base: Sequence[ParameterSpec]) -> dict[int, ParameterSpec]:
    """The tensors that are resized as the checkpoint has them, by the identity of what they become."""
    if spec.resized_from is None:
        return {}
    names = [f"{spec.embedding_name}.weight"]
    if spec.head_outputs is None and not spec.tied:
        names.append(f"{spec.head_name}.weight")
    if spec.head_outputs is None and spec.head_bias:
        names.append(f"{spec.head_name}.bias")
    found = {stored.name: stored for stored in base}
    return {
        id(found[name]): replace(found[name], shape=(spec.resized_from, *found[name].shape[1:]))
        for name in names
    }


def resize(load: Load) -> None:
    """Every tensor of other rows in place of the one that was read, module by module."""
    resized = [stored for stored in load.parameter_table.base if id(stored) in load.read]
    for _, module in groupby(resized, lambda stored: stored.name.rpartition(".")[0]):
        new = list(module)
        for stored in new:
            load.keep(stored, -1, load.arrives(stored))
        weight, old = new[0], load.read[id(new[0])]
        if load.elements(weight) > load.elements(old):
            _drawn(load, weight, old, load.arrives(weight))
        load.out.free(*(load.held.pop((id(load.read[id(stored)]), -1)) for stored in new))


def _partial(load: Load, rows: int, width: int) -> Sequence[int]:
    """What the sums of columns meet in, where they are split over a GPU's multiprocessors."""
    setup = load.setup
    if setup.device == "cpu":
        return ()
    named = find_gpu(setup.gpu) if setup.gpu is not None else None
    usual = gpus()[USUAL_GPU]
    gpu = named if named is not None and named.sms and named.capability else usual
    assert gpu.sms is not None and gpu.capability is not None
    dims = [(rows, width, True), (width, 1, False)]
    return [
        nbytes for nbytes in staging(dims, 4, 4, gpu.sms, THREADS_PER_SM.get(gpu.capability, 2048)) if nbytes
    ]


def _drawn(load: Load, stored: ParameterSpec, old: ParameterSpec, dtype: str) -> None:
    """Mean and covariance of the old rows, torch.distributions' check of the latter, the draw."""
    out, n = load.out, load.elements(old)
    width = load.elements(stored) // load.spec.vocab
    added = load.spec.vocab - n // width

    def made(what: str, *shape: int, kind: str = "float32", size: int = 4) -> int:
        out.about = (old.name, shape, kind, f" {what} ({_MOMENTS})")
        total = size
        for each in shape:
            total *= each
        return out.alloc(total)

    def square(what: str, kind: str = "float32", size: int = 4) -> int:
        return made(what, width, width, kind=kind, size=size)

    wide = [made("in fp32", n // width, width)] if dtype != "float32" else []
    mean = made("mean", width)
    partial = [made("partial sums", each, kind="uint8", size=1) for each in _partial(load, n // width, width)]
    out.free(*reversed(partial))
    centered = made("less its mean", n // width, width)
    product = square("product of itself")
    if out.product is None:
        out.product = len(out.events)
    covariance = square("covariance")
    out.free(product)
    # constraints.positive_definite: isclose(c, c.mT), then Cholesky's factors
    scaled, same = square("covariance, scaled"), square("equal", "bool", 1)
    relative, absolute = square("tolerance"), square("tolerance")
    allowed = square("tolerance")
    out.free(absolute, relative)
    difference = square("difference")
    apart = square("difference")
    out.free(difference)
    size = square("difference")
    checks = [square("finite", "bool", 1) for _ in range(3)]
    out.free(*reversed(checks[:2]), size)
    close = square("close", "bool", 1)
    out.free(close, checks[2], apart, allowed, same)
    factor = square("Cholesky factor")
    out.free(factor, scaled)
    scaled, factor = square("covariance, scaled"), square("Cholesky factor")
    draw = [made("draw", added, width) for _ in range(3)]
    out.free(draw[1], draw[0])
    cast = [made("draw", added, width, kind=dtype, size=2)] if wide else []
    out.free(draw[2], *cast, *wide, centered, covariance, scaled, mean, factor)
