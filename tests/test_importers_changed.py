"""What an axolotl file changes of its model: rows of the vocabulary, fields of its config.json, which layers
`lora_target_linear` means; and keys that follow from others.
"""

from __future__ import annotations

import pytest

from memplan.planner.formula.engine import plan
from memplan.planner.formula.lacking import lacking
from memplan.planner.importers.changed import applied
from memplan.planner.importers.files import FORMATS, read_document
from memplan.planner.inputs.models import find
from memplan.planner.inputs.names import LINEAR_EXPERTS
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
LORA = {"adapter": "lora", "lora_r": 8, "lora_target_linear": True}


def read(config, **keys):
    """The file and the model that it changes."""
    document = {"base_model": "a", "micro_batch_size": 1, "sequence_len": 64, **keys}
    imported = read_document(document, FORMATS["axolotl"], "run.yaml")
    return imported, applied(imported, find(config))


@pytest.mark.parametrize(
    ("keys", "vocabulary", "rows"),
    [
        ({"tokens": ["<a>", "<b>"]}, 1000, 1002),
        ({"tokens": ["<a>"], "special_tokens": {"eos_token": "<e>", "pad_token": "<a>"}}, 1000, 1002),
        ({"special_tokens": {"eos_token": "<e>"}}, 1000, None),
        ({"tokens": {"eos_token": "<e>"}}, 1000, None),
        ({"resize_token_embeddings_to_32x": True}, 51200, None),
        ({"resize_token_embeddings_to_32x": True}, 1000, 1024),
        ({"resize_token_embeddings_to_32x": True, "tokens": ["<a>"]}, 51200, 51232),
    ],
)
def test_rows_that_tokens_can_need_are_counted(keys, vocabulary, rows):
    """axolotl 0.19 loaders/model.py _resize_token_embeddings, where its tokenizer fills every row."""
    imported, _ = read({**LLAMA, "vocab_size": vocabulary}, **keys)
    assert imported.fields.get("vocabulary") == rows and not imported.not_modelled()
    assert any("rows are added" in text and "high side" in text for text in imported.warnings) == bool(rows)


def test_rows_of_a_model_in_parts_are_a_lower_bound():
    sharded = {"fsdp_version": 2, "fsdp_config": {"offload_params": False}, "dp_shard_size": 2}
    imported, _ = read(LLAMA, tokens=["<a>"], **sharded)
    assert "vocabulary" not in imported.fields
    assert [text.partition(" ")[0] for text in imported.not_modelled()] == ["tokens"]


def test_fields_of_the_config_are_changed_or_named():
    imported, model = read(MIXTRAL, model_config={"output_router_logits": True, "num_hidden_layers": 3})
    assert not imported.not_modelled() and sum(count for count, _ in model.spec().layers) == 3
    setup = resolve(imported=imported.fields)
    assert model.spec().balances and not lacking(model.spec(), setup)
    assert "router" in lacking(model.spec(), setup.replaced(loss="fused"))
    assert not find({**LLAMA, "output_router_logits": True}).spec().balances, "no router"
    imported, model = read(LLAMA, overrides_of_model_config={"hidden_size": 128, "rope_theta": 1e6})
    assert imported.not_modelled() == ["overrides_of_model_config (a changed model: hidden_size)"]
    assert model.config["hidden_size"] == 64 and model.config["rope_theta"] == 1e6
    assert read(LLAMA, llama4_linearized_experts=True)[1].config[LINEAR_EXPERTS] is True
    with pytest.raises(UsageError, match="model_config.*mapping"):
        read(LLAMA, model_config="yes")


@pytest.mark.parametrize(
    ("keys", "fields"),
    [
        ({"micro_batch_size": 2, "batch_size": 8}, {"gradient_accumulation": 4}),
        ({"micro_batch_size": 4, "batch_size": 2}, {"gradient_accumulation": 1}),
        ({"batch_size": 8, "gradient_accumulation_steps": 2}, {"gradient_accumulation": 2}),
        ({"process_reward_model": True, "num_labels": 3}, {"task": "prm", "num_labels": 3}),
        ({"max_packed_sequence_len": 2048, "flash_attn_rms_norm": True, "gptq": True}, {"task": "sft"}),
        ({"experts_implementation": "grouped_mm", "fused_attn_kernel": True}, {"task": "sft"}),
    ],
)
def test_keys_that_are_followed(keys, fields):
    imported, _ = read(LLAMA, **keys)
    setup = resolve(imported=imported.fields)
    assert {name: getattr(setup, name) for name in fields} == fields and not imported.not_modelled()


