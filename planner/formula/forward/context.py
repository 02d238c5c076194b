"""What every part of the walk shares: the tape, the setup, the parameters of the layer at hand, autocast, the
device's facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.symbolic.expr import Expr, Sized
from memplan.planner.formula.tape.ops import cast
from memplan.planner.formula.tape.tape import Tape, Tensor
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import Linear
from memplan.planner.tables.cublas import Release, workspace_bytes
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.sdp import EFFICIENT_GQA, TORCH
from memplan.planner.tables.torch_versions import release_of


@dataclass(frozen=True, slots=True)
class Device:
    """The facts of a GPU and of torch's release that choose kernels. `assumed` where no GPU was named."""

    kind: str = "cuda"
    capability: tuple[int, int] = (8, 0)
    torch: Release = TORCH
    assumed: bool = True

    @property
    def kernels(self) -> tuple[int, ...]:
        """All that kernels ask of a capability (attend.py, workspace): GPUs of equal answers need the same
        memory.
        """
        return (
            *(self.capability >= (major, 0) for major in (7, 8, 9)),
            self.capability[0] == 10,
            self.capability == (9, 0),
            self.workspace,
            self.torch >= EFFICIENT_GQA,
        )

    @property
    def workspace(self) -> int:
        """Bytes of one cuBLAS workspace on this GPU."""
        return workspace_bytes(self.capability, self.torch)


def device_of(setup: Setup) -> Device:
    """What the named GPU means for kernels; an A100's capability where none is named or a budget in bytes
    is.
    """
    if setup.device == "cpu":
        return Device("cpu")
    capability = find_gpu(setup.gpu).capability if setup.gpu is not None else None
    torch = release_of(setup.torch)
    if capability is None:
        return Device(torch=torch)
    return Device("cuda", capability, torch, assumed=False)


class AroundAdapters:
    """What happens around a product with an adapter's own weight: nothing, unless a strategy wraps each."""

    def enter_adapter(self, weight: Tensor, given: Tensor) -> Tensor:
        """Before it."""
        return given

    def leave_adapter(self, weight: Tensor, out: Tensor) -> Tensor:
        """After it."""
        return out

    def told(self, weight: Tensor) -> str:
        """The dtype that the weight says it has before it is used, which PEFT casts inputs to."""
        return weight.dtype


class Context:
    """The state of one walk. `layer` is the walked layer's key (None outside the layers), `trained` whether
    it is trained.
    """

    def __init__(
        self,
        tape: Tape,
        setup: Setup,
        parameter_table: ParameterTable,
        device: Device,
        batch: Expr,
        sequence: Expr,
        single: bool,
        causal: dict[int | None, Tensor | None],
    ):
        self.t, self.setup, self.parameter_table, self.device = tape, setup, parameter_table, device
        self.batch, self.sequence, self.single = batch, sequence, single
        self.masks = causal  # the attention mask by window
        self.auto = None if setup.autocast == "none" else setup.autocast
        self.layer: int | None = None
        self.trained = False
        self.accumulated = False
        self.cache: list[Tensor] | None = None  # keys and values of an inference
        self.earlier: list[Tensor] = []  # those of the tokens before these, layer by layer
        self.before: Sized = 0  # how many tokens those are
        self.by_row = False  # whether each row has positions of its own
        self.leaves = False  # every parameter wants a gradient, where none is made (a model nobody froze)
        self.routed: list[tuple[Tensor, int]] | None = None  # routers' logits where the loss reads them
        self.past = 0  # virtual tokens that stand before every layer's own keys
        self.join: Callable[[int, list[Tensor]], list[Tensor]] | None = (
            None  # a layer's keys and values behind those
        )
        self.kernels: frozenset[str] = frozenset()  # those that take the place of the model's operations
        if setup.fused_kernels:
            from memplan.planner.tables.fused_kernels import swapped

            spec = parameter_table.spec
            self.kernels = swapped(spec.whole_type or spec.model_type, setup.fused_kernels)
        self.again: Callable[[], None] | None = None  # a loss's own backward, where it is not of one graph
        self.around = AroundAdapters()
        self.params: dict[tuple[int | None, str], Tensor] = {}

    def fuses(self, kernel: str, layers: Sequence[Linear]) -> bool:
        """Whether an axolotl kernel takes the place of these layers: all have an adapter that it multiplies,
        and none has an 8-bit base.
        """
        if kernel not in self.kernels:
            return False
        from memplan.planner.tables.fused_kernels import LORA_METHODS

        adapters, setup = self.parameter_table.adapters, self.setup
        known = setup.method in LORA_METHODS and setup.quant_type != "int8"
        return known and all(layer.name in adapters for layer in layers)

    def weight(self, name: str) -> Tensor:
        """The parameter of that full name in the layer at hand; the same tensor each time."""
        key = (self.layer, name)
        found = self.params.get(key)
        if found is None:
            table = self.parameter_table.by_name
            copy = table.get((f"{name} (trained copy)", True))
            if (
                copy is None
                and self.parameter_table.spec.tied
                and name == f"{self.parameter_table.spec.head_name}.weight"
            ):
                return self.weight(f"{self.parameter_table.spec.embedding_name}.weight")
            stored = copy or table.get((name, self.trained)) or table.get((name, not self.trained))
            if stored is None:
                raise KeyError(name)
            found = self.params[key] = Tensor(
                None, stored.shape, stored.dtype, None, stored.trained or self.leaves, stored.name
            )
            if self.accumulated and stored.trained:
                found.grad = Tensor(None, stored.shape, stored.dtype)  # there from the micro-batches before
        return found

    @contextmanager
    def at_layer(self, key: int | None, trained: bool) -> Iterator[None]:
        """Walk what is inside as a layer's, then as before."""
        before = self.layer, self.trained
        self.layer, self.trained = key, trained
        try:
            yield
        finally:
            self.layer, self.trained = before

    def autocast_low(self, x: Tensor) -> Tensor:
        """What autocast's lower-precision ops make of an input; casts of trained fp32 weights are cached
        until autocast ends.

        torch 2.13 ATen/autocast_mode.cpp cached_cast: the cache is for fp32 leaves that want a gradient.
        """
        if self.auto is None or x.dtype == self.auto:
            return x
        casts = self.t.casts
        cached = casts is not None and x.dtype == "float32" and x.requires_grad and x.node is None
        if cached and id(x) in casts:  # type: ignore[operator]
            return casts[id(x)]  # type: ignore[index]
        made = cast(
            self.t,
            x,
            self.auto,
            f"{x.name.rpartition('.')[2]} autocast copy" if x.buffer is None else "autocast copy",
        )
        if x.buffer is None and made.buffer is not None:
            made.buffer.info.why = "autocast's copy of a weight"
            made.buffer.info.names_itself = True
        if cached:
            casts[id(x)] = made  # type: ignore[index]
        return made

    def autocast_fp32(self, x: Tensor) -> Tensor:
        """What autocast's fp32 ops (layer_norm, softmax, log_softmax, pow, ...) make of an input."""
        return cast(self.t, x, "float32") if self.auto is not None else x
