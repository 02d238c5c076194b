"""What kernels allocate unseen: each rule against a size derived by hand from the source that the rule
cites.
"""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from memplan.planner.tables.cublas import workspace_bytes  # noqa: E402
from memplan.planner.trace.device.kernels_attention import cudnn_workspace, efficient_workspace, flash_splits  # noqa: E402
from memplan.planner.trace.device.kernels_bitsandbytes import fused_gemm_4bit  # noqa: E402
from memplan.planner.trace.device.kernels_products import product  # noqa: E402
from memplan.planner.trace.device.kernels_table import RULES  # noqa: E402
from memplan.planner.trace.device.reduction import buffers  # noqa: E402
from memplan.planner.trace.device.rule import OpCall  # noqa: E402
from memplan.planner.trace.device.target import Target  # noqa: E402
from memplan.planner.trace.kernels import Kernels, UnknownBytes, name_of, schema_name  # noqa: E402

T4, A100, H100, CPU = (
    Target("cuda", (7, 5), 40),
    Target("cuda", (8, 0), 108),
    Target("cuda", (9, 0), 132),
    Target("cpu"),
)
HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
aten = torch.ops.aten


def meta(*shape, dtype=BF16):
    return torch.empty(shape, dtype=dtype, device="meta")


def hidden(target, op, *args, outputs=None):
    """name -> bytes of the hidden allocations of one call, persistent ones left out."""
    outputs = (op(*args),) if outputs is None else outputs
    outputs = outputs[0] if isinstance(outputs[0], tuple) else outputs
    return {h.name: h.nbytes for h in Kernels(target)(op, args, outputs) if not h.persistent}


def test_every_rule_cites_a_source_and_names_an_op():
    for name, rule in RULES.items():
        assert rule.source and name.count("::") == 1, name
        namespace, _, op = name.partition("::")
        if namespace == "aten":
            assert hasattr(torch.ops.aten, op) or hasattr(torch.ops.aten, op.rstrip("_")), (
                f"{name} is no op of the installed torch"
            )


def workspaces(release, bias=None):
    """The workspaces of two products forward and of their backward, in the order in which they are made, on
    an A100 with a release.
    """
    kernels = Kernels(replace(A100, torch=release))
    w = torch.empty(8, 8, device="meta", requires_grad=True)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.extend(
                h
                for h in kernels(func, args, [out] if isinstance(out, torch.Tensor) else [])
                if "workspace" in h.name
            )
            return out

    with Watch():
        x = torch.empty(4, 8, device="meta")
        first = x @ w if bias is None else torch.nn.functional.linear(x, w, bias)
        (first @ w).sum().backward()
    return seen


def test_each_thread_gets_one_workspace_from_its_first_product_on():
    held = [
        (f"cuBLAS workspace of the {thread} thread", 8_519_680, True, False, False)
        for thread in ("main", "autograd")
    ]
    assert (
        workspaces((2, 13))
        == held
        == workspaces((2, 11))
        == workspaces((2, 13), torch.empty(8, device="meta"))
    )


def test_a_fused_bias_has_a_workspace_of_its_own_in_torch_2_11():
    seen = workspaces((2, 11), torch.empty(8, device="meta"))
    assert [(h.name, h.nbytes) for h in seen] == [
        ("cuBLAS workspace of the main thread", 8_519_680),
        ("cuBLASLt workspace of the main thread", 2**20),
        ("cuBLAS workspace of the autograd thread", 8_519_680),
    ]
    for matrix in (
        (meta(4, 8), meta(4, 8), meta(8, 8)),
        (meta(1), meta(4, 8), meta(8, 1)),
        (meta(8), meta(8, 8)),
    ):
        assert product(OpCall(A100, matrix, [])) == "cublas"


def test_workspaces_are_made_and_freed_with_each_product_from_torch_2_15_on():
    seen = workspaces((2, 15), torch.empty(8, device="meta"))
    assert [(h.nbytes, h.persistent) for h in seen] == [(2**20, False)] + 4 * [(8_519_680, False)]


@pytest.mark.parametrize(
    ("capability", "release", "nbytes"),
    [
        ((7, 5), (2, 13), 8_519_680),
        ((8, 9), (2, 11), 8_519_680),
        ((9, 0), (2, 11), 32 * 2**20),
        ((9, 0), (2, 13), 32 * 2**20),
        ((10, 0), (2, 11), 8_519_680),
        ((10, 0), (2, 12), 32 * 2**20),
        ((12, 0), (2, 13), 32 * 2**20),
    ],
)
def test_workspace_by_architecture_and_release(capability, release, nbytes):
    assert workspace_bytes(capability, release) == nbytes