@pytest.mark.parametrize(
    ("keys", "counted"),
    [
        ({"dequantize": True, "sharded": True}, True),
        ({"dequantize": True, "sharded": False}, False),  # beside what is loaded, on the GPU
        ({"dequantize": False, "sharded": True}, False),
    ],
)
def test_a_checkpoint_that_is_dequantized_while_it_is_read(keys, counted):
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    file = {
        "model_quantization_config": "Mxfp4Config",
        "model_quantization_config_kwargs": {"dequantize": keys["dequantize"]},
        "fsdp_config": {"offload_params": False} if keys["sharded"] else None,
    }
    imported, _ = read(config, **file)
    assert (imported.fields.get("checkpoint_quant") == "none") == keys["dequantize"]
    assert (not imported.not_modelled()) == counted


def test_replicas_of_shards_are_read():
    sharded = {"fsdp_version": 2, "fsdp_config": {"offload_params": False}, "dp_shard_size": 4}
    imported, _ = read(LLAMA, dp_replicate_size=2, **sharded)
    setup = resolve(imported=imported.fields)
    assert (setup.gpus, setup.replicas, setup.parallel) == (4, 2, "fsdp") and not imported.not_modelled()
    assert read(LLAMA, dp_replicate_size=2)[0].not_modelled() == [
        "dp_replicate_size (replicas beside shards)"
    ]
    with pytest.raises(UsageError, match="replicas 2 .* --parallel fsdp, or --gpus 8"):
        resolve({"replicas": 2, "gpus": 4, "parallel": "zero3"})


@pytest.mark.trace
def test_lora_target_linear_names_linear_modules_alone():
    """PEFT's all-linear names a mixture's experts too, and has no dropout for them."""
    from memplan.planner.trace.engine import trace

    imported, model = read(MIXTRAL, **LORA, lora_dropout=0.05)
    assert imported.fields["targets"] == ("linear-modules",)
    setup = resolve({"gpu": "h100"}, imported=imported.fields)
    planned, traced = plan(model.spec(), setup), trace(model.config, setup)
    attention = 2 * (8 * (64 + 64) + 2 * 8 * (64 + 32) + 8 * (64 + 64))
    assert planned.trainable_parameters == traced.trainable_parameters == attention
    assert read(LLAMA, **LORA)[0].fields["targets"] == ("all-linear",)


@pytest.mark.trace
@pytest.mark.parametrize("recipe", ["raw", "hf"])
def test_the_loss_that_balances_experts_adds_the_same_in_both_engines(recipe):
    """transformers 5.24 models/mixtral/modeling_mixtral.py load_balancing_loss_func; of the formula a few
    numbers for each expert are left out.
    """
    from memplan.planner.trace.engine import trace

    layers, tokens, experts = 6, 512, 8
    config = {**MIXTRAL, "num_hidden_layers": layers, "num_local_experts": experts}
    setup = resolve({"method": "full", "recipe": recipe, "gpu": "h100", "sequence_length": tokens})
    plain, made = (
        [
            [each.moment(moment).allocated_bytes for moment in ("forward", "backward")]
            for each in (plan(find(found).spec(), setup), trace(found, setup))
        ]
        for found in (config, {**config, "output_router_logits": True})
    )
    added = [
        [after - before for before, after in zip(*pair, strict=True)]
        for pair in zip(plain, made, strict=True)
    ]
    ours, theirs = added
    assert ours[0] >= layers * tokens * experts * 2, "the routers' logits"
    for formula, traced in zip(ours, theirs, strict=True):
        assert 0 <= traced - formula <= 8 * 512
