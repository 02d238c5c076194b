"""One rank under FSDP2 against torch's own `fully_shard`, wrapped by accelerate, on a fake process group: no
second process, no network.

A dispatch mode samples every storage alive before and after each operation. The formula must say the same
number of bytes for parameters, gradients and optimizer states, and the same peak of each moment, up to three
tensors that are not FSDP's (named below).
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Prediction
from memplan.planner.run.renamed import renamed
from memplan.planner.tables.errors import UsageError

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

B, S, RANK = 2, 16, 4
AXES = ("dp_replicate", "dp_shard_cp")  # accelerate 1.15 parallelism_config.py fsdp_dim_names
TARGETS = ("q_proj", "k_proj", "down_proj")
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1003,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
TIED = {**LLAMA, "tie_word_embeddings": True}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 60,
    "n_layer": 5,
    "n_head": 4,
    "vocab_size": 1003,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
MODELS = {"llama": LLAMA, "tied llama": TIED, "gpt2": GPT2}
# What the real step holds and a plain step holds too: the padded labels in the loss's frame, position ids
# that a checkpoint keeps; and what FSDP's output_dtype does to the loss: bfloat16, where ours is float32,
# twice.
PADDED_LABELS, POSITIONS, LOSS = 8 * B * (S + 1), 8 * S, -4


def observer() -> Any:
    """A dispatch mode that knows every storage that it has seen, and the most bytes alive in each moment."""
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Sampler(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.storages: dict[int, Any] = {}
            self.peaks: dict[str, int] = {}
            self.moment = ""

        def note(self, value: object) -> None:
            if isinstance(value, torch.Tensor):
                storage = getattr(value, "_local_tensor", value).untyped_storage()
                self.storages.setdefault(storage._cdata, StorageWeakRef(storage))

        def sample(self) -> None:
            if not self.moment:
                return
            total = 0
            for key, reference in list(self.storages.items()):
                storage = (
                    None if reference.expired() else torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
                )
                if storage is None:
                    del self.storages[key]
                else:
                    total += storage.nbytes()
            self.peaks[self.moment] = max(total, self.peaks.get(self.moment, 0))

        def __torch_dispatch__(self, func: Any, types_: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                self.note(leaf)
            if not func.is_view and func.namespace != "profiler":
                self.sample()
            return out

    return Sampler()


@pytest.fixture
def ranks() -> Iterator[Any]:
    """Makes this process rank 0 of N, the others imaginary."""
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda count: distributed.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    distributed.destroy_process_group()
    torch.set_num_threads(before)


def shard(model: Any, mixed: bool, reshards: bool, replicas: int = 1) -> Any:
    """The model as accelerate shards it, over the ranks of one replica."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.device_mesh import init_device_mesh

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=reshards,
        cpu_ram_efficient_loading=False,
        activation_checkpointing=False,
    )
    if mixed:
        plugin.set_mixed_precision("bf16")
    mesh = None
    if replicas > 1:
        world = torch.distributed.get_world_size()
        mesh = init_device_mesh("cpu", (replicas, world // replicas), mesh_dim_names=AXES)
    state = types.SimpleNamespace(fsdp_plugin=plugin)
    accelerator = types.SimpleNamespace(
        state=state,
        torch_device_mesh=mesh,
        parallelism_config=types.SimpleNamespace(fsdp_dim_names=AXES),
        mixed_precision="bf16" if mixed else "no",
        is_main_process=False,
        device=torch.device("cpu"),
    )
    return fsdp2_prepare_model(accelerator, model)


def real(
    config: Mapping[str, Any],
    *,
    method: str,
    mixed: bool,
    checkpointing: bool,
    reshards: bool,
    accumulation: int,
    replicas: int,
) -> Any:
    """(observer, model, optimizer) after two steps, gradients of the second still there."""
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config), dtype=torch.bfloat16, attn_implementation="eager"
    ).train()
    model.config.use_cache = False
    if method == "lora":
        import peft

        model = peft.get_peft_model(
            model, peft.LoraConfig(r=RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        )
    if checkpointing:
        renamed(model, "activation_checkpointing_enable")({"use_reentrant": False})
        if method == "lora":
            model.enable_input_require_grads()
    model = shard(model, mixed, reshards, replicas)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    ids = torch.randint(0, config["vocab_size"], (B, S))
    batch = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones(B, S, dtype=torch.int64)}
    waiting = [
        tensor.clone() for _ in range(accumulation - 1) for tensor in batch.values()
    ]  # the Trainer has them all at once
    watch = observer()
    for tensor in (*model.parameters(), *model.buffers(), *batch.values(), *waiting):
        watch.note(tensor)
    with watch:
        for step in range(2):
            optimizer.zero_grad()
            for micro in range(accumulation):
                last = micro == accumulation - 1
                model.set_requires_gradient_sync(last)
                watch.moment = "forward" if last and step else ""
                loss = model(**batch).loss
                watch.moment = "backward" if last and step else ""
                loss.backward()
                del loss
            watch.moment = "optimizer_step" if step else ""
            optimizer.step()
            watch.sample()
            watch.moment = ""
    return watch, model, optimizer