def test_products_copy_operands_that_cublas_cannot_read():
    a, b = meta(64, 32), meta(32, 16)
    assert hidden(A100, aten.mm.default, a, b) == {}
    assert hidden(A100, aten.mm.default, meta(32, 64).t(), b) == {}, "a transpose is read as it is"
    assert hidden(A100, aten.mm.default, meta(1, 1).expand(64, 32), b) == {
        "contiguous copy for cuBLAS": 64 * 32 * 2
    }
    assert hidden(A100, aten.bmm.default, meta(1, 8, 4).expand(3, 8, 4), meta(3, 4, 8)) == {}, (
        "a broadcast batch has stride 0"
    )


def test_softmax_backward_multiplies_first_in_the_products_dtype():
    grad, out = meta(4, 8, 64, 64, dtype=FP32), meta(4, 8, 64, 64, dtype=FP32)
    op = aten._softmax_backward_data.default
    assert hidden(T4, op, grad, out, -1, HALF) == {"grad * output": 4 * 8 * 64 * 64 * 4}
    assert hidden(T4, op, grad.bfloat16(), out.bfloat16(), -1, BF16) == {"grad * output": 4 * 8 * 64 * 64 * 2}
    assert hidden(T4, aten._log_softmax_backward_data.default, grad, out, -1, FP32) == {}


def test_a_safe_softmax_finds_masked_rows_and_sets_them_to_zero_in_place():
    x = meta(2, 4, 8, 8, dtype=FP32)
    found = hidden(A100, aten._safe_softmax.default, x, -1)
    assert found == {"masked elements": 512, "masked rows": 64, "zero": 4}


def test_sums_of_booleans_and_scans_convert_their_input_first():
    """The events of 2.11.0 to 2.14.1 under transformers' fast_all and find_packed_sequence_indices."""
    mask, word = meta(8, 52, dtype=torch.bool), meta(dtype=torch.int64)
    assert hidden(A100, aten.sum.default, mask, outputs=[word]) == {"input in the result's dtype": 8 * 52 * 8}
    assert hidden(A100, aten.all.default, mask, outputs=[meta(dtype=torch.bool)]) == {}
    half = meta(8, 52, dtype=HALF)
    assert hidden(A100, aten.sum.dim_IntList, half, [1], outputs=[meta(8, dtype=FP32)]) == {}
    sums = meta(8, 52, dtype=torch.int64)
    assert hidden(A100, aten.cumsum.default, mask, -1, outputs=[sums]) == {
        "input in the result's dtype": 8 * 52 * 8
    }


def test_index_tensors_of_different_strides_are_made_contiguous():
    """padding_mask[batch_idx, kv_idx] of transformers masking_utils.py: both indices, broadcast."""
    mask, out = meta(8, 52, dtype=torch.bool), meta(8, 1, 1, 52, dtype=torch.bool)
    rows, columns = meta(8, 1, 1, 1, dtype=torch.int64), meta(1, 1, 1, 52, dtype=torch.int64)
    kernels = Kernels(A100)
    made = kernels(aten.index.Tensor, (mask, [rows, columns]), [out])
    assert [(w.nbytes, w.before) for w in made] == [(8 * 52 * 8, True)] * 2
    assert kernels(aten.index.Tensor, (mask, [columns]), [out]) == []
    same = meta(52, dtype=torch.int64)
    assert kernels(aten.index.Tensor, (mask, [same, same]), [out]) == []


def test_grouped_products_take_cutlass_tables_on_hopper_and_blackwell():
    """Asked of torch over stub libraries: H100 67,584 bytes, B200 795,648 or 871,424 by the tile."""
    b200 = Target("cuda", (10, 0), 148)
    for groups, rows, small in ((4, 4096, False), (8, 4096, False), (60, 4096, True), (4, 512, True)):
        args = meta(rows, 256), meta(groups, 256, 512), meta(groups, dtype=torch.int32)
        out = [meta(rows, 512)]
        pointers = {"pointers of the groups": 60 * groups}
        name = "grouped product's workspace"
        op = aten._grouped_mm.default
        assert hidden(H100, op, *args, outputs=out) == pointers | {name: 67_584}
        assert hidden(b200, op, *args, outputs=out) == pointers | {name: 795_648 if small else 871_424}
        assert hidden(A100, op, *args, outputs=out) == {}


