"""torch.cuda's allocator without a GPU, for tests: the project's own replay of it behind torch's statistics
and history formats.

Formats as torch 2.11 has them: c10/cuda/CUDACachingAllocator.h TraceEntry, torch/csrc/cuda/Module.cpp
memorySnapshot (an alloc's and a free's `size` is what was requested, a segment's is the segment's; `oom` has
`device_free` instead of `addr`; the snapshot notes itself at the end with address 0), memory_stats' flattened
names.
"""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.planner.allocator.expandable import Expandable
from memplan.planner.allocator.native import Block, Native, OutOfMemory, Pool, Ties

MIB = 2**20
SETTINGS = {
    "PYTORCH_CUDA_ALLOC_CONF": "",
    "max_split_size": -1,
    "garbage_collection_threshold": 0.0,
    "expandable_segments": False,
    "pinned_num_register_threads": 1,
    "release_lock_on_cudamalloc": False,
    "pinned_use_cuda_host_register": False,
    "graph_capture_record_stream_reuse": False,
    "roundup_power2_divisions": {"1": 0},
}
CONTEXT = 600 * MIB


class _Noting:
    """Mixed into the replay: every segment that it takes or gives back becomes an entry of the history."""

    fake: FakeCuda
    reserved: int

    def _grow(self, pool: Pool, size: int) -> Block | None:
        before = self.reserved
        block: Block | None = super()._grow(pool, size)  # type: ignore[misc]
        if block is not None:
            self.fake.note(
                "segment_map" if self.fake.expandable else "segment_alloc",
                addr=block.address,
                size=self.reserved - before,
            )
        return block

    def empty_cache(self) -> None:
        before = self.reserved
        super().empty_cache()  # type: ignore[misc]
        if before > self.reserved:
            self.fake.note(
                "segment_unmap" if self.fake.expandable else "segment_free",
                addr=0,
                size=before - self.reserved,
            )


class _NativeNoting(_Noting, Native): ...


class _ExpandableNoting(_Noting, Expandable): ...


