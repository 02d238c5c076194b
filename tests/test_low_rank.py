"""Optimizers that project gradients (GaLore, APOLLO) or step in the backward (LOMO): formula against trace,
states against the library's own, and what is refused.
"""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.answers.verdict import judge
from memplan.planner.formula.engine import plan
from memplan.planner.formula.resident.parameter_spec import ParameterSpec
from memplan.planner.formula.resident.states import states
from memplan.planner.importers.files import FORMATS, read_document
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import STEP_MOMENTS
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.low_rank import projector
from memplan.planner.tables.optimizers import OPTIMIZERS

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1400,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4003,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def slow(*values: object) -> Any:
    """A case that continuous integration has no time for."""
    return pytest.param(*values, marks=pytest.mark.slow)


def setup(optimizer: str, **fields: Any) -> Any:
    """A full fine-tuning of a few tokens, whose optimizer's memory is most of it."""
    own = {"method": "full", "recipe": "raw", "sequence_length": 32, "load": "random", "optim_rank": 64}
    return resolve({**own, "optimizer": optimizer, **fields})


def tensors(prediction: Prediction, moment: str) -> int:
    """Bytes of what is alive at a moment's peak, without what blocks are larger than tensors, and without the
    buffers of reductions, which the formula leaves out (at most a few MB of a matrix's column means).
    """
    rows = prediction.moment(moment).rows
    return sum(row.bytes for row in rows if row.name not in ("partial results", "semaphores"))