def test_flash_attention_with_dropout_makes_a_second_random_state():
    q, op = meta(2, 4, 64, 32, dtype=HALF), aten._scaled_dot_product_flash_attention.default
    assert hidden(A100, op, q, q, q, 0.1, outputs=[q]) == {"random state": 16}


def test_an_accumulating_index_put_sorts_its_indices():
    """The events of 2.11.0 and 2.14.1: four tables of int64, and cub's own two."""
    found = Kernels(A100)(
        aten.index_put.default,
        (meta(4000, 64), [meta(4000, dtype=torch.int64)], meta(4000, 64), True),
        [meta(4000, 64)],
    )
    assert [w.nbytes for w in found] == [32_000] * 4 + [64_000]


def test_dropout_makes_its_mask_first():
    pair = [meta(4, 8), meta(4, 8, dtype=torch.bool)]
    assert list(Kernels(A100).order(aten.native_dropout.default, (pair[0], 0.1, True), pair)) == [1, 0]


def test_partial_norms_come_before_the_norms():
    made = Kernels(A100)(aten._foreach_norm.Scalar, ([meta(8), meta(8)],), [meta(), meta()])
    assert [(w.name, w.before) for w in made] == [("partial norms", True)]


def test_embedding_backward_sorts_beyond_3072_tokens():
    """4,096 indices into 1,000 rows: at most 1,000 segments, and 409 more partial sums of ten rows."""
    op = aten.embedding_dense_backward.default
    small = hidden(A100, op, meta(3, 1024, 64), meta(3, 1024, dtype=torch.int64), 1000, -1, False)
    large = hidden(A100, op, meta(4, 1024, 64), meta(4, 1024, dtype=torch.int64), 1000, -1, False)
    assert small == {}
    assert large == {
        "sorted and original indices": 2 * 4096 * 8,
        "segment tables": (4096 + 2 * 1000 + 1409) * 8,
        "partial sums of embedding gradients": 1409 * 64 * 4,
    }
    wide = hidden(A100, op, meta(8192, 4096), meta(8192, dtype=torch.int64), 128_256, -1, False)
    assert wide["partial sums of embedding gradients"] == (8192 + 819) * 4096 * 4, (
        "each index may be a segment of its own"
    )


def test_embedding_backward_adds_by_atomics_where_few_rows_are_hit_often():
    """Two token types, 8,192 tokens: 2 blocks of 768 threads would have to add 821 partial sums."""
    found = hidden(
        A100,
        aten.embedding_dense_backward.default,
        meta(8192, 768),
        meta(8192, dtype=torch.int64),
        2,
        -1,
        False,
    )
    assert (
        found["segments of partial sums"] == 821 * 8 and found["embedding gradients in fp32"] == 2 * 768 * 4
    )
    assert "partial sums of embedding gradients" not in found


def test_a_column_sum_stages_partial_results_in_global_memory():
    """8192 x 4096 bf16 to 4096: 4-wide vectors, blocks of 32 x 4 threads, grid 32, 54 blocks an output: 4 *
    4096 * 54 * 32 * 4 bytes.
    """
    assert buffers(meta(8192, 4096), [True, False], 4, 108, 2048) == (4 * 4096 * 54 * 32 * 4, 4 * 32)
    assert hidden(A100, aten.sum.dim_IntList, meta(2, 4096, 4096), [0, 1]) == {
        "partial results": 4 * 4096 * 54 * 128,
        "semaphores": 128,
    }


def test_row_reductions_and_small_ones_stay_in_one_block():
    assert hidden(A100, aten.mean.dim, meta(8192, 4096), [-1], True) == {}
    assert hidden(A100, aten.sum.dim_IntList, meta(16, 64), [0]) == {}
    total = hidden(A100, aten.sum.default, meta(8192, 4096))
    assert 0 < total["partial results"] < 64 * 1024, "one output: a few numbers a block"


