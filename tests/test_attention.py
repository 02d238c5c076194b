"""Which attention backend CUDA takes, and that its op's tensors are what autograd then saves, on meta."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch.nn.functional as F  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from memplan.planner.run.attention import implementation, on_device
from memplan.planner.tables.errors import UsageError  # noqa: E402
from memplan.planner.trace.attention import modeled, packages  # noqa: E402
from memplan.planner.trace.device import flash2  # noqa: E402
from memplan.planner.trace.device.composites import as_on_cuda  # noqa: E402
from memplan.planner.trace.device.sdp import AttentionCall, choose, reason  # noqa: E402
from memplan.planner.trace.device.target import Target  # noqa: E402

T4, A100, CPU = Target("cuda", (7, 5), 40), Target("cuda", (8, 0), 108), Target("cpu")
RTX4090, H100, B200 = Target("cuda", (8, 9), 128), Target("cuda", (9, 0), 132), Target("cuda", (10, 0), 148)
HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


def tensor(heads=8, size=64, dtype=BF16, rows=128, batch=2, grad=True, device="meta"):
    return torch.empty(batch, heads, rows, size, dtype=dtype, device=device, requires_grad=grad)


def mask(*shape):
    return torch.empty(shape or (2, 1, 128, 128), dtype=torch.bool, device="meta")


@pytest.mark.parametrize(
    ("target", "dtype", "size", "masked", "expected"),
    [
        (T4, HALF, 64, False, "efficient"),  # flash needs sm80
        (T4, BF16, 64, False, "math"),  # no bf16 kernel before sm80
        (T4, FP32, 64, False, "efficient"),
        (T4, HALF, 60, False, "math"),  # 60 is no multiple of 8
        (T4, FP32, 61, False, "efficient"),  # fp32 without tensor cores aligns to 1
        (A100, BF16, 64, False, "flash"),
        (A100, BF16, 61, False, "flash"),  # padded to 64
        (A100, BF16, 256, False, "flash"),
        (A100, BF16, 264, False, "efficient"),
        (A100, BF16, 64, True, "efficient"),  # flash takes no mask
        (A100, FP32, 64, False, "efficient"),
        (A100, FP32, 62, False, "math"),
        (RTX4090, BF16, 200, False, "efficient"),  # flash has no backward there between 192 and 224
        (RTX4090, BF16, 256, False, "flash"),
        (H100, BF16, 64, False, "cudnn"),
        (H100, BF16, 64, True, "cudnn"),
        (H100, BF16, 256, False, "cudnn"),  # the limit is 256 on Hopper
        (H100, BF16, 256, True, "cudnn"),
        (H100, BF16, 264, True, "efficient"),
        (B200, BF16, 128, True, "cudnn"),
        (B200, BF16, 256, False, "flash"),
        (H100, FP32, 64, False, "efficient"),
    ],
)
def test_the_backend_that_cuda_takes(target, dtype, size, masked, expected):
    q = tensor(size=size, dtype=dtype)
    assert choose(AttentionCall(target, q, q, q, mask() if masked else None)) == expected


def test_grouped_heads_need_a_backend_that_takes_them():
    q, kv = tensor(8), tensor(2)
    assert choose(AttentionCall(A100, q, kv, kv, gqa=True)) == "flash"
    assert choose(AttentionCall(A100, q, kv, kv, gqa=False)) == "math", "unequal heads without enable_gqa"
    q, kv = tensor(8, dtype=HALF), tensor(2, dtype=HALF)
    for release, backend in (((2, 11), "math"), ((2, 13), "math"), ((2, 14), "efficient")):
        asked = replace(T4, torch=release)
        assert choose(AttentionCall(asked, q, kv, kv, gqa=True)) == backend, release


def test_what_a_training_call_asks_beyond_inference():
    with torch.no_grad():
        q = tensor(size=200)
        assert choose(AttentionCall(RTX4090, q, q, q)) == "flash"
    q = tensor(size=256)
    assert choose(AttentionCall(RTX4090, q, q, q, dropout=0.1)) == "efficient"
    now, before = (replace(H100, torch=release) for release in ((2, 12), (2, 11)))
    assert choose(AttentionCall(now, tensor(), tensor(), tensor(), dropout=0.1)) == "flash", (
        "cuDNN's dropout has steps of 1/16"
    )
    assert choose(AttentionCall(before, tensor(), tensor(), tensor(), dropout=0.1)) == "cudnn", (
        "which torch 2.11 did not ask"
    )
    short, long = tensor(rows=64), tensor(rows=128)
    assert choose(AttentionCall(A100, short, long, long, causal=True)) == "efficient", (
        "flash aligns a causal mask to the other corner"
    )


def test_a_forced_backend_runs_or_is_refused_with_a_reason():
    q = tensor(dtype=HALF)
    call = AttentionCall(T4, q, q, q)
    assert choose(call, "math") == "math" and choose(call, "flash") is None
    assert reason(call, "flash") == "ampere_to_blackwell"
    message = "sdpa-flash cannot run here.*ampere_to_blackwell.*compute capability 7.5"
    with modeled(T4, "sdpa-flash"), pytest.raises(UsageError, match=message):
        F.scaled_dot_product_attention(q, q, q)


class Outputs(TorchDispatchMode):
    """The ops that ran and the storages that they made."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def saved(run):
    """Bytes saved for backward, by storage, and the ops that ran."""
    found, ops = {}, Outputs()

    def pack(t):
        found[t.untyped_storage()._cdata] = (t.untyped_storage(), t.untyped_storage().nbytes())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), ops:
        out = run()
    return sum(nbytes for _, nbytes in found.values()), ops.ops, out