@pytest.mark.trace
@pytest.mark.parametrize(
    ("optimizer", "fields"),
    [
        ("galore_adamw", {}),
        ("galore_adamw_8bit", {}),
        ("galore_adamw_layerwise", {"optim_targets": ("attn", "mlp")}),
        ("lomo", {}),
        slow("galore_adamw", {"weight_dtype": "float32"}),
        slow("apollo_adamw", {}),
        slow("galore_adamw", {"recipe": "hf"}),
        slow("galore_adamw", {"optim_projection": "reverse_std"}),
        slow("galore_adamw_8bit", {"weight_dtype": "float32", "gradient_accumulation": 2}),
        slow("galore_adamw_8bit_layerwise", {"checkpointing": "reentrant"}),
        slow("lomo", {"weight_dtype": "float32", "checkpointing": "non_reentrant"}),
    ],
    ids=str,
)
def test_both_engines_count_the_same_tensors(optimizer: str, fields: dict[str, Any]) -> None:
    for library in ("transformers", "peft", "bitsandbytes", OPTIMIZERS[optimizer].library):
        pytest.importorskip(library)
    from memplan.planner.trace.engine import trace

    chosen = setup(optimizer, **fields)
    planned, traced = plan(find(CONFIG).spec(), chosen), trace(CONFIG, chosen)
    for moment in STEP_MOMENTS:
        assert tensors(planned, moment) == pytest.approx(tensors(traced, moment), rel=0.002), moment


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(48, 32), (24, 40)])
def test_what_a_projector_keeps_is_what_galore_s_own_keeps(shape: tuple[int, int], dtype: str) -> None:
    """In fp32 its matrix is a view of all singular vectors, so that all of them stay."""
    torch, galore = pytest.importorskip("torch"), pytest.importorskip("galore_torch")
    weight = torch.nn.Parameter(torch.ones(shape, dtype=getattr(torch, dtype)))
    weight.grad = torch.randn(shape).to(weight.dtype)
    group = {"params": [weight], "rank": 8, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    optimizer = galore.GaLoreAdamW([group], no_deprecation_warning=True)
    optimizer.step()
    state = optimizer.state[weight]
    kept = state["projector"].ortho_matrix.untyped_storage().nbytes()
    row = OPTIMIZERS["galore_adamw"]
    stored = ParameterSpec(
        "w", shape, dtype, 1, True, "linear", projector=projector(8, "std", shape, bounded=True)
    )
    size = weight.element_size()
    ((_, found, kind, _, _),) = states(row.projects[0][1], stored, None, False)
    count = 1
    for each in found:
        count *= int(str(each))
    assert count * (4 if kind == "float32" else size) == kept
    assert tuple(state["exp_avg"].shape) == stored.low.shape


def test_galore_has_no_verdict_of_fits_and_apollo_one() -> None:
    """How much cuSOLVER asks for beside torch's tensors, nobody says."""
    spec, gpu = find("llama-7b").spec(), find_gpu("h200")
    galore, apollo = (
        judge(plan(spec, setup(name, gpu="h200")), gpu) for name in ("galore_adamw", "apollo_adamw")
    )
    assert galore.verdict is None and "cuSOLVER's own workspace" in str(galore.why)
    assert apollo.verdict == "fits"


def test_a_layerwise_form_steps_in_the_backward() -> None:
    chosen = setup("galore_adamw_8bit_layerwise")
    assert chosen.optimizer_in_backward
    assert not chosen.replaced(optimizer="adamw_torch").optimizer_in_backward
    found = plan(find("llama-7b").spec(), chosen)
    gradients = found.moment("backward").components["gradients"]
    assert gradients <= 2 * 32000 * 4096 * 2, "never more than the largest matrix's and one more"
    usual = plan(find("llama-7b").spec(), chosen.replaced(optimizer="galore_adamw_8bit"))
    assert found.peak.allocated_bytes < usual.peak.allocated_bytes


def test_adalomo_keeps_factors_of_frozen_parameters_too() -> None:
    spec = find("llama-7b").spec()
    lora = plan(spec, resolve({"method": "lora", "optimizer": "adalomo", "sequence_length": 128}))
    rows = [row for row in lora.moment("load").rows if row.component == "optimizer_states"]
    assert sum(row.bytes for row in rows if "embed_tokens" in row.name) == 4 * (32000 + 4096)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optimizer": "galore_adamw", "method": "lora"}, "whole matrices, which method 'lora'"),
        ({"optimizer": "galore_adamw", "gpus": 2, "parallel": "fsdp"}, "whole gradients, which fsdp divides"),
        ({"optimizer": "galore_adamw", "optim_targets": ()}, "optim_targets is empty"),
        ({"optimizer": "apollo_adamw", "optim_targets": ("(",)}, "optim_targets '\\(' is no regular expr"),
        ({"optimizer": "lomo", "optimizer_in_backward": False}, "'lomo' steps there by itself"),
        ({"optimizer": "apollo_adamw_layerwise", "gradient_accumulation": 2}, "nothing to add to"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve({"method": "full", **fields})


def test_targets_are_names_as_people_write_them() -> None:
    assert setup("galore_adamw", optim_targets="attn, mlp").optim_targets == ("attn", "mlp")
    with pytest.raises(UsageError, match="optim_targets is 3: expected parts of layers' names"):
        setup("galore_adamw", optim_targets=3)


@pytest.mark.parametrize(("model", "names"), [("gpt2", "all-linear"), ("llama-7b", "query_key_value")])
def test_a_model_without_a_linear_layer_of_such_a_name_is_refused(model: str, names: str) -> None:
    """GPT-2 has Conv1D alone, and its output projection is its embedding."""
    with pytest.raises(UsageError, match=f"optim_targets {names}: no nn.Linear of this model"):
        plan(find(model).spec(), setup("galore_adamw", optim_targets=names))


def test_targets_of_some_layers_have_no_formula() -> None:
    chosen = setup("galore_adamw", optim_targets=("layers.1.mlp",))
    with pytest.raises(UsageError, match="of some layers alone.*use --engine trace"):
        plan(find(CONFIG).spec(), chosen)


@pytest.mark.parametrize(
    ("kind", "document", "fields"),
    [
        (
            "llamafactory",
            {"use_galore": True, "galore_layerwise": True, "galore_rank": 64, "optim": "adamw_8bit"},
            {
                "optimizer": "galore_adamw_8bit",
                "optimizer_in_backward": True,
                "optim_rank": 64,
                "optim_targets": ("all-but-head",),
            },
        ),
        (
            "llamafactory",
            {"use_apollo": True, "apollo_target": "q_proj,v_proj"},
            {"optimizer": "apollo_adamw", "optim_rank": 16, "optim_targets": ("q_proj", "v_proj")},
        ),
        (
            "axolotl",
            {
                "optimizer": "galore_adamw",
                "optim_args": {"rank": 32, "proj_type": "left"},
                "optim_target_modules": ["self_attn"],
            },
            {"optim_rank": 32, "optim_projection": "left", "optim_targets": ("self_attn",)},
        ),
    ],
)
def test_training_files_name_rank_and_targets(
    kind: str, document: dict[str, Any], fields: dict[str, Any]
) -> None:
    model = {"axolotl": {"base_model": "m"}}.get(kind, {"model_name_or_path": "m", "finetuning_type": "full"})
    found = read_document({**model, **document}, FORMATS[kind], "a test")
    assert {name: found.fields[name] for name in fields} == fields
    assert not found.not_modelled() and not [text for text in found.warnings if "optim" in text]


def test_an_argument_that_no_field_follows_is_said() -> None:
    document = {"base_model": "m", "optimizer": "apollo_adamw", "optim_args": "rank=8,proj=svd"}
    found = read_document(document, FORMATS["axolotl"], "a test")
    assert found.fields["optim_rank"] == 8
    assert found.not_modelled() == ["optim_args (proj of apollo_adamw)"]