def test_accumulating_by_index_sorts_the_indices_first():
    zeros, index, values = meta(100, 8), meta(50, dtype=torch.int64), meta(50, 8)
    op = aten.index_put.default
    assert hidden(A100, op, zeros, [index], values, True) == {
        "linear indices": 50 * 8,
        "sorted indices": 50 * 8,
        "their order": 50 * 8,
        "range of indices": 50 * 8,
        "cub's keys and values": 2 * 50 * 8,
    }
    assert hidden(A100, op, zeros, [index], values) == {}, "plain assignment needs no order"
    assert hidden(A100, aten.logsumexp.default, meta(8, 100), [-1]) == {"shifted exponentials": 8 * 100 * 2}


def test_norms_of_a_list_keep_a_partial_per_chunk_of_the_largest_tensor():
    tensors = [meta(1000, 1000), meta(16)]
    assert hidden(A100, aten._foreach_norm.Scalar, tensors, 2, outputs=[meta(1)]) == {
        "partial norms": 2 * 16 * 4
    }


def test_flash_backward_accumulates_dq_in_fp32_and_expands_grouped_heads():
    op = aten._scaled_dot_product_flash_attention_backward.default
    q, kv = meta(2, 8, 100, 80), meta(2, 2, 100, 80)
    grad = meta(2, 100, 8, 80).transpose(1, 2)
    found = hidden(A100, op, grad, q, kv, outputs=[q])
    assert found == {
        "softmax statistics": 2 * 8 * 128 * 4,
        "dQ accumulator": 2 * 128 * 8 * 96 * 4,
        "per-head dK": 2 * 100 * 8 * 80 * 2,
        "per-head dV": 2 * 100 * 8 * 80 * 2,
    }
    assert "contiguous gradient" in hidden(A100, op, meta(2, 8, 100, 80), q, q, outputs=[q])
    assert "contiguous output" not in hidden(A100, op, grad, q, q, q, grad, outputs=[q])
    assert hidden(A100, op, grad, q, q, q, q, outputs=[q])["contiguous output"] == 2 * 8 * 100 * 80 * 2, (
        "an output that lies by heads"
    )


# capability, (B, H, K, S, D, D of values), bytes that a plan of cuDNN 9.19 asked for in forward and backward
CUDNN = [
    ((9, 0), (4, 32, 8, 2048, 128, 128), 256, 269_484_288),
    ((9, 0), (4, 32, 32, 2048, 64, 64), 256, 68_157_696),
    ((9, 0), (2, 9, 3, 513, 64, 64), 256, 4_765_000),
    ((9, 0), (2, 16, 4, 1024, 256, 256), 256, 67_240_192),
    ((9, 0), (2, 16, 16, 1024, 192, 128), 256, 25_297_152),
    ((10, 0), (4, 32, 8, 2048, 128, 128), 0, 269_484_160),
    ((10, 0), (4, 32, 32, 2048, 64, 64), 0, 68_157_440),
    ((10, 0), (1, 8, 8, 128, 80, 80), 0, 659_584),
    ((8, 0), (4, 32, 8, 2048, 128, 128), 0, 403_701_888),
    ((8, 9), (2, 9, 3, 513, 64, 64), 0, 7_161_032),
    ((12, 0), (4, 32, 32, 2048, 64, 64), 0, 135_266_432),
]


@pytest.mark.parametrize(("capability", "shape", "forward", "backward"), CUDNN, ids=str)
def test_cudnns_workspaces_are_what_its_plans_ask_for(capability, shape, forward, backward):
    """Asked of the library itself: plans built from the GPU's properties, without a GPU."""
    batch, heads, groups, rows, size, values = shape
    card = replace(H100, capability=capability)
    q, k, v, o = (
        meta(batch, h, rows, d) for h, d in ((heads, size), (groups, size), (groups, values), (heads, values))
    )
    assert (
        sum(hidden(card, aten._scaled_dot_product_cudnn_attention.default, q, k, v, outputs=[o]).values())
        == forward
    )
    asked = hidden(
        card, aten._scaled_dot_product_cudnn_attention_backward.default, o, q, k, v, o, outputs=[q, k, v]
    )
    assert sum(asked.values()) == backward
    own = cudnn_workspace(capability, 2, q.shape, k.shape, v.shape)
    assert own == backward - batch * heads * rows * (size + 1) * 4


@pytest.mark.parametrize(("batch", "rows", "splits"), [(4, 4096, 1), (1, 2048, 1), (1, 64, 16)])
def test_flash_forward_splits_keys_only_where_blocks_do_not_fill_the_card(batch, rows, splits):
    """1 x 8 heads x 1 block of rows on 216 slots, 4096 keys in 32 blocks of 128: 16 splits give 128 blocks,
    32 give 256 in two waves.
    """
    assert (
        flash_splits(meta(batch, 8, rows, 128), meta(batch, 8, 4096 if rows == 64 else rows, 128), 108)
        == splits
    )


