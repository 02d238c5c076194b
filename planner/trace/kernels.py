"""What CUDA kernels allocate beyond their outputs, and what meta allocates that they do not: one table, op ->
rule, each with its source.

The trace's observer asks `Kernels(target)` at every op. A hidden allocation lives during the op, except a
cuBLAS workspace, which stays. An op without a rule is *unknown*: it counts with its outputs alone, and
`status` says so. A closed library's kernels (cuDNN's convolutions) have a `reach` instead.

Shape legend: B batch, H heads, S query rows, T key rows, D head size, M x N x K a matrix product. Sources are
files of PyTorch (aten/src/ATen, c10) where no library is named; (torch 2.13) marks what was read in that
version's own headers, the rest was read in its repository between 2024 and 2026-09. What differs between
releases was also read in the machine code of the wheels (torch 2.11 to 2.15 for CUDA 13): cuBLAS's
workspaces, cuDNN's filters, which of the embedding gradient's two ways a release has. Headers of
2.11 and 2.13 agree in the allocator's constants, reductions, scans and the memory-efficient kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from memplan.planner.tables import cublas
from memplan.planner.trace.device.kernels_cpu import CPU_RULES
from memplan.planner.trace.device.kernels_table import RULES
from memplan.planner.trace.device.rule import OpCall, Status, Workspace
from memplan.planner.trace.device.target import Target


class Kernels:
    """The rules for one target, and what they have to remember: which threads hold a cuBLAS workspace
    already.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.rules = RULES if target.device == "cuda" else CPU_RULES
        self._held: set[str] = set()

    def __call__(self, op: Any, args: tuple[Any, ...], outputs: Sequence[Tensor]) -> list[Workspace]:
        """The hidden allocations of one call, in the order in which the kernel makes them."""
        rule = self.rules.get(name_of(op))
        if rule is None:
            return []
        call = OpCall(self.target, args, outputs)
        found = list(rule.hidden(call)) if rule.hidden is not None else []
        library = rule.matmul(call) if rule.matmul is not None and not _product_is_empty(outputs) else ""
        if library:
            found = [*found, *self._workspaces(library == "cublaslt")]
        return [hidden for hidden in found if hidden.nbytes > 0]

    def hides(self, op: Any) -> bool:
        """Whether an op may take workspaces that are freed again, at some size."""
        rule = self.rules.get(name_of(op))
        if rule is None:
            return False
        return rule.hidden is not None or (rule.matmul is not None and not cublas.held(self.target.torch))

    def order(self, op: Any, args: tuple[Any, ...], outputs: Sequence[Tensor]) -> Sequence[int]:
        """Positions of the outputs that CUDA makes on the device, in the order in which it does."""
        rule, count = self.rules.get(name_of(op)), len(outputs)
        if rule is None or not (rule.order or rule.on_host):
            return range(count)
        on_host = rule.on_host(OpCall(self.target, args, outputs)) if rule.on_host is not None else ()
        return [index for index in rule.order or range(count) if index < count and index not in on_host]

    def reach(self, op: Any, args: tuple[Any, ...], outputs: Sequence[Tensor]) -> int:
        """Bytes that a closed library may take beside each output, at most; 0: everything is known."""
        rule = self.rules.get(name_of(op))
        return 0 if rule is None or rule.reach is None else rule.reach(OpCall(self.target, args, outputs))

    def status(self, op: Any) -> Status:
        """How well the memory of an op is known on this target; "unknown" is the default. Views cost nothing
        and are known.
        """
        if self.target.device != "cuda":
            return "measured"  # on the CPU the same ops run, and there is no caching allocator to please
        rule = self.rules.get(name_of(op))
        if rule is not None:
            return rule.status
        return "source" if getattr(op, "is_view", False) else "unknown"

    def _workspaces(self, lt: bool) -> list[Workspace]:
        """What a product takes: the workspace of its thread's handle, where that has none yet
        (planner/tables/ cublas.py). Backward runs on autograd's own thread.
        """
        release = self.target.torch
        size = cublas.workspace_bytes(self.target.capability, release)
        if not cublas.held(release):
            return [Workspace("cuBLASLt workspace", cublas.LT) if lt else Workspace("cuBLAS workspace", size)]
        name = cublas.workspace_name(
            cublas.THREADS[0] if torch._C._current_autograd_node() is None else cublas.THREADS[1]
        )
        wanted = [Workspace(name, size, persistent=True)]
        if lt and cublas.has_lt_workspace(release):
            wanted.append(Workspace(name.replace("cuBLAS", "cuBLASLt"), cublas.LT, persistent=True))
        made = [workspace for workspace in wanted if workspace.name not in self._held]
        self._held.update(workspace.name for workspace in made)
        return made


def name_of(op: Any) -> str:
    """'aten::mm' of an OpOverload; the name itself where a string is given."""
    return op if isinstance(op, str) else str(op._schema.name)


def _product_is_empty(outputs: Sequence[Tensor]) -> bool:
    return bool(outputs) and outputs[0].numel() == 0


class UnknownBytes:
    """How much of what is alive passed through ops whose kernels nobody has read: by op, and as a share."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def share(self, alive: Iterable[tuple[str, int]]) -> tuple[float, list[tuple[str, int]]]:
        """(share of bytes, [(op, bytes)] of unknown ops, largest first), given (op, bytes) of each storage
        alive.

        An op is an OpOverload's text ("aten.mm.default"); a storage without an op (a workspace, a weight)
        counts as known.
        """
        total = 0
        unknown: dict[str, int] = {}
        for op, nbytes in alive:
            total += nbytes
            name = schema_name(op)
            if name is not None and self.kernels.status(name) == "unknown":
                unknown[name] = unknown.get(name, 0) + nbytes
        rows = sorted(unknown.items(), key=lambda item: -item[1])
        return (sum(unknown.values()) / total if total else 0.0), rows


def schema_name(op: str) -> str | None:
    """'aten::mm' from 'aten.mm.default'; None for a text that is not an op's."""
    parts = op.split(".")
    return f"{parts[0]}::{parts[1]}" if len(parts) >= 3 and parts[0].isidentifier() else None
