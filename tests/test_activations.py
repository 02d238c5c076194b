"""What a forward saves for backward, against a real model on the CPU under saved-tensor hooks: equal to the
byte.
"""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.formula.forward.context import Device
from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.step import Guard, run_step
from memplan.planner.inputs.families.table import read_config
from memplan.planner.inputs.setup import resolve

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

BATCH, SEQUENCE = 2, 24
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": 6,
    "n_head": 4,
    "vocab_size": 96,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
GEMMA2 = {
    "model_type": "gemma2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "sliding_window": 8,
}
NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 96,
}
FALCON = {
    "model_type": "falcon",
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "new_decoder_architecture": True,
    "vocab_size": 96,
}
GPTJ = {
    "model_type": "gptj",
    "n_embd": 64,
    "n_layer": 6,
    "n_head": 4,
    "rotary_dim": 8,
    "vocab_size": 96,
    "n_positions": 64,
}


def predicted(config: dict[str, Any], **fields: Any) -> int:
    """Bytes that the tape says are saved when the backward begins."""
    setup = resolve(
        {
            "method": "full",
            "recipe": "raw",
            "weight_dtype": "float32",
            "device": "cpu",
            "attention": "eager",
            **fields,
        }
    )
    spec = read_config(config)
    windows = tuple(
        sorted({layer.attention.window for _, layer in spec.layers if layer.attention.window is not None})
    )
    tape = run_step(
        ParameterTable(spec, setup), Device("cpu"), Guard(False, tuple(w for w in windows if w <= SEQUENCE))
    )
    end = next(position for position, moment in tape.marks if moment == "backward")
    alive: dict[int, int] = {}
    for index, change in tape.log[:end]:
        for each, count in change.items() if index < 0 else [(index, change)]:
            alive[each] = alive.get(each, 0) + count
    values = {"B": BATCH, "S": SEQUENCE, "R": setup.rank}
    return sum(
        tape.infos[i].size.evaluate(values) * count for i, count in alive.items() if tape.infos[i].saved_by
    )


def measured(config: dict[str, Any], prepare: Any = None) -> int:
    """Bytes of the distinct storages that a real forward saves, parameters left out."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key != "model_type"}
    made = CONFIG_MAPPING[config["model_type"]](**fields)
    made.use_cache = False
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float32, attn_implementation="eager").train()
    model = prepare(model) if prepare else model
    resident = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    found: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in resident and tensor.dim() > 0:
            found[storage.data_ptr()] = storage  # kept: a freed address could come again
        return tensor

    ids = torch.randint(0, 96, (BATCH, SEQUENCE))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, labels=ids)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize(
    "config", [LLAMA, GPT2, GEMMA2, NEOX, FALCON, GPTJ], ids=lambda config: config["model_type"]
)
def test_saved_for_backward_equals_a_real_forward(config: dict[str, Any]) -> None:
    assert predicted(config) == pytest.approx(measured(config), abs=64)  # a few scalars


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
def test_lora_saves_what_peft_saves(targets: str) -> None:
    peft = pytest.importorskip("peft")

    def prepare(model: Any) -> Any:
        names = targets if targets == "all-linear" else targets.split(",")
        return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM"))

    assert predicted(LLAMA, method="lora", rank=4, targets=targets) == pytest.approx(
        measured(LLAMA, prepare), abs=64
    )


def test_prefix_tuning_saves_what_peft_saves() -> None:
    peft = pytest.importorskip("peft")

    def prepare(model: Any) -> Any:
        return peft.get_peft_model(
            model, peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
        )

    assert predicted(LLAMA, method="prefix-tuning", virtual_tokens=5) == pytest.approx(
        measured(LLAMA, prepare), abs=64
    )


def adalora(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(
        model,
        peft.AdaLoraConfig(
            init_r=4, target_r=2, total_step=10, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )


def test_adalora_saves_what_peft_saves() -> None:
    assert predicted(LLAMA, method="adalora", rank=4) == pytest.approx(measured(LLAMA, adalora), rel=1e-3)


def test_adalora_trains_ranknum_once_it_is_moved() -> None:
    """Moved to another dtype (or device) ranknum becomes a trained parameter, and its division saves every
    adapter's output.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    fields = {key: value for key, value in LLAMA.items() if key != "model_type"}
    for dtype in (torch.float32, torch.bfloat16):
        model = adalora(AutoModelForCausalLM.from_config(LlamaConfig(**fields), dtype=dtype))
        trained = [p.requires_grad for name, p in model.named_parameters() if "ranknum" in name]
        setup = resolve(
            {"method": "adalora", "recipe": "raw", "device": "cpu", "weight_dtype": str(dtype)[6:]}
        )
        ours = [
            t.trained for t in ParameterTable(read_config(LLAMA), setup).all if t.name.endswith("ranknum")
        ]
        assert set(trained) == set(ours) == {dtype is torch.bfloat16}


def test_repeated_layers_equal_layers_walked_one_by_one() -> None:
    """Seven layers in blocks save what seven single layers save: each layer of a run adds the same bytes."""
    sizes = [predicted({**LLAMA, "num_hidden_layers": depth}) for depth in (3, 4, 5, 6, 7, 12)]
    step = sizes[1] - sizes[0]
    assert [size - sizes[0] for size in sizes] == [0, step, 2 * step, 3 * step, 4 * step, 9 * step]