def test_no_backend_but_math_saves_the_scores():
    B, H, S, D = 2, 8, 128, 64
    rows = B * H * S
    expected = {
        T4: 4 * rows * D * 2
        + rows * 4
        + 16,  # q, k, v, out; statistics (128 is a multiple of 32); seed and offset
        A100: 4 * rows * D * 2 + rows * 4 + 24,  # the random state is two numbers
        H100: 4 * rows * D * 2 + rows * 4 + 16,
    }
    for target, nbytes in expected.items():
        q, k, v = (tensor(dtype=HALF) for _ in range(3))
        with modeled(target):
            assert (
                saved(lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True))[0]
                == nbytes
            ), target
    q, k, v = (tensor(dtype=HALF) for _ in range(3))
    with modeled(T4, "sdpa-math"):
        assert saved(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))[0] > B * H * S * S * 4


OPTIONS = [
    {"is_causal": True},
    {"attn_mask": "mask"},
    {"enable_gqa": True},
    {"dropout_p": 0.1, "scale": -0.5},
    {},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [HALF, FP32])
def test_the_math_path_is_torchs_own(options, dtype):
    """Same tensors saved and same gradients as the composite that torch runs on meta by itself, where no
    dispatch mode watches.
    """
    found = []
    options = {**options, **({"attn_mask": mask()} if options.get("attn_mask") else {})}
    for context in (nullcontext(), modeled(T4, "sdpa-math")):
        q, k, v = (
            tensor(heads, dtype=dtype) for heads in ((8, 2, 2) if options.get("enable_gqa") else (8, 8, 8))
        )
        shapes = []

        def pack(t, shapes=shapes):
            shapes.append((tuple(t.shape), t.dtype))
            return t

        with context, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = F.scaled_dot_product_attention(q, k, v, **options)
        out.sum().backward()
        found.append((sorted(map(str, shapes)), out.dtype, tuple(k.grad.shape)))
    assert found[0] == found[1]


