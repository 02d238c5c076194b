"""What the kernels of towers take, against torch's own CUDA code, and where cuDNN could matter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from test_kernels import A100, BF16, FP32, Kernels, aten, hidden, meta  # noqa: E402

from memplan.planner.allocator.replay import replay  # noqa: E402
from memplan.planner.inputs.setup import resolve  # noqa: E402
from memplan.planner.trace.events.log import ALLOC, FREE, Log, Storage  # noqa: E402
from memplan.planner.trace.events.unseen import unseen, with_reach  # noqa: E402

MIB = 2**20


def test_pictures_are_put_in_place_by_a_running_sum() -> None:
    """2 x 1,024 x 2,048 in bfloat16: what a dry run of torch 2.14 asks for beside the result is 33,554,432,
    4,194,304 and cub's 76,031 bytes.
    """
    rows, mask = meta(2, 1024, 2048), meta(2, 1024, 1, dtype=torch.bool).expand(2, 1024, 2048)
    source = meta(512, 2048)
    found = hidden(A100, aten.masked_scatter.default, rows, mask, source)
    assert found == {"running sum of the mask": 33554432, "contiguous mask": 4194304}
    whole = hidden(A100, aten.masked_scatter.default, rows, mask.contiguous(), source)
    assert whole == {"running sum of the mask": 33554432}


def test_their_gradients_are_selected_by_indices() -> None:
    """An int64 for each of three dimensions; the mask's copy is 4 MiB, the result 2 MiB."""
    rows, mask = meta(2, 1024, 2048), meta(2, 1024, 1, dtype=torch.bool).expand(2, 1024, 2048)
    found = hidden(
        A100, aten.masked_scatter_backward.default, rows, mask, [512, 2048], outputs=(meta(512, 2048),)
    )
    assert found["indices of masked elements"] == 3 * 8 * 512 * 2048
    assert found["contiguous mask"] == 4194304 - 2 * 512 * 2048


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_a_convolution_of_patches_reaches_no_further_than_copies_and_columns(dtype: torch.dtype) -> None:
    """Kernel and stride are one: the columns are the input."""
    source, weight = meta(2, 3, 896, 896, dtype=dtype), meta(1152, 3, 14, 14, dtype=dtype)
    out = meta(2, 1152, 64, 64, dtype=dtype)
    kernels = Kernels(A100)
    args = (source, weight, None, [14, 14], [0, 0], [1, 1], False, [0, 0], 1)
    assert not kernels(aten.convolution.default, args, (out,))
    each = 4 * (2 * source.numel() + weight.numel() + out.numel())
    assert kernels.reach(aten.convolution.default, args, (out,)) == each
    backward = (out, source, weight, [1152], [14, 14], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False])
    assert kernels.reach(aten.convolution_backward.default, backward, (source, weight)) == each
    assert kernels.status(aten.convolution.default) == "library"
    assert kernels.reach(aten.mm.default, (meta(8, 8), meta(8, 8)), (meta(8, 8),)) == 0


def test_fourier_transforms_are_for_a_stride_of_one() -> None:
    """Whisper's two convolutions, of stride 1 and 2; and a kernel to each channel, which is torch's own."""
    kernels, source = Kernels(A100), meta(4, 80, 3000)

    def reach(source: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> int:
        out = meta(4, weight.shape[0], source.shape[2] // stride)
        args = (source, weight, None, [stride], [1], [1], False, [0], groups)
        return kernels.reach(aten.convolution.default, args, (out,))

    weight = meta(768, 80, 3)
    plain = 4 * (4 * 3000 * 240 + source.numel() + weight.numel() + 4 * 768 * 3000)
    assert reach(source, weight, 1) == plain + 8 * 3000 * (768 * 80 + 4 * (80 + 768))
    assert reach(source, weight, 2) < plain
    assert reach(meta(4, 512, 3000), meta(512, 1, 4), 1, 512) == 0


def log_of(*steps: tuple[str, int, int, int]) -> Log:
    """A log of (kind, storage, MiB, reach in MiB)."""
    log = Log()
    for kind, sid, size, reach in steps:
        if kind == ALLOC:
            made = Storage(sid, size * MIB, "op", "tower", None, (), "uint8", "forward", len(log.events))
            made.reach = reach * MIB
            log.storages.append(made)
        log.events.append((kind, sid, size * MIB))
    return log


def test_room_is_what_lies_between_a_call_and_the_peak() -> None:
    """40 MiB at the call, 100 at the peak: 60 do not move it, but 30 stay cached."""
    setup = resolve({})
    log = log_of((ALLOC, 0, 30, 0), (ALLOC, 1, 10, 30), (ALLOC, 2, 60, 0), (FREE, 2, 60, 0))
    found = unseen(log, setup, replay(log.events))
    assert found is not None and (found.room, found.reach) == (60 * MIB, 30 * MIB)
    assert not found.moves_peak and "exact unless one takes more than" in found.said()
    assert len(with_reach(log)) == len(log.events) + 2
    assert found.reserved == (100 * MIB, 130 * MIB), "30 cached do not serve 60"
    assert found.to_document()["reserved_share"] == pytest.approx(0.3)


def test_a_call_at_the_peak_makes_a_lower_bound() -> None:
    log = log_of((ALLOC, 0, 30, 0), (ALLOC, 1, 10, 30), (ALLOC, 2, 20, 0))
    found = unseen(log, resolve({}), replay(log.events))
    assert found is not None and found.moves_peak and found.room == 20 * MIB
    assert unseen(log_of((ALLOC, 0, 30, 0)), resolve({}), replay([(ALLOC, 0, 30)])) is None
