"""Autocast on meta against real autocast: with the CPU's lists, what a model saves for backward is identical
tensor by tensor.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import torch.nn.functional as F  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop  # noqa: E402

from memplan.planner.run.renamed import renamed  # noqa: E402
from memplan.planner.trace.attention import modeled  # noqa: E402
from memplan.planner.trace.autocast import installed  # noqa: E402
from memplan.planner.trace.device.autocast_policies import (  # noqa: E402
    APPENDS_DTYPE,
    LOWER,
    PROMOTES,
    SETS_DTYPE,
    cast_ops,
    policy_of,
)
from memplan.planner.trace.device.composites import as_on_cuda  # noqa: E402
from memplan.planner.trace.device.target import Target  # noqa: E402

FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "num_hidden_layers": 2},
}
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "use_cache": False,
}


def model_of(family, lora, checkpointing, device):
    config = transformers.AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family]})
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager" if family == "gemma2" else "sdpa"
        )
        if lora:
            model = peft.get_peft_model(
                model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
            )
    if checkpointing != "none":
        renamed(model, "activation_checkpointing_enable")({"use_reentrant": checkpointing == "reentrant"})
        if lora:
            model.enable_input_require_grads()
    return model.train()


def grouped_mm(a, b, offs=None, bias=None, out_dtype=None):
    """Its output; torch's own meta kernel refuses the fp32 that its CPU and CUDA kernels take."""
    sizes = {
        (2, 2): (offs.numel(), a.shape[0], b.shape[1]),
        (2, 3): (a.shape[0], b.shape[-1]),
        (3, 2): (a.shape[-2], b.shape[1]),
    }
    return torch.empty(sizes[a.dim(), b.dim()], dtype=out_dtype or a.dtype, device=a.device)


