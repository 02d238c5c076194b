"""One rank under DeepSpeed's ZeRO: flat partitions in fp32, the bucket that gradients pass through,
parameters that are gathered.

P parameters trained, N ranks. Read in deepspeed 0.19.8 runtime/zero/: stage_1_and_2.py (stages 1 and 2),
stage3.py and partition_parameters.py (stage 3). The last rank is described in stages 1 and 2, whose partition
of gradients is there first. Left out: gradient norms (a number a tensor), and a second flat copy of the
parameters while stages 1 and 2 are set up, which DeepSpeed makes on the host where the GPU has no room for
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.replay.load_peak import load_candidates
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.sharding.plan import Loading, ShardingPlan, Whole, nbytes, part
from memplan.planner.formula.symbolic.expr import Expr, ceil_div, round_up, total
from memplan.planner.tables.dtypes import itemsize

ALIGNED = (
    2  # elements: partitions start at multiples of 4 bytes (stage_1_and_2.py nccl_start_alignment_factor)
)
AUTO = {
    "zero_reduce_bucket": lambda hidden: hidden * hidden,
    "zero_prefetch_bucket": lambda hidden: 9 * hidden * hidden // 10,
    "zero_persistence_threshold": lambda hidden: 10 * hidden,
}
"""What transformers 5.23 integrations/deepspeed.py `trainer_config_finalize` puts for 'auto' (accelerate 1.15
does the same).
"""


class ZeroPlan(ShardingPlan):
    """What the three stages have in common: fp32 masters and optimizer states of one partition."""

    def __init__(self, stored: ParameterTable, seen: ParameterTable) -> None:
        super().__init__(stored, seen)
        self.stage = int(self.setup.parallel[-1])
        self.dtype = seen.setup.weight_dtype
        self.offloaded = self.setup.offload != "none"
        overlap = self.setup.zero_overlap_comm
        self.overlaps = self.stage == 3 if overlap is None else overlap

    def bucket(self, name: str) -> int:
        """Elements of a bucket or threshold, with 'auto' resolved."""
        given = getattr(self.setup, name)
        return int(AUTO[name](self.spec.hidden)) if given == "auto" else int(given)

    # ---- partitions ----------------------------------------------------------------------------------------

    def groups(self) -> list[tuple[str, list[ParameterSpec]]]:
        """The optimizer's groups: the Trainer decays matrices and leaves norms and biases alone, a plain loop
        has one group.
        """
        trained = self.stored.trained
        if not self.setup.loop.decay_groups:
            return [("all", trained)]
        plain = [t for t in trained if t.role in ("norm", "bias")]
        return [
            (name, group)
            for name, group in (("decayed", [t for t in trained if t not in plain]), ("not decayed", plain))
            if group
        ]

    def partition(self, group: Sequence[ParameterSpec]) -> Expr:
        """Elements of one rank's partition: the flat group padded to a multiple of 2 N, or each tensor to a
        multiple of N (stage 3).
        """
        if self.stage == 3:
            return total(self.part(t) * t.count for t in group)
        return ceil_div(
            round_up(total(t.elements * t.count for t in group), ALIGNED * self.ranks), self.ranks
        )

    def stepped(self) -> Sequence[ParameterSpec]:
        """The partitions that the optimizer updates on the GPU; none where they are offloaded."""
        return [] if self.offloaded else self.partitions()

    def part(self, tensor: ParameterSpec) -> Expr:
        """Stage 3: elements that a rank keeps of one tensor."""
        return ceil_div(tensor.elements, self.ranks)

    def partitions(self) -> list[ParameterSpec]:
        """The flat partitions, which are what the optimizer sees."""
        return [
            ParameterSpec(f"fp32 partition ({name})", (self.partition(group),), "float32", 1, True, "flat")
            for name, group in self.groups()
        ]

    # ---- rows ----------------------------------------------------------------------------------------------

    def weights(self) -> list[SymbolicRow]:
        """Stages 1 and 2: every parameter on every rank, and what pads a flat group to a multiple of 2 N."""
        pads = []
        for name, group in self.groups():
            padding = self.partition(group) * self.ranks - total(t.elements * t.count for t in group)
            pads.append(
                self._flat(
                    f"padding of the flat parameters ({name})",
                    padding,
                    self.dtype,
                    "weights",
                    "a multiple of 2 N",
                )
            )
        return [*self.stored.weight_rows(), *pads]

    def masters(self) -> list[SymbolicRow]:
        """The float32 copies of this rank's partition of the parameters."""
        why = "float32 copy of the parameters that this rank updates"
        return [self._flat(t.name, t.elements, t.dtype, "optimizer_states", why) for t in self.partitions()]

    def states(self) -> list[SymbolicRow]:
        """The optimizer's states of this rank's partition."""
        return [row for t in self.partitions() for row in self.stored.states_of(t, paged=False)]

    def buffers(self) -> list[SymbolicRow]:
        """What stays through the run for communication: a buffer as large as the largest parameter where
        optimizers are on the host.
        """
        if not self.offloaded:
            return []
        why = "as large as the largest parameter"
        return [self._flat("gradient on its way to the host", self.largest(), self.dtype, "temporaries", why)]

    def largest(self) -> int:
        """Elements of the largest trained tensor."""
        return max((self.count(t) for t in self.stored.trained), default=0)

    def count(self, tensor: ParameterSpec) -> int:
        """Elements as a number: the rank is part of a ZeRO structure, since thresholds decide (formula.py
        `_structure`).
        """
        return tensor.elements.evaluate({"R": self.setup.rank})

    def places(self, tensor: ParameterSpec) -> tuple[int, ...]:
        """Where a tensor is in the order of the model: its layers; -1 before them (embeddings), the depth
        after them (norm, head).
        """
        layers = self.layers(tensor)
        if layers:
            return layers
        first = (self.spec.embedding_name, *((self.spec.position_name,) if self.spec.position_name else ()))
        return (-1,) if tensor.name.startswith(first) else (self.spec.depth,)

    def resident(self) -> list[SymbolicRow]:
        """What stays on this rank's GPU through the step."""
        return [
            *self.weights(),
            *self.buffers(),
            *([] if self.offloaded else [*self.masters(), *self.states()]),
        ]

    def loading(self) -> Loading:
        """Masters are made with the optimizer, its states in the first step."""
        before = load_candidates(self.stored, self.each_layer)
        batch = before["load"][0][len(self.stored.weight_rows()) :]
        load = [*self.weights(), *self.buffers(), *([] if self.offloaded else self.masters()), *batch]
        return {"load_peak": [load, *before["load_peak"]], "load": [load]}

    def host(self) -> list[SymbolicRow]:
        """What this rank keeps in host memory: paged states and what is offloaded."""
        paged = [row for t in self.partitions() for row in self.stored.states_of(t, paged=True)]
        if not self.offloaded:
            return paged
        why = "this rank's part, on the host"
        own = self.partitions()
        return [
            *paged,
            *self.masters(),
            *self.states(),
            *(self._flat(f"{t.name} gradient", t.elements, "float32", "gradients", why) for t in own),
            *(self._flat(f"{t.name} copy back", t.elements, self.dtype, "temporaries", why) for t in own),
        ]

    @staticmethod
    def _flat(name: str, elements: Expr | int, dtype: str, component: str, why: str) -> SymbolicRow:
        return SymbolicRow(name, (elements,), dtype, 1, nbytes(elements, dtype), component, why)  # type: ignore[arg-type]