def test_a_boolean_mask_becomes_an_additive_one_of_the_querys_dtype():
    q = tensor(rows=100, dtype=HALF)
    with modeled(A100):
        _, ops, _ = saved(lambda: F.scaled_dot_product_attention(q, q, q, attn_mask=mask(2, 1, 100, 100)))
    assert "aten::where" in ops and "aten::constant_pad_nd" in ops, "100 keys are padded to a stride of 104"
    q = tensor(dtype=HALF)
    with modeled(A100):
        _, ops, _ = saved(lambda: F.scaled_dot_product_attention(q, q, q, attn_mask=mask()))
    assert "aten::where" in ops and "aten::constant_pad_nd" not in ops


def test_real_tensors_and_what_follows_are_untouched():
    real = F.scaled_dot_product_attention
    q = torch.randn(1, 2, 4, 8)
    with modeled(A100):
        inside = F.scaled_dot_product_attention(q, q, q)
    assert F.scaled_dot_product_attention is real and torch.equal(inside, real(q, q, q))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_on_cpu_what_is_saved_equals_the_real_cpu(dropout, dtype, masked, kv_heads):
    """Same bytes saved and same backend as the real CPU, on the installed torch."""

    def run(device):
        q = torch.zeros(2, 8, 16, 32, dtype=dtype, device=device, requires_grad=True)
        k, v = (
            torch.zeros(2, kv_heads, 16, 32, dtype=dtype, device=device, requires_grad=True) for _ in range(2)
        )
        m = torch.ones(2, 1, 16, 16, dtype=torch.bool, device=device) if masked else None
        options = {"attn_mask": m, "dropout_p": dropout, "is_causal": not masked, "enable_gqa": kv_heads < 8}
        return saved(lambda: F.scaled_dot_product_attention(q, k, v, **options))

    nbytes, ops, _ = run("cpu")
    with modeled(CPU):
        on_meta, meta_ops, _ = run("meta")
    assert on_meta == nbytes
    assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in meta_ops) == (
        "aten::_scaled_dot_product_flash_attention_for_cpu" in ops
    )


def test_composite_ops_take_cudas_branch_within_and_their_own_outside():
    x = tensor(dtype=HALF)
    with as_on_cuda():
        assert "aten::_to_copy" not in saved(lambda: F.softmax(x, -1, dtype=FP32))[1], (
            "half_to_float is one kernel"
        )
        assert "aten::_to_copy" in saved(lambda: F.softmax(tensor(), -1, dtype=FP32))[1], "for fp16 only"
        assert saved(lambda: F.dropout(x, 0.1))[0] == x.numel(), "one byte an element"
        assert saved(lambda: F.rms_norm(x, (64,)))[0] == x.numel() * 2 + x.numel() // 64 * 4, (
            "the input, and a number a row"
        )
        assert saved(lambda: F.softmax(torch.zeros(4), -1))[2].sum() == 1, "real tensors are untouched"
    assert saved(lambda: F.dropout(x, 0.1))[0] >= x.numel() * 2
    assert "aten::_to_copy" in saved(lambda: F.softmax(x, -1, dtype=FP32))[1]


def test_names_for_transformers():
    assert implementation("sdpa-efficient") == "sdpa" and implementation("eager") == "eager"
    assert implementation("flash_attention_2") == "flash_attention_2"
    with on_device("sdpa-math"):
        assert torch.backends.cuda.math_sdp_enabled() and not torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("attention", ["sdpa-efficient", "sdpa-cudnn", "sdpa-math", "sdpa-flash"])
def test_the_cpu_takes_a_forced_backend_where_torch_does(attention):
    def attends(device):
        q = tensor(dtype=FP32, device=device)
        with modeled(CPU, attention), on_device(attention) if device == "cpu" else nullcontext():
            return F.scaled_dot_product_attention(q, q, q)

    try:
        real = attends("cpu").grad_fn.name()
    except RuntimeError:
        with pytest.raises(UsageError, match="cannot run on the CPU"):
            attends("meta")
    else:
        assert attends("meta").grad_fn.name().startswith("ScaledDotProductFlash") == real.startswith(
            "ScaledDotProductFlash"
        )