def predicted(config: Mapping[str, Any], ranks: int, **fields: Any) -> Prediction:
    setup = resolve(
        {
            "gpus": ranks,
            "parallel": "fsdp",
            "device": "cpu",
            "micro_batch": B,
            "sequence_length": S,
            "rank": RANK,
            "attention": "eager",
            "targets": TARGETS,
            **fields,
        }
    )
    return plan(find(config).spec(), setup)


CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "full": ("llama", 2, {}),
    "full, a size that 3 does not divide": ("llama", 3, {}),
    "checkpointing on 8": ("llama", 8, {"checkpointing": True}),
    "tied": ("tied llama", 3, {}),
    "gpt2": ("gpt2", 8, {}),
    "no mixed precision": ("llama", 3, {"mixed": False}),
    "parameters kept after the forward": ("llama", 2, {"reshards": False}),
    "gradient accumulation": ("llama", 3, {"accumulation": 2}),
    "replicas": ("llama", 3, {"replicas": 2}),
    "replicas without mixed precision": ("llama", 2, {"replicas": 2, "mixed": False}),
    "replicas, gradient accumulation, adapters": (
        "tied llama",
        2,
        {"replicas": 2, "accumulation": 2, "method": "lora", "checkpointing": True},
    ),
    "lora": ("llama", 2, {"method": "lora"}),
    "lora with checkpointing, rank and ranks that do not divide": (
        "tied llama",
        3,
        {"method": "lora", "checkpointing": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_a_rank_holds_what_fully_shard_makes_it_hold(name: str, ranks: Any):
    model_name, count, given = CASES[name]
    case = {
        "method": "full",
        "mixed": True,
        "checkpointing": False,
        "reshards": True,
        "accumulation": 1,
        "replicas": 1,
        **given,
    }
    ranks(count * case["replicas"])
    watch, model, optimizer = real(MODELS[model_name], **case)
    checkpointed = case["checkpointing"]
    found = predicted(
        MODELS[model_name],
        count,
        method=case["method"],
        autocast="bfloat16" if case["mixed"] else "none",
        checkpointing="non_reentrant" if checkpointed else "none",
        gradient_accumulation=case["accumulation"],
        reshard_after_forward=case["reshards"],
        replicas=case["replicas"],
    )

    parameters = {
        p._local_tensor.untyped_storage()._cdata: p._local_tensor.untyped_storage().nbytes()
        for p in model.parameters()
    }
    buffers = {b.untyped_storage()._cdata: b.untyped_storage().nbytes() for b in model.buffers()}
    gradients = {
        p.grad._local_tensor.untyped_storage()._cdata: p.grad._local_tensor.untyped_storage().nbytes()
        for p in model.parameters()
        if p.grad is not None
    }
    states = [
        getattr(value, "_local_tensor", value)
        for state in optimizer.state.values()
        for value in state.values()
    ]
    components = found.moment("optimizer_step").components
    assert components["weights"] == sum(parameters.values()) + sum(buffers.values())
    assert components["gradients"] == sum(gradients.values())
    assert components["optimizer_states"] == sum(s.untyped_storage().nbytes() for s in states)

    if model_name == "gpt2":  # its eager attention has its own differences on a CPU, sharded or not
        return
    kept = POSITIONS * checkpointed
    loss = LOSS * case["mixed"]
    peaks = {
        moment: found.moment(moment).allocated_bytes for moment in ("forward", "backward", "optimizer_step")
    }
    assert watch.peaks["forward"] - peaks["forward"] == PADDED_LABELS + kept
    assert watch.peaks["backward"] - peaks["backward"] == loss + kept
    assert watch.peaks["optimizer_step"] == peaks["optimizer_step"]


def quantized(storage: str) -> Any:
    """A tiny Llama as from_pretrained leaves it for QLoRA: linear layers in 4 bits on the device, adapters on
    top.
    """
    import bitsandbytes as bnb
    import peft

    made = getattr(torch, storage)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**LLAMA), dtype=torch.bfloat16
    )
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, torch.nn.Linear):
            parent, _, child = name.rpartition(".")
            new = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, quant_type="nf4", quant_storage=made
            )
            given = bnb.nn.Params4bit(
                module.weight.data, requires_grad=False, quant_type="nf4", quant_storage=made, module=new
            )
            new.weight = given.to("cpu")  # which quantizes
            setattr(model.model.layers.get_submodule(parent), child, new)
    return peft.get_peft_model(
        model, peft.LoraConfig(r=RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    )


def tensors_of(model: Any) -> Iterator[Any]:
    """Parameters, buffers, and the constants of 4-bit weights, which are neither."""
    yield from (*model.parameters(), *model.buffers())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


@pytest.mark.parametrize("storage, count", [("bfloat16", 2), ("bfloat16", 3), ("uint8", 2)])
@pytest.mark.filterwarnings("ignore")
def test_a_quantized_model_is_whole_beside_its_parts_while_it_is_cut(storage: str, count: int, ranks: Any):
    pytest.importorskip("bitsandbytes")
    ranks(count)
    model, watch = quantized(storage), observer()
    for tensor in tensors_of(model):
        watch.note(tensor)
    watch.moment = "whole"
    watch.sample()
    state = model.state_dict()
    # what a state dict makes anew, and accelerate's keeps: a copy of the inner code and the packed rest of
    # each 4-bit weight's constants
    made = sum(
        state[key].nbytes for key in state if key.endswith("nested_quant_map") or "bitsandbytes__" in key
    )
    del state
    made += 4 * count * (LLAMA["num_hidden_layers"] + 3)  # each unit's table of ranks, on the host
    watch.moment = "load_peak"
    with watch:
        model = shard(model, True, True)
    found = predicted(LLAMA, count, method="qlora", quant_storage=storage, kbit_prepare=False)
    peak = found.moment("load_peak")
    assert peak.components["weights"] == watch.peaks["whole"]
    assert peak.allocated_bytes == watch.peaks["load_peak"] - made


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW", "PagedAdamW8bit", "PagedAdamW32bit", "AdEMAMix8bit"])
@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes_optimizers_cannot_step_sharded_tensors(name: str, ranks: Any):
    """What sharding.py refuses: bitsandbytes and torch refuse it too."""
    bnb = pytest.importorskip("bitsandbytes")
    ranks(2)
    config = transformers.AutoConfig.for_model(**LLAMA)
    model = shard(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), True, True)
    optimizer = getattr(bnb.optim, name)(model.parameters())
    ids = torch.randint(0, config.vocab_size, (B, S))
    model(input_ids=ids, labels=ids).loss.backward()
    with pytest.raises((RuntimeError, NotImplementedError), match="DTensor|sharding strategy"):
        optimizer.step()
    with pytest.raises(UsageError, match="cannot step under FSDP2.*fsdp1"):
        predicted(LLAMA, 2, optimizer="adamw_bnb_8bit")
    assert predicted(LLAMA, 2, optimizer="adamw_bnb_8bit", fsdp_version=1).peak.allocated_bytes > 0