class Zero3Plan(ZeroPlan):
    """Stage 3: every parameter in N parts, padded one by one; small ones whole beside their part."""

    def persistent(self, tensor: ParameterSpec) -> bool:
        """Whether a parameter stays whole on every rank (parameter_offload.py
        `mark_persistent_parameters`).
        """
        return tensor.role != "buffer" and self.count(tensor) <= self.bucket("zero_persistence_threshold")

    def weights(self) -> list[SymbolicRow]:
        """This rank's part of each parameter; buffers and quantization constants stay whole."""
        left, rows = list(self.stored.all), []
        for row in self.stored.weight_rows():  # each tensor, then its quantization constants
            one = left.pop(0) if left and left[0].name == row.name else None
            if one is None or one.role == "buffer":
                rows.append(row)
                continue
            if self.setup.offload != "all":
                rows.append(self._part_row(one))
            if self.persistent(one):
                rows.append(
                    SymbolicRow(
                        f"{row.name} (whole)",
                        row.shape,
                        row.dtype,
                        row.count,
                        row.size,
                        "weights",
                        "small enough to stay whole: stage3_param_persistence_threshold",
                    )
                )
        return rows

    def _part_row(self, tensor: ParameterSpec) -> SymbolicRow:
        """1 / N of a parameter, rounded up; a packed 4-bit one in its storage dtype."""
        dtype, elements = tensor.dtype, tensor.elements
        if dtype in ("nf4", "fp4"):
            dtype = self.setup.quant_storage
            elements = ceil_div(elements, 2 * itemsize(dtype))
        kept = part(elements, self.ranks)
        size = nbytes(kept, dtype) * tensor.count
        return SymbolicRow(
            tensor.name,
            (kept,),
            dtype,
            tensor.count,
            size,
            "weights",
            "this rank's part of the flattened parameter",
        )

    def buffers(self) -> list[SymbolicRow]:
        """The reduce bucket and the flat gradients of this rank's parts are there from the beginning."""
        bucket = self._flat(
            "reduce bucket",
            self.bucket("zero_reduce_bucket"),
            self.dtype,
            "temporaries",
            "contiguous_gradients",
        )
        why = "one flat buffer for this rank's parts of all gradients"
        parts = [
            self._flat(f"gradients ({name})", self.partition(group), self.dtype, "gradients", why)
            for name, group in self.groups()
        ]
        return [bucket, *([] if self.offloaded else parts)]

    def gathered(self) -> Iterator[Sequence[Whole]]:
        """The parameters of one module after another, those of equal layers once; from the host by way of
        this rank's part.
        """
        modules: dict[str, list[Whole]] = {}
        for each in self.stored.all:
            if each.role == "buffer":
                continue
            whole = self.gathered_elements(each)
            module = modules.setdefault(each.name.rpartition(".")[0], [])
            module.append((each.name, (whole,), self.dtype))
            if self.setup.offload == "all":
                module.append((f"{each.name} part", (whole // self.ranks,), self.dtype))
        yield from modules.values() if self.ranks > 1 else ()

    def gathered_elements(self, tensor: ParameterSpec) -> int:
        """Elements of a gathered parameter, padded to a multiple of N, counted in the dtype that computes."""
        bits = 4 if tensor.dtype in ("nf4", "fp4") else 8 * itemsize(tensor.dtype)
        return -(-self.count(tensor) // self.ranks) * self.ranks * bits // (8 * itemsize(self.dtype))

    def loading(self) -> Loading:
        """Parameters are cut one by one as they are made (zero.Init, which from_pretrained enters under the
        Trainer).
        """
        load = super().loading()["load"][0]
        largest = max((t for t in self.stored.base if t.role != "buffer"), key=self.count)
        elements = self.gathered_elements(largest)
        whole = self._flat(
            f"{largest.name} before it is cut", elements, self.dtype, "temporaries", "the largest parameter"
        )
        return {"load_peak": [[*load, whole]], "load": [load]}

    def host(self) -> list[SymbolicRow]:
        """The same with the partitioned parameters, where those are offloaded too."""
        rows = super().host()
        if self.setup.offload == "all":
            rows += [self._part_row(t) for t in self.stored.all if t.role != "buffer"]
        return rows