def test_efficient_attentions_workspace_is_dq_in_fp32():
    """S x D in 64 x 64 tiles of fp32 plus 16 bytes each, for every batch and head."""
    assert efficient_workspace((7, 5), True, (2, 8, 256, 256, 64, 64)) == 2 * 8 * 4 * (16 + 64 * 64 * 4)
    assert efficient_workspace((8, 0), True, (2, 8, 256, 256, 128, 128)) == 2 * 8 * 2 * (16 + 128 * 128 * 4)
    assert efficient_workspace((8, 9), True, (2, 8, 256, 256, 96, 96)) == 2 * 8 * 4 * (16 + 128 * 64 * 4)
    small = (
        2 * 8 * (8 * (16 + 64 * 64 * 4) + 4 * 64 * 2 * 128 * 4)
    )  # 4 of at most 12 splits: 64 keys of dK and dV each
    assert efficient_workspace((8, 9), True, (2, 8, 256, 256, 128, 128)) == small, (
        "99 KiB of shared memory hold no 128 x 128 tiles"
    )
    assert efficient_workspace((8, 0), True, (2, 8, 256, 256, 256, 256)) == 2 * 8 * (
        8 * (16 + 128 * 64 * 4) + 4 * 64 * 2 * 256 * 4
    )
    op = aten._scaled_dot_product_efficient_attention_backward.default
    q = meta(2, 8, 256, 64, dtype=HALF)
    found = hidden(T4, op, meta(2, 256, 8, 64, dtype=HALF).transpose(1, 2), q, q, q, outputs=[q])
    assert found == {"delta": 2 * 8 * 256 * 4, "workspace": 2 * 8 * 4 * (16 + 64 * 64 * 4)}


def test_efficient_attention_accumulates_wide_heads_in_fp32_and_keeps_its_random_state():
    op = aten._scaled_dot_product_efficient_attention.default
    q = meta(1, 2, 16, 256, dtype=HALF)
    assert hidden(T4, op, q, q, q, None, True, outputs=[q]) == {"fp32 output accumulator": 2 * 16 * 256 * 4}
    outputs = [q, q, meta(), meta()]

    def made(target, dropout):
        return list(Kernels(target).order(op, (q, q, q, None, True, dropout), outputs))

    for release, places in (((2, 11), [0, 1]), ((2, 12), [0, 1]), ((2, 14), [2, 3, 0, 1])):
        assert made(replace(T4, torch=release), 0.0) == places, release
        assert made(replace(T4, torch=release), 0.1) == [0, 1], "with dropout: on the host"
    assert made(CPU, 0.0) == [0, 1, 2, 3]