# ---- FlashAttention-2 --------------------------------------------------------------------------------------


def heads_last(heads=8, size=64, rows=100, batch=2):
    return torch.empty(batch, rows, heads, size, dtype=BF16, device="meta", requires_grad=True)


def test_flash_attention_2_saves_inputs_output_and_statistics_and_accumulates_dq_in_fp32():
    B, H, K, S, D = 2, 8, 2, 100, 64
    q, k, v = heads_last(H), heads_last(K), heads_last(K)
    nbytes, _, out = saved(lambda: flash2.flash_attn_func(q, k, v))
    assert tuple(out.shape) == (B, S, H, D)
    assert nbytes == (2 * B * H * S * D + 2 * B * K * S * D) * 2 + B * H * S * 4 + 16
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.dtype == FP32:
                sizes.append(tuple(made.shape))
            return made

    with Sizes():
        out.sum().backward()
    assert (B, 128, H, D) in sizes and (B, H, 128) in sizes


def test_flash_attention_2_pads_head_sizes_to_eights_and_takes_them_up_to_256():
    q = heads_last(size=60)
    nbytes, _, out = saved(lambda: flash2.flash_attn_func(q, q, q))
    assert nbytes == 4 * 2 * 100 * 8 * 64 * 2 + 2 * 8 * 100 * 4 + 16 and out.shape == q.shape, (
        "three padded inputs and the output"
    )
    out.sum().backward()
    assert q.grad.shape == q.shape
    with pytest.raises(UsageError, match="head sizes up to 256, found 264"):
        flash2.flash_attn_func(*[heads_last(size=264)] * 3)


class Searching(TorchDispatchMode):
    """What the trace's observer answers to a search through values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = (
            flash2.nonzero(func, args, kwargs) if func is torch.ops.aten.nonzero.default else NotImplemented
        )
        found = 0 if func is torch.ops.aten._local_scalar_dense.default else found
        return func(*args, **(kwargs or {})) if found is NotImplemented else found


def attends(mask, position_ids):
    from transformers.integrations.flash_attention import flash_attention_forward

    module = torch.nn.Linear(2, 2, dtype=BF16, device="meta")
    module.config, module.is_causal = type("Config", (), {"_attn_implementation": "flash_attention_2"}), True
    q = tensor(batch=1, rows=96)
    with Searching():
        _, ops, out = saved(
            lambda: flash_attention_forward(module, q, q, q, mask, position_ids=position_ids)[0]
        )
    return ops, out


def test_transformers_unpads_and_packs_around_flash_attention_2():
    positions = torch.zeros(1, 96, dtype=torch.int64, device="meta")
    with modeled(A100, "flash_attention_2", padding=12):
        ops, out = attends(torch.ones(1, 96, dtype=torch.bool, device="meta"), positions)
    assert tuple(out.shape) == (1, 96, 8, 64) and "aten::index" in ops
    with modeled(A100, "flash_attention_2", documents=3):
        ops, out = attends(None, positions)
    assert tuple(out.shape) == (1, 96, 8, 64) and ops.count("aten::clone") == 3, (
        "transposed views are made contiguous to be flattened"
    )
    with modeled(A100, "flash_attention_2"):
        assert "aten::clone" not in attends(None, positions)[0]
    assert (flash2.TOKENS.padding, flash2.TOKENS.documents, flash2.TOKENS.found) == (0, 1, None)


def test_what_flash_attention_2_needs_is_gone_afterwards():
    from transformers import modeling_flash_attention_utils as utils

    before = {name: value for name, value in vars(utils).items() if not name.startswith("__")}
    available = utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]["general_availability_check"]
    with packages("flash_attention_2"):
        assert utils._flash_fn is flash2.flash_attn_func
    assert {name: value for name, value in vars(utils).items() if not name.startswith("__")} == before
    assert utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]["general_availability_check"] is available