def test_more_ranks_hold_less_each_until_what_is_gathered_remains():
    sizes = [
        predicted({**LLAMA, "hidden_size": 512}, count, method="full").peak.allocated_bytes
        for count in (2, 4, 8, 64)
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]


@pytest.mark.parametrize("method", ["full", "lora", "freeze"])
@pytest.mark.parametrize("checkpointing", ["none", "non_reentrant", "reentrant"])
def test_no_row_is_negative_and_rows_add_up_at_any_depth(method: str, checkpointing: str):
    for depth in (2, 3, 5, 9, 40):
        found = predicted(
            {**LLAMA, "num_hidden_layers": depth}, 3, method=method, checkpointing=checkpointing
        )
        for moment in found.moments:
            assert all(row.bytes > 0 and row.count > 0 for row in moment.rows), [
                row for row in moment.rows if row.count <= 0
            ]


def test_a_deep_model_costs_a_layer_more_each_time():
    """The repeated layers are walked once: every further one adds the same to each moment."""
    for method in ("full", "lora"):
        totals = [
            [
                m.allocated_bytes
                for m in predicted({**LLAMA, "num_hidden_layers": depth}, 3, method=method).moments
            ]
            for depth in (9, 10, 11)
        ]
        assert [b - a for a, b in zip(totals[0], totals[1], strict=True)] == [
            b - a for a, b in zip(totals[1], totals[2], strict=True)
        ]


def test_one_rank_after_another_finds_the_tensors_of_its_own_load():
    """A load is kept for what is equal to it; a rank looks its tensors up by identity, one rank too."""
    found = [
        plan(
            find("llama-3.2-1b").spec(),
            resolve({"method": "qlora", "recipe": recipe, "parallel": "fsdp", "gpus": gpus}),
        )
        for recipe in ("hf", "trl", "axolotl")
        for gpus in (1, 2)
    ]
    assert all(each.peak.reserved_bytes for each in found)