def test_gemm_4bit_dequantizes_beyond_the_fused_kernel():
    bnb = pytest.importorskip("bitsandbytes")
    op = torch.ops.bitsandbytes.gemm_4bit.default
    assert bnb is not None
    args = (
        meta(4, 1024, 512),
        meta(512 * 256 // 2, 1, dtype=torch.uint8),
        (256, 512),
        meta(2048, dtype=FP32),
        64,
        "nf4",
    )
    out = [meta(4, 1024, 256)]
    assert hidden(A100, op, *args, outputs=out) == {"dequantized weights": 256 * 512 * 2}
    nested = (*args, None, meta(2048, dtype=torch.uint8))
    assert hidden(A100, op, *nested, outputs=out) == {
        "dequantized absmax": 8192,
        "absmax plus offset": 8192,
        "dequantized weights": 262144,
    }
    assert hidden(A100, op, meta(1, 1, 512), *args[1:], outputs=[meta(1, 1, 256)]) == {}, (
        "one row is served by the fused kernel"
    )
    before = replace(A100, torch=(2, 11))
    library = RULES["bitsandbytes::gemm_4bit"].matmul
    calls = args, (*args, meta(256)), (meta(1, 1, 512), *args[1:])
    assert [library(OpCall(before, call, [])) for call in calls] == ["cublas", "cublaslt", ""], (
        "no product beside the fused kernel"
    )


def test_the_fused_kernels_reach_is_the_librarys_own_rule():
    pytest.importorskip("bitsandbytes")
    rows = (1, 4, 8, 16, 32, 64, 128, 512, 1536, 2048)
    cards = {(7, 5): 40, (8, 0): 108, (9, 0): 132, (10, 0): 148}
    reach = {
        cap: max((m for m in rows if fused_gemm_4bit(cap, sms, HALF, m, 14336, 4096, 64)), default=0)
        for cap, sms in cards.items()
    }
    if not any(reach.values()):
        pytest.skip("this bitsandbytes has no fused kernel")
    assert reach[7, 5] == 128 and reach[9, 0] < 512 and all(most <= 1536 for most in reach.values())
    assert not fused_gemm_4bit((8, 0), 108, HALF, 1, 4096, 4100, 64), "K must be a multiple of the block"


def test_the_cpu_hides_nothing():
    grad = meta(4, 64, 64)
    assert Kernels(CPU)(aten._softmax_backward_data.default, (grad, grad, -1, BF16), [grad]) == []
    assert Kernels(CPU)(aten.mm.default, (meta(4, 4), meta(4, 4)), [meta(4, 4)]) == []


def test_unknown_is_the_default_and_its_share_is_counted():
    kernels = Kernels(A100)
    assert (
        kernels.status(aten.mm.default) == "source"
        and kernels.status(aten._softmax_backward_data.default) == "measured"
    )
    assert kernels.status(aten.view.default) == kernels.status(aten._unsafe_view.default) == "source", (
        "a view allocates nothing"
    )
    assert kernels.status(aten.grid_sampler_2d.default) == "unknown"
    assert kernels.status(aten._scaled_dot_product_cudnn_attention.default) == "source"
    alive = [
        ("aten.mm.default", 600),
        ("aten.grid_sampler_2d.default", 300),
        ("aten._cdist_forward.default", 100),
        ("cuBLAS workspace", 1000),
    ]
    share, rows = UnknownBytes(kernels).share(alive)
    assert share == 0.2 and rows == [("aten::grid_sampler_2d", 300), ("aten::_cdist_forward", 100)]
    assert UnknownBytes(kernels).share([]) == (0.0, [])
    assert (
        name_of(aten.mm.default) == "aten::mm" and schema_name("cuBLAS workspace of the main thread") is None
    )


def test_what_a_sort_of_expert_numbers_allocates():
    """16,384 int64 in one row: a range, and cub's second copy of keys and values. 4,096 are sorted in place,
    2,048 x 8 by rows.
    """
    assert hidden(A100, aten.sort.default, meta(16384, dtype=torch.int64)) == {
        "range of indices": 16384 * 8,
        "cub's keys and values": 16384 * 16,
    }
    assert hidden(A100, aten.sort.default, meta(64, 8192, dtype=FP32)) == {
        "indices and segments, twice": 64 * 8192 * 16,
        "sorted keys": 64 * 8192 * 4,
        "cub's keys and values": 64 * 8192 * 12,
    }
    assert hidden(A100, aten.sort.default, meta(200, 8192, dtype=FP32)) == {
        "ranges of indices": 200 * 8192 * 8,
        "cub's keys and values": 200 * 8192 * 12,
    }
    assert hidden(A100, aten.sort.default, meta(2048, 8, dtype=FP32)) == {"range of indices": 64}


def test_a_router_selects_its_experts_without_scratch():
    assert hidden(A100, aten.topk.default, meta(2048, 128, dtype=FP32), 8) == {}
    assert hidden(A100, aten.topk.default, meta(2, 9000, dtype=FP32), 5000) == {
        "sorted values and indices": 2 * 5000 * (4 + 16)
    }
    for op in (
        aten.topk.default,
        aten.sort.default,
        aten.histc.default,
        aten.kthvalue.default,
        aten.max.default,
        aten._grouped_mm.default,
    ):
        assert Kernels(H100).status(op) == "source"


def test_the_scales_of_4_bit_weights_are_made_before_them():
    op = "bitsandbytes::quantize_4bit"
    pair = [meta(4), meta(4)]
    assert list(Kernels(A100).order(op, (), pair)) == [1, 0] and list(Kernels(CPU).order(op, (), pair)) == [
        0,
        1,
    ]
    assert list(Kernels(A100).order("bitsandbytes::int8_vectorwise_quant", (), pair)) == [1, 0], (
        "no outlier columns, no third output"
    )