class FakeCuda:
    """A GPU of `total` bytes. `malloc` and `free` are what torch's kernels would call; `install` puts it in
    the place of torch.cuda's.
    """

    def __init__(self, total: int = 8 * 2**30, expandable: bool = False, ties: Ties = "address") -> None:
        self.total, self.expandable, self.ties = total, expandable, ties
        self.fraction: float | None = None
        self.trace: list[dict[str, Any]] = []
        self.entries: int | None = None  # of the history; None: off
        self.counts = dict.fromkeys(("allocated", "freed"), 0)
        self.now = dict.fromkeys(("allocated", "requested", "active", "reserved"), 0)
        self.peak = dict(self.now)
        self.live: dict[
            int, tuple[Block, int, int]
        ] = {}  # address as the caller sees it -> (block, requested, its place among the entries)
        self.waiting: list[tuple[int, Block, int]] = []  # freed, but another stream still reads them
        self.calls: list[str] = []
        self._start()

    def _start(self) -> None:
        self.allocator = (_ExpandableNoting if self.expandable else _NativeNoting)(ties=self.ties)
        self.allocator.fake = self

    # -- what kernels do -------------------------------------------------------------------------------------

    def malloc(self, nbytes: int, address: int | None = None) -> int:
        """Serve a request; `address` stands for the block's own where the caller's memory lies elsewhere."""
        self.allocator.capacity = self.allocator.lower_bound = (
            1 << 62 if self.fraction is None else int(self.fraction * self.total)
        )
        self.allocator.fraction = self.fraction is not None
        try:
            block = self.allocator.allocate(nbytes)
        except OutOfMemory:
            self._refuse(nbytes)
        address = block.address if address is None else address
        assert address not in self.live, "a block was handed out twice"
        self.live[address] = (block, nbytes)
        self.counts["allocated"] += 1
        self._add(allocated=block.size, requested=nbytes, active=block.size)
        self.note("alloc", addr=address, size=nbytes)
        return address

    def free(self, address: int, *, another_stream_reads: bool = False) -> None:
        block, nbytes = self.live.pop(address)
        self.counts["freed"] += 1
        self._add(allocated=-block.size, requested=-nbytes)
        self.note("free_requested", addr=address, size=nbytes)
        self.waiting.append((address, block, nbytes))
        if not another_stream_reads:
            self.complete()

    def complete(self) -> None:
        """The other streams are done: what waited for them can be used again."""
        for address, block, nbytes in self.waiting:
            self.allocator.release(block)
            self._add(active=-block.size)
            self.note("free_completed", addr=address, size=nbytes)
        self.waiting.clear()

    def note(self, action: str, **fields: int) -> None:
        if self.entries is not None:
            entry = {
                "action": action,
                **fields,
                "stream": 0,
                "time_us": len(self.trace),
                "compile_context": "N/A",
                "user_metadata": "",
            }
            self.trace.append(entry)
            del self.trace[: -self.entries]

    def _refuse(self, nbytes: int) -> None:
        free = self.total - self.allocator.reserved - CONTEXT
        self.note("oom", device_free=free, size=nbytes)
        raise torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {nbytes / MIB:.2f} MiB. GPU 0 has a total capacity of "
            f"{self.total / 2**30:.2f} GiB of "
            f"which {free / 2**30:.2f} GiB is free. Including non-PyTorch memory, this process has some "
            "memory in use."
        )

    def _add(self, **changes: int) -> None:
        for name, change in {**changes, "reserved": self.allocator.reserved - self.now["reserved"]}.items():
            self.now[name] += change
            self.peak[name] = max(self.peak[name], self.now[name])

    # -- what torch.cuda offers ------------------------------------------------------------------------------

    def install(self, patch: pytest.MonkeyPatch) -> FakeCuda:
        memory = torch.cuda.memory
        patch.setattr(memory, "_record_memory_history", self.record_history)
        patch.setattr(memory, "_snapshot", self.snapshot)
        patch.setattr(memory, "get_allocator_backend", lambda: "native")
        patch.setattr(torch._C, "_accelerator_setAllocatorSettings", self.settings, raising=False)
        for name, value in (
            ("memory_stats", self.memory_stats),
            ("synchronize", lambda: None),
            ("reset_peak_memory_stats", self.reset),
            ("is_available", lambda: True),
            ("is_current_stream_capturing", lambda: False),
            ("get_device_name", lambda: "NVIDIA H200"),
            ("get_device_capability", lambda: (9, 0)),
            (
                "get_device_properties",
                lambda index: SimpleNamespace(multi_processor_count=132, total_memory=self.total),
            ),
            ("mem_get_info", lambda: (self.total - CONTEXT - self.allocator.reserved, self.total)),
            ("set_per_process_memory_fraction", lambda fraction: setattr(self, "fraction", fraction)),
        ):
            patch.setattr(torch.cuda, name, value)
        return self

    def settings(self, text: str) -> None:
        assert not self.live, "the allocator's mode changes before anything is allocated"
        self.calls.append(text)
        self.expandable = text == "expandable_segments:True"
        self._start()

    def record_history(
        self,
        enabled: str | None = "all",
        context: str | None = "all",
        stacks: str = "all",
        max_entries: int = 1 << 62,
    ) -> None:
        assert enabled in (None, "state", "all")
        assert context in (None, "state", "alloc", "all")
        assert stacks in ("python", "all")
        self.calls.append(f"history {enabled} {context} {stacks}")
        self.entries = max_entries if enabled == "all" else None

    def snapshot(self) -> dict[str, Any]:
        self.note("snapshot", addr=0, size=self.now["reserved"])
        traces = [list(self.trace)] if self.trace else []
        return {
            "segments": [],
            "device_traces": traces,
            "external_annotations": [],
            "allocator_settings": {**SETTINGS, "expandable_segments": self.expandable},
        }

    def reset(self) -> None:
        self.peak = dict(self.now)

    def memory_stats(self) -> dict[str, int]:
        found = {"num_alloc_retries": self.allocator.retries, "num_ooms": 0}
        for event, count in self.counts.items():
            found[f"allocation.all.{event}"] = count
        for name in self.now:
            found[f"{name}_bytes.all.current"], found[f"{name}_bytes.all.peak"] = (
                self.now[name],
                self.peak[name],
            )
        return found


class Mirror(TorchDispatchMode):
    """Real CPU tensors, as if they lay on the GPU: each new storage is a malloc of the fake, each one that
    goes is a free.
    """

    def __init__(self, fake: FakeCuda) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                address = storage.data_ptr()
                if address and address not in self.fake.live:
                    self.fake.malloc(storage.nbytes(), address)
                    weakref.finalize(storage, self.fake.free, address)
        return out