class Answers(TorchDispatchMode):
    """Models ask whether the positions are those of one document: they are."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True
        if func is torch.ops.aten._grouped_mm.default and args[0].is_meta:
            return grouped_mm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def saved_by(model, device, where):
    """Every non-empty tensor saved for backward (shape, dtype) with its count, the bytes of their storages,
    and the gradients' dtypes.
    """
    tensors, storages = Counter(), {}

    def pack(t):
        if t.device.type == device and t.numel():  # torch 2.11 checkpoints an empty tensor of the CPU
            tensors[tuple(t.shape), t.dtype] += 1
            storages[t.untyped_storage()._cdata] = t.untyped_storage()
        return t

    ids = torch.zeros(2, 16, dtype=torch.int64, device=device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), Answers():
        with torch.autocast(where, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    grads = Counter((tuple(p.grad.shape), p.grad.dtype) for p in model.parameters() if p.grad is not None)
    return tensors, sum(s.nbytes() for s in storages.values()), grads, loss.dtype


@pytest.mark.parametrize("checkpointing", ["none", "non_reentrant", "reentrant"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_meta_saves_what_the_real_cpu_saves(family, lora, checkpointing):
    real = saved_by(model_of(family, lora, checkpointing, "cpu"), "cpu", "cpu")
    with installed("cpu"), modeled(Target("cpu")):
        ours = saved_by(model_of(family, lora, checkpointing, "meta"), "meta", "meta")
    assert ours[0] == real[0], f"only real {real[0] - ours[0]}, only meta {ours[0] - real[0]}"
    assert ours[1:] == real[1:]


def linear(dtype=torch.float32, grad=True):
    return torch.empty(8, 8, dtype=dtype, device="meta", requires_grad=grad)


def copies(run):
    """How many casts `run` makes."""

    class Count(TorchDispatchMode):
        casts = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.casts += func is torch.ops.aten._to_copy.default
            return func(*args, **(kwargs or {}))

    with Count() as count:
        run()
    return count.casts


def test_a_weight_is_cast_once_until_the_region_ends():
    w, x = linear(), torch.empty(4, 8, dtype=torch.bfloat16, device="meta")
    with installed("cuda"):
        for _ in range(2):
            with torch.autocast("meta", dtype=torch.bfloat16):
                assert copies(lambda: [F.linear(x, w), F.linear(x, w), x @ w]) == 1
        with torch.autocast("meta", dtype=torch.bfloat16, cache_enabled=False):
            assert copies(lambda: [F.linear(x, w), F.linear(x, w)]) == 2
        with torch.autocast("meta", dtype=torch.bfloat16):
            frozen = linear(grad=False)
            assert copies(lambda: [F.linear(x, frozen), F.linear(x, frozen)]) == 2, (
                "only what trains is cached"
            )
            with torch.no_grad():
                F.linear(x, w)
            assert F.linear(x, w).requires_grad, "a copy made under no_grad serves the gradient too"


def test_cudas_policies():
    half, wide = torch.empty(4, 8, dtype=torch.float16, device="meta"), torch.empty(4, 8, device="meta")
    with as_on_cuda(), installed("cuda"), torch.autocast("meta", dtype=torch.float16):
        assert F.linear(wide, linear()).dtype == torch.float16
        assert torch.einsum("ij,kj->ik", wide, wide).dtype == torch.float16
        assert F.softmax(half, -1).dtype == torch.float32 and half.sum().dtype == torch.float32
        assert F.softmax(half, -1, dtype=torch.float16).dtype == torch.float16, (
            "a dtype that was asked for is kept"
        )
        assert (
            F.layer_norm(half, (8,)).dtype == torch.float32
            and half.pow(2).dtype == torch.float32
            and half.norm().dtype == torch.float32
        )
        assert (
            torch.addcmul(half, half, wide).dtype == torch.float32
            and torch.addcmul(half, half, half).dtype == torch.float16
        )
        assert (half + half).dtype == torch.float16 and F.silu(half).dtype == torch.float16
        assert F.linear(wide.double(), linear().double()).dtype == torch.float64, "doubles are left alone"
        assert F.linear(torch.ones(4, 8), torch.ones(8, 8)).dtype == torch.float32, (
            "real tensors are left alone"
        )
        with torch.autocast("cuda", enabled=False):
            assert F.linear(wide, linear()).dtype == torch.float32
        assert F.linear(wide, linear()).dtype == torch.float16
    assert F.linear(wide, linear()).dtype == torch.float32


def test_libraries_find_the_flags_set():
    with installed("cuda"):
        assert not torch.is_autocast_enabled("meta") and not torch.is_autocast_enabled()
        with torch.autocast("meta", dtype=torch.bfloat16):
            assert (
                torch.is_autocast_enabled()
                and torch.is_autocast_enabled("cuda")
                and torch.is_autocast_enabled("meta")
            )
            assert torch.get_autocast_dtype("cuda") == torch.get_autocast_dtype("meta") == torch.bfloat16
            assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled() and torch.amp.is_autocast_available("meta")
    assert not torch.amp.is_autocast_available("meta")
    with pytest.raises(RuntimeError):
        torch.is_autocast_enabled("meta")


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_runs_under_the_autocast_of_the_forward(reentrant):
    w, x = linear(), torch.empty(4, 8, device="meta", requires_grad=True)
    seen = []

    def body(t):
        out = F.linear(t, w)
        seen.append(out.dtype)
        return out.float()

    with installed("cuda"):
        with torch.autocast("meta", dtype=torch.bfloat16), set_checkpoint_early_stop(False):
            y = checkpoint(body, x, use_reentrant=reentrant)
        y.sum().backward()
    assert seen == [torch.bfloat16] * 2 and x.grad.dtype == torch.float32


def header_list(name):
    text = (Path(torch.__file__).parent / "include/ATen/autocast_mode.h").read_text()
    block = re.search(rf"#define {name}\(_\)(.*?)\n\n", text, re.S).group(1)
    return set(re.findall(r"_\((?:ADD_NS\()?(\w+)", block))


def test_cudas_tables_are_those_of_the_installed_torchs_header():
    known = {name.partition(".")[0] for name in cast_ops("cuda")}
    for policy, macro in (
        ("lower", "LOWER_PRECISION_FP"),
        ("fp32", "FP32"),
        ("sets_dtype", "FP32_SET_OPT_DTYPE"),
        ("appends_dtype", "DIFFERENT_REDISPATCH_SIGNATURE"),
        ("promotes", "PROMOTE"),
    ):
        for op in header_list(f"AT_FORALL_{macro}"):
            assert policy_of("cuda", op) == policy and op in known, f"{op} is {policy} in the header"


def test_every_name_in_the_tables_is_an_op_that_some_device_casts():
    known = {name.partition(".")[0] for device in ("cuda", "cpu") for name in cast_ops(device)}
    tables = LOWER | SETS_DTYPE | APPENDS_DTYPE | PROMOTES["cuda"] | PROMOTES["cpu"]
    optional = {
        "mkldnn_reorder_linear_weight",
        "mkldnn_rnn_layer",
        "cudnn_convolution",
        "cudnn_convolution_transpose",
    }
    assert tables - known <= optional
    assert len(cast_ops("cuda")) > 80 and len(cast_ops("cpu")) > 80
