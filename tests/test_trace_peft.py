"""Every peft type for causal language models traces from an adapter_config.json, and holds what a real step
on the CPU holds.
"""

from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # noqa: E402

from memplan.planner.inputs.setup import resolve  # noqa: E402
from memplan.planner.run.extras import find_spec  # noqa: E402
from memplan.planner.tables.errors import UsageError  # noqa: E402
from memplan.planner.tables.peft_types import PEFT_TYPES  # noqa: E402
from memplan.planner.trace import patches_peft  # noqa: E402
from memplan.planner.trace.engine import trace  # noqa: E402
from memplan.render import adapter_docs  # noqa: E402

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
TYPES = sorted(getattr(kind, "value", str(kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING)
LINEAR = {"target_modules": ["q_proj", "v_proj"]}
PROMPT = {"num_virtual_tokens": 4}
# What a tiny model needs in the adapter's file; {} where a type chooses its own places.
FIELDS = {
    "ADALORA": {
        **LINEAR,
        "init_r": 4,
        "target_r": 2,
        "total_step": 100,
        "tinit": 1,
        "tfinal": 10,
        "deltaT": 1,
    },
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "BOFT": {**LINEAR, "boft_block_size": 8},
    "C3A": {**LINEAR, "block_size": 8},
    "CARTRIDGE": PROMPT,
    "CPT": {"cpt_token_ids": [1, 2, 3, 4], "cpt_mask": [1, 1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3, 4]},
    "FOURIERFT": {**LINEAR, "n_frequency": 16},
    "GRALORA": {**LINEAR, "r": 4, "gralora_k": 2},
    "IA3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {**LINEAR, "r": 4},
    "MULTITASK_PROMPT_TUNING": {**PROMPT, "num_tasks": 2},
    "OFT": {**LINEAR, "oft_block_size": 8, "r": 0},
    "POLY": {**LINEAR, "r": 4, "n_tasks": 2, "n_splits": 2},
    "PREFIX_TUNING": PROMPT,
    "PROMPT_TUNING": PROMPT,
    "PVERA": {**LINEAR, "r": 4},
    "P_TUNING": {**PROMPT, "encoder_hidden_size": 16},
    "RANDLORA": {**LINEAR, "r": 4},
    "ROAD": {**LINEAR, "group_size": 8},
    "SHADOW": {},
    "SHIRA": {**LINEAR, "r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2, 3]},
    "VBLORA": {**LINEAR, "num_vectors": 16, "vector_length": 8, "topk": 2},
    "VERA": {**LINEAR, "r": 4},
    "WAVEFT": {**LINEAR, "n_frequency": 16},
}
NEEDS = {"ADAMSS": ("sklearn", "scikit-learn")}  # a type's own dependency, and how its message names it

# The CPU is its own host: what peft keeps there is copied to a GPU and not to the CPU. Sizes that the trace
# saves more (+) or less (-).
HOST_COPIES = {
    "ADAMSS": (
        {256: 4},
        "scatter_index.to(device), an int64 to a row, in each layer (peft 0.21 tuners/adamss/layer.py)",
    ),
    "FOURIERFT": (
        {256: 4},
        "indices.to(device), an int64 pair to a coefficient, in each layer (peft 0.21 "
        "tuners/fourierft/layer.py)",
    ),
    "LOHA": (
        {4: -4},
        "torch.tensor(scale), a scalar that stays on the host (peft 0.21 tuners/loha/layer.py "
        "get_delta_weight)",
    ),
    **dict.fromkeys(
        ("CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"),
        (
            {64: 1},
            "prompt_tokens.to(device), an int64 to a virtual token and row (peft 0.21 peft_model.py "
            "get_prompt)",
        ),
    ),
}
SPLIT_ON_MOVING = {
    "OFT",
    "PSOFT",
}  # rows and cols, two views of one storage on the host, are copied apart (peft 0.21 tuners/oft/layer.py)


def setup_of(kind, **changes):
    adapter = {"peft_type": kind, "task_type": "CAUSAL_LM", **FIELDS.get(kind, LINEAR)}
    fields = {
        "method": "lora",
        "recipe": "raw",
        "weight_dtype": "bfloat16",
        "optimizer": "adamw_torch_fused",
        "micro_batch": 2,
        "sequence_length": 16,
        "device": "cpu",
        "adapter": adapter,
    }
    return resolve({**fields, **changes})


def signed(one, other):
    found = {size: one.get(size, 0) - other.get(size, 0) for size in {**one, **other}}
    return {size: count for size, count in found.items() if count}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two LoRA checkpoints of the tiny model, for X-LoRA to mix."""
    import peft
    import transformers

    folder = str(tmp_path_factory.mktemp("lora"))
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"})
    )
    peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **LINEAR)).save_pretrained(folder)
    return {"hidden_size": 32, "adapters": {"0": folder, "1": folder}}


def test_documentation_is_not_stale():
    page = (Path(__file__).parent.parent / "docs" / "adapters.md").read_text()
    assert page == adapter_docs.page(), "run: python -m memplan.render.adapter_docs > docs/adapters.md"


def test_the_table_knows_every_type():
    """A newer peft may have more: they are traced as ordinary ones."""
    assert set(TYPES) <= set(PEFT_TYPES) or not {"XLORA", "WAVEFT"} <= set(TYPES)
    assert len(PEFT_TYPES) == 45


@pytest.mark.parametrize("kind", TYPES)
def test_an_adapter_holds_what_the_real_one_holds(kind, held, checkpoints, monkeypatch):
    module, name = NEEDS.get(kind, ("torch", ""))
    if find_spec(module) is None:
        with pytest.raises(UsageError, match=name):
            held.traced(LLAMA, setup_of(kind))
        return
    if kind == "ADAMSS":  # the real one's clusters follow from the weights' values
        monkeypatch.setattr("peft.tuners.adamss.layer.clustering_Z", patches_peft.even_clusters)
    if kind == "XLORA":
        monkeypatch.setitem(FIELDS, kind, checkpoints)
    found, truth = held.traced(LLAMA, setup_of(kind)), held.real(LLAMA, setup_of(kind))
    assert sum(found.weights.values()) == sum(truth.weights.values())
    assert signed(found.saved, truth.saved) == HOST_COPIES.get(kind, ({}, ""))[0]
    found.saved = truth.saved
    if kind in SPLIT_ON_MOVING:
        found.weights = truth.weights
    assert found.differences(truth) == {}
    assert 0 < found.trainable < found.total and found.gradients > 0 and found.optimizer_states > 0


@pytest.mark.parametrize("kind", ["ADALORA", "IA3", "LORA", "PROMPT_TUNING"])
def test_so_does_one_with_checkpointing(kind, held):
    setup = setup_of(kind, checkpointing="non_reentrant")
    found, truth = held.traced(LLAMA, setup), held.real(LLAMA, setup)
    assert signed(found.saved, truth.saved) == HOST_COPIES.get(kind, ({}, ""))[0]
    found.saved = Counter(truth.saved)
    assert found.differences(truth) == {}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("ADAPTION_PROMPT", {"adapter_len": 4, "adapter_layers": 6}),
        ("PREFIX_TUNING", {**PROMPT, "num_layers": 8, "num_attention_heads": 4, "token_dim": 32}),
        ("LORA", {**LINEAR, "layers_to_transform": [0, 7]}),
    ],
)
def test_an_adapter_that_counts_layers_traces_at_full_depth(kind, fields, held):
    """Eight layers, of which an ordinary adapter's trace would run fewer."""
    deep = {**LLAMA, "num_hidden_layers": 8}
    setup = setup_of(kind, adapter={"peft_type": kind, "task_type": "CAUSAL_LM", **fields})
    found, truth = held.traced(deep, setup), held.real(deep, setup)
    assert signed(found.saved, truth.saved) == HOST_COPIES.get(kind, ({}, ""))[0]
    found.saved = truth.saved
    assert found.differences(truth) == {}


@pytest.mark.parametrize("hidden", [32, 1088])
def test_shira_counts_its_mask_in_layers_of_any_size(hidden):
    """r (in + out) trained numbers a layer, and two int32 indices for each (peft 0.21
    tuners/shira/layer.py).
    """
    from memplan.planner.trace.engine import trace

    config = {**LLAMA, "hidden_size": hidden}
    found = trace(config, setup_of("SHIRA", optimizer="sgd"))
    assert found.trainable_parameters == 2 * 2 * 4 * (hidden + hidden)


@pytest.mark.parametrize("kind", ["CARTRIDGE", "PREFIX_TUNING"])
def test_a_prefix_with_checkpointing_fails_in_both(kind, held):
    """transformers 5.23 drops the cache under checkpointing, so the mask is longer than the keys: no real
    step runs either.
    """
    setup = setup_of(kind, checkpointing="non_reentrant")
    for run in (held.real, held.traced):  # PEFT's own refusal where checkpointing is switched on before it
        with pytest.raises(UsageError, match=f"{kind} does not work with gradient checkpointing") as caught:
            run(LLAMA, setup)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("adapters", [{}, {"0": "somebody/lora"}])
def test_an_xlora_without_its_checkpoints_is_refused(adapters, held):
    setup = setup_of(
        "XLORA",
        adapter={"peft_type": "XLORA", "task_type": "CAUSAL_LM", "hidden_size": 32, "adapters": adapters},
    )
    with pytest.raises(UsageError, match="local folders"):
        held.traced(LLAMA, setup)


def test_constants_keep_their_values_until_something_unknown_is_written():
    from memplan.planner.run.values import Values

    aten, values = torch.ops.aten, Values({})

    def run(op, *args, **kwargs):
        out = values.get(op)(op, args, kwargs)
        return op(*args, **kwargs) if out is NotImplemented else out

    mask = run(aten.arange.default, 5, device="meta")
    assert values.value(mask).tolist() == [0, 1, 2, 3, 4]
    odd = run(aten.eq.Scalar, run(aten.remainder.Scalar, mask[1:], 2), 1)
    assert odd.is_meta and values.value(odd).tolist() == [True, False, True, False]
    unknown = torch.empty(4, 3, device="meta")
    assert run(aten.index.Tensor, unknown, [odd]).shape == (2, 3)
    run(aten.fill_.Scalar, mask, 7)
    assert values.value(mask).tolist() == [7] * 5
    run(aten.copy_.default, mask, torch.empty(5, dtype=torch.int64, device="meta"))
    assert values.value(mask) is None
    del mask, odd
    assert not values._twins


MOE = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 8,
}


def test_lora_on_experts_traces(held):
    """peft 0.21 tuners/lora/layer.py ParamWrapper asks for autocast of the device's type."""
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "target_parameters": experts}
    setup = setup_of("LORA", adapter=adapter)
    traced = held.traced(MOE, setup)
    assert traced.differences(held.real(MOE, setup)) == {}
    named = dict(rank=2, alpha=8, dropout=0.0, targets=("q_proj",), target_parameters=tuple(experts))
    assert held.traced(MOE, setup.replaced(adapter=None, **named)).differences(traced) == {}


def test_experts_that_peft_finds_by_itself_have_no_dropout_in_axolotl():
    """axolotl 0.19 loaders/adapter.py _patch_peft_param_wrapper_dropout: not those that a file names."""
    targets = ("q_proj", "gate_proj", "up_proj", "down_proj")
    fields = {"method": "lora", "sequence_length": 32, "targets": targets}

    def trained(recipe, dropout, **more):
        return trace(MOE, resolve({"recipe": recipe, "dropout": dropout, **fields, **more}))

    assert trained("axolotl", 0.1).trainable_parameters == trained("hf", 0.0).trainable_parameters
    named = {"targets": ("q_proj",), "target_parameters": ("mlp.experts.down_proj",)}
    for recipe, more in (("hf", {}), ("axolotl", named)):
        with pytest.raises(UsageError, match="lora_dropout != 0"):
            trained(recipe, 0.1, **more)
