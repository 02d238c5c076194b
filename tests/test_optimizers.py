"""OPTIMIZERS: each row's bytes against the states that the real optimizer keeps after traced steps, and what
is said of other names.
"""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import STEP_MOMENTS
from memplan.planner.tables.dtypes import itemsize
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.optimizer_row import Optimizer
from memplan.planner.tables.optimizer_steps import Make
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.other_optimizers import WITHOUT_A_RULE

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 320,
    "intermediate_size": 400,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1003,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
"""Norms below the 8-bit floor, matrices on both sides of the paging floor, and sizes that no block divides.
"""


RECORDED = {
    # states on the device, states on the host, temporaries: of a traced step of TALL in bfloat16, in float32
    "grokadamw": ((0, 63_950_848, 20_496_384), (0, 127_901_696, 40_992_768)),
    "adamw_anyprecision": ((79_802_368, 0, 16_398_336), (79_802_368, 0, 16_398_336)),
    "apollo_adamw": ((18_359_838, 0, 11_280_456), (36_719_676, 0, 22_560_912)),
    "apollo_adamw_layerwise": ((18_359_838, 0, 0), (36_719_676, 0, 0)),
}
"""Of libraries that no extra has: grokadamw 0.1.2 and torchdistx at 9c1b9f5 are not kept up, apollo-torch
1.0.3 is licensed for no commercial use. Dry runs of the Trainer with the first two on torch 2.14.1 peak 1,536
bytes above such traces, as one with adamw_torch does.
"""

# bitsandbytes' tables of 256 fp32 values: one or two for the whole optimizer, which no tensor's row counts
SHARED = "qmap"


def states(prediction: Prediction, moment: str = "optimizer_step") -> int:
    """Bytes of the states on the device at a moment's peak."""
    rows = [
        row
        for row in prediction.moment(moment).rows
        if row.component == "optimizer_states" and SHARED not in row.name
    ]
    return sum(row.bytes for row in rows)


@pytest.mark.trace
@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *((name, "hf") for name in OPTIMIZERS if name not in RECORDED),
        ("ademamix_8bit", "raw"),
        ("lion_8bit", "raw"),
    ],
)
def test_a_rows_bytes_are_those_of_the_optimizers_states(name: str, recipe: str) -> None:
    for library in ("transformers", "peft", "bitsandbytes", OPTIMIZERS[name].library):
        pytest.importorskip(library)
    from memplan.planner.trace.engine import trace

    setup = resolve(
        {"method": "full", "recipe": recipe, "optimizer": name, "sequence_length": 32, "load": "random"}
    )
    planned, traced = plan(find(CONFIG).spec(), setup), trace(CONFIG, setup)
    # before the step, in which an optimizer of low rank makes new projections beside the old ones
    assert states(planned, "forward") == states(traced, "forward")
    assert planned.host_bytes == traced.host_bytes
    assert (planned.host_bytes > 0) == OPTIMIZERS[name].paged


def temporaries(prediction: Prediction) -> int:
    """Bytes of what the step makes, at its peak; the workspaces of cuBLAS are there before it."""
    rows = prediction.moment("optimizer_step").rows
    return sum(row.bytes for row in rows if row.component == "temporaries" and "cuBLAS" not in row.name)


def both(config: dict[str, Any], **fields: Any) -> tuple[Prediction, Prediction]:
    """The formula's prediction and the trace's."""
    for library in ("transformers", "peft", "bitsandbytes"):
        pytest.importorskip(library)
    from memplan.planner.trace.engine import trace

    setup = resolve({"sequence_length": 32, "load": "random", **fields})
    return plan(find(config).spec(), setup), trace(config, setup)


TALL = CONFIG | {"hidden_size": 512, "intermediate_size": 1400, "vocab_size": 4003}
LIBRARIES = ("torch", "torchao", "schedulefree", "optimi")
STEPS = [(name, mode) for name, row in OPTIMIZERS.items() if row.library in LIBRARIES for mode in row.modes]


@pytest.mark.trace
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("name", "mode"), STEPS, ids=str)
def test_a_steps_temporaries_are_those_of_the_real_step(name: str, mode: str, dtype: str) -> None:
    pytest.importorskip(OPTIMIZERS[name].library)
    fields = {"method": "full", "recipe": "raw", "optimizer": name, "optimizer_mode": mode}
    planned, traced = both(TALL, **fields, weight_dtype=dtype)
    # one at a time, the last tensor's variable lasts into the next one's step: which that is, families differ
    last = TALL["hidden_size"] ** 2 * itemsize(dtype) if mode == "loop" else 0
    assert abs(temporaries(planned) - temporaries(traced)) <= last


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", RECORDED)
def test_rows_of_libraries_that_no_extra_installs_equal_recorded_steps(name: str, dtype: str) -> None:
    """While a state is copied back the host has the largest's old copy too: the formula leaves it out."""
    fields = {"method": "full", "recipe": "raw", "optimizer": name, "weight_dtype": dtype}
    found = plan(find(TALL).spec(), resolve({"sequence_length": 32, "load": "random", **fields}))
    replaced = TALL["vocab_size"] * TALL["hidden_size"] * itemsize(dtype) if OPTIMIZERS[name].on_host else 0
    ours = (states(found), found.host_bytes + replaced, temporaries(found))
    recorded = RECORDED[name][dtype == "float32"]
    assert ours[:2] == recorded[:2]
    assert ours[2] == pytest.approx(recorded[2], abs=4), "a norm, which the formula leaves out"


@pytest.mark.trace
def test_states_on_the_host_visit_the_device_one_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that moves its states as grokadamw does: the trace counts them on the host, and copies."""
    torch = pytest.importorskip("torch")

    class Visiting(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    kept = self.state[p].get("kept")
                    kept = torch.zeros_like(p, device="cpu") if kept is None else kept
                    here = kept.to(p.device)
                    self.state[p]["kept"] = here.add_(p.grad).to("cpu")

    monkeypatch.setattr(torch.optim, "Visiting", Visiting, raising=False)
    row = Optimizer(
        name="visiting",
        cls="torch.optim.Visiting",
        states=(("kept", "like"),),
        step={"loop": (Make("here", "kept, from the host"),)},
        source="this test",
        on_host=True,
    )
    monkeypatch.setitem(OPTIMIZERS, "visiting", row)
    monkeypatch.setattr("memplan.planner.trace.patches_optimizers.require_optimizer", lambda *names: None)
    planned, traced = both(TALL, method="full", recipe="raw", optimizer="visiting")
    largest = TALL["vocab_size"] * TALL["hidden_size"] * 2
    assert planned.host_bytes + largest == traced.host_bytes
    assert states(planned) == states(traced) == 0
    # beside the largest, the last tensor's copy, which families order differently
    assert abs(temporaries(planned) - temporaries(traced)) <= TALL["hidden_size"] ** 2 * 2
    assert temporaries(planned) >= largest


def test_states_on_the_host_have_no_rule_in_parts() -> None:
    setup = resolve({"method": "full", "optimizer": "grokadamw", "gpus": 2, "parallel": "fsdp"})
    with pytest.raises(UsageError, match="between host and GPU have no rule under fsdp: use ddp"):
        plan(find("llama-7b").spec(), setup)


def test_radam_s_fifth_step_makes_a_denominator_for_every_weight() -> None:
    """The first four update nothing; what later ones make is part of every longer run."""
    setup = resolve({"method": "full", "recipe": "raw", "optimizer": "schedule_free_radam"})
    found = plan(find("llama-7b").spec(), setup)
    assert temporaries(found) == 2 * found.trainable_parameters


ELEMENTS = 8_030_261_248 - 65 * 4096, 65 * 4096
"""Of Llama-3.1-8B: in matrices, all of them multiples of 256, and in its 65 norms of 4,096."""


@pytest.mark.parametrize(
    ("name", "codes", "scratch", "table"),
    [("adamw_torch_8bit", 1, 8, 256), ("adamw_torch_4bit", 0.5, 24, 16)],
)
def test_torchao_s_states_and_what_its_compiled_step_makes(name, codes, scratch, table) -> None:
    """Codes and an fp32 scale for 256 of them, twice, with a table for each of 2 x 291 tensors; the step of
    the embedding makes both moments in fp32, and of 4-bit states two int64 codes beside.
    """
    setup = resolve({"method": "full", "optimizer": name})
    found = plan(find("llama-3.1-8b").spec(), setup)
    rows = [r for r in found.moment("optimizer_step").rows if r.component == "optimizer_states"]
    tables = sum(row.bytes for row in rows if "qmap" in row.name)
    assert sum(row.bytes for row in rows) - tables == 2 * sum(ELEMENTS) * (codes + 4 / 256)
    assert tables == 2 * 291 * table * 4
    embedding = 128256 * 4096
    assert temporaries(found) == embedding * scratch + 2 * 4 * embedding // 256


def test_torchao_keeps_small_and_odd_tensors_in_their_dtype() -> None:
    """320 elements of a norm are too few; a matrix of 320 x 1,003 elements is no multiple of 256."""
    found = plan(find(CONFIG).spec(), resolve({"method": "full", "optimizer": "adamw_torch_8bit"}))
    rows = {r.name: r for r in found.moment("optimizer_step").rows if r.component == "optimizer_states"}
    for name, shape in (("model.norm.weight", (320,)), ("lm_head.weight", (1003, 320))):
        row = rows[f"{name} exp_avg"]
        assert (tuple(row.shape), row.dtype) == (shape, "bfloat16")
    assert rows["model.layers.*.self_attn.q_proj.weight exp_avg codes"].dtype == "uint8"


def test_schedule_free_keeps_a_copy_of_the_weights_and_one_moment() -> None:
    found = plan(find("llama-7b").spec(), resolve({"method": "full", "optimizer": "schedule_free_adamw"}))
    assert states(found) == 2 * 2 * found.trainable_parameters


def test_optimi_under_fsdp_is_refused_with_what_has_a_rule() -> None:
    setup = resolve({"method": "full", "optimizer": "stable_adamw", "gpus": 2, "parallel": "fsdp"})
    with pytest.raises(UsageError, match="no Triton step on fsdp's sharded tensors.*zero2 or zero3"):
        plan(find("llama-7b").spec(), setup)
    assert plan(find("llama-7b").spec(), setup.replaced(parallel="zero2")).peak.allocated_bytes > 0


@pytest.mark.trace
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", ["stable_adamw", "optimi_adamw"])
def test_kahan_s_compensation_is_a_third_state_of_16_bit_weights(name: str, dtype: str) -> None:
    """A real step of the library on a CPU; its Triton kernels alone keep a fp32 value and a byte beside."""
    optimi, torch = pytest.importorskip("optimi"), pytest.importorskip("torch")
    row = OPTIMIZERS[name]
    shapes = [(48, 32), (32,)]
    weights = [torch.nn.Parameter(torch.ones(shape, dtype=getattr(torch, dtype))) for shape in shapes]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    real = getattr(optimi, row.cls.rpartition(".")[2])(weights, lr=1e-3, triton=False)
    real.step()
    kept = {
        key: sum(state[key].nbytes for state in real.state.values() if state[key] is not None)
        for key in next(iter(real.state.values()))
    }
    elements = 48 * 32 + 32
    assert kept["exp_avg"] == kept["exp_avg_sq"] == elements * itemsize(dtype)
    assert kept["kahan_comp"] == (elements * 2 if itemsize(dtype) == 2 else 0)
    fields = {"method": "full", "recipe": "raw", "optimizer": name, "weight_dtype": dtype}
    found = plan(find(CONFIG).spec(), resolve(fields))
    rows = [r for r in found.moment("optimizer_step").rows if r.component == "optimizer_states"]
    weights_of = {
        state: sum(r.bytes for r in rows if r.name.endswith(f" {state}")) for state, _ in row.states
    }
    whole = found.trainable_parameters * itemsize(dtype)
    assert weights_of["exp_avg"] == weights_of["exp_avg_sq"] == whole
    tensors = 3 + 9 * CONFIG["num_hidden_layers"]
    assert weights_of["kahan_comp"] == (whole if itemsize(dtype) == 2 else tensors)
    if name == "stable_adamw":
        assert kept["eps_sq"] == len(shapes) * itemsize(dtype)
        assert weights_of["eps_sq"] == tensors * itemsize(dtype)
        assert weights_of["mean_square"] == tensors * 4


@pytest.mark.trace
@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("adamw_torch_4bit", "torchao", "torchao"),
        ("schedule_free_adamw", "schedulefree", "schedulefree"),
        ("stable_adamw", "optimi", "torch-optimi"),
    ],
)
def test_the_trace_says_which_package_an_optimizer_needs(name, module, package, monkeypatch) -> None:
    from importlib.util import find_spec

    from memplan.planner.run import extras

    monkeypatch.setattr(extras, "find_spec", lambda each: None if each == module else find_spec(each))
    with pytest.raises(UsageError, match=f"{package} not installed: {name}.*pip install {package}"):
        both(CONFIG, method="full", optimizer=name)


TIED = TALL | {"tie_word_embeddings": True}


@pytest.mark.trace
@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused", "paged_adamw_8bit", "muon"])
@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (TALL, {"method": "full", "recipe": "raw", "checkpointing": "reentrant"}),
        (TIED, {"method": "full", "recipe": "hf"}),
        (TALL, {"method": "lora", "checkpointing": "non_reentrant"}),
    ],
    ids=["full", "tied", "lora"],
)
def test_an_optimizer_in_the_backward_frees_each_gradient(config, fields, optimizer) -> None:
    """Both engines run one optimizer for each parameter: no gradient is left, the peak is of one alone."""
    planned, traced = both(config, optimizer=optimizer, optimizer_in_backward=True, **fields)
    assert states(planned) == states(traced)
    assert planned.moment("optimizer_step").components["gradients"] == 0
    for moment in STEP_MOMENTS:
        ours, theirs = planned.moment(moment), traced.moment(moment)
        whole = [sum(row.bytes for row in each.rows) for each in (ours, theirs)]
        assert whole[0] == pytest.approx(whole[1], rel=0.002)
        gradients = [[r.bytes for r in each.rows if r.component == "gradients"] for each in (ours, theirs)]
        # muon's steps on the tied embedding and on a layer's matrix need nearly the same
        assert optimizer == "muon" or sum(gradients[0]) == sum(gradients[1])
    assert planned.peak.reserved_bytes == pytest.approx(traced.peak.reserved_bytes, rel=0.03)
    usual = plan(find(config).spec(), planned.setup.replaced(optimizer_in_backward=False))
    assert fields["method"] == "lora" or planned.step_peak.allocated_bytes < usual.step_peak.allocated_bytes


def test_what_an_optimizer_in_the_backward_excludes() -> None:
    for fields, words in (
        ({"gradient_accumulation": 2}, "gradient_accumulation 2 has nothing to add to"),
        ({"gpus": 2, "parallel": "fsdp"}, "under fsdp it has no rule"),
        ({"method": "adalora", "importance_buffers": True}, "importance_buffers"),
    ):
        with pytest.raises(UsageError, match=words):
            resolve({"optimizer_in_backward": True, **fields})


def test_torchtune_s_8b_in_the_backward_holds_its_weights_and_one_gradient() -> None:
    """16.06 GB of bfloat16 weights; the largest gradient is the head's, 1.05 GB, not 16.06 GB of them."""
    fields = {"method": "full", "recipe": "raw", "optimizer": "paged_adamw_8bit", "loss": "fused"}
    fields |= {"checkpointing": "reentrant", "optimizer_in_backward": True, "sequence_length": 512}
    found = plan(find("llama-3.1-8b").spec(), resolve(fields))
    weights, head = 2 * 8_030_261_248, 2 * 128256 * 4096
    assert weights + head < found.step_peak.allocated_bytes < weights + 3 * head


MUON = [
    {"method": "full", "recipe": "hf"},
    {"method": "full", "recipe": "raw", "weight_dtype": "float32"},
    {"method": "freeze", "trainable_layers": 1},
    {"method": "lora", "rank": 64, "adapter_dtype": "bfloat16"},
    {"method": "lora", "modules_to_save": ("lm_head",)},
    {"method": "lora", "targets": ("lm_head", "q_proj")},
    *(
        {"method": method}
        for method in ("dora", "adalora", "ia3", "adapter", "prompt-tuning", "prefix-tuning")
    ),
]


@pytest.mark.trace
@pytest.mark.parametrize("fields", MUON, ids=lambda fields: "-".join(map(str, fields.values())))
def test_muon_trains_matrices_of_layers_and_adamw_the_rest(fields: dict[str, Any]) -> None:
    """torch 2.13 optim/_muon.py: ValueError for all but 2-D tensors; embeddings and the like are AdamW's."""
    planned, traced = both(TALL, optimizer="muon", **fields)
    assert states(planned, "forward") == states(traced, "forward")
    for moment in STEP_MOMENTS:
        whole = sum(row.bytes for row in traced.moment(moment).rows)
        assert sum(row.bytes for row in planned.moment(moment).rows) == pytest.approx(whole, rel=1e-3)
    assert abs(temporaries(planned) - temporaries(traced)) <= 1e-3 * whole


def test_muon_on_llama_7b() -> None:
    """Momentum for the 6.48 B weights of the layers, two moments for 0.26 B of embeddings, head and norms: 2
    B each.
    """
    setup = resolve({"method": "full", "optimizer": "muon"})
    found = plan(find("llama-7b").spec(), setup)
    layers, embeddings, norms = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 2 * 32000 * 4096, 65 * 4096
    assert states(found) == 2 * (layers + 2 * (embeddings + norms))
    with pytest.raises(UsageError, match="muon works on whole matrices"):
        plan(find("llama-7b").spec(), setup.replaced(parallel="fsdp", gpus=2))


@pytest.mark.trace
def test_an_optimizer_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that memplan does not know: its row alone serves the setup, both engines and the profiler's
    step.
    """
    row = Optimizer(
        name="nadam",
        cls="torch.optim.NAdam",
        states=(("exp_avg", "like"), ("exp_avg_sq", "like")),
        step={"foreach": (Make("root", "square root of exp_avg_sq"),)},
        source="torch 2.13 optim/nadam.py",
    )
    monkeypatch.setitem(OPTIMIZERS, "nadam", row)
    planned, traced = both(TALL, method="full", recipe="raw", optimizer="nadam")
    assert states(planned) == states(traced) == 2 * states(both(TALL, method="full", optimizer="rmsprop")[0])
    assert temporaries(planned) == pytest.approx(temporaries(traced), abs=64)
    assert any("nadam" in row.why for row in planned.moment("optimizer_step").rows)


@pytest.mark.trace
@pytest.mark.parametrize("name", ["adafactor", "adamw_torch"])
def test_states_of_ia3s_vectors_are_those_of_matrices(name: str) -> None:
    """They are (1, K) or (N, 1) (peft 0.21 tuners/ia3/layer.py update_layer): Adafactor factors them."""
    planned, traced = both(TALL, method="ia3", optimizer=name)
    assert states(planned) == states(traced)


@pytest.mark.trace
def test_what_another_training_of_this_process_overrode_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer with an 8-bit optimizer leaves its embeddings' override in bitsandbytes' one manager, by
    place: also for another model.
    """
    bnb = pytest.importorskip("bitsandbytes")
    from memplan.planner.trace.engine import trace

    setup = resolve(
        {
            "method": "full",
            "recipe": "raw",
            "optimizer": "adamw_bnb_8bit",
            "sequence_length": 32,
            "load": "random",
        }
    )
    before = states(trace(CONFIG, setup))
    monkeypatch.setitem(bnb.optim.GlobalOptimManager.get_instance().index2config, (0, 0), {"optim_bits": 32})
    assert states(trace(CONFIG, setup)) == before


def test_names_of_transformers_are_rows_or_known_to_have_none() -> None:
    names = {name.value for name in pytest.importorskip("transformers.training_args").OptimizerNames}
    assert names <= {*OPTIMIZERS, *WITHOUT_A_RULE}
    assert not set(WITHOUT_A_RULE) & set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "galore_adafactor_layerwise",
            "has no rule yet .* refuses the Trainer's learning rate.*: plan with galore_adafactor and",
        ),
        ("adamw_troch", "unknown optimizer 'adamw_troch': did you mean adamw_torch"),
    ],
)
def test_a_real_optimizer_without_a_row_is_no_misspelling(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve({"optimizer": name})


@pytest.mark.parametrize("name", WITHOUT_A_RULE)
def test_what_is_said_instead_of_an_optimizer_names_one_that_is_planned(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        resolve({"optimizer": name})
    instead = str(raised.value).rpartition("plan with ")[2].split()[0].strip(",")
    fields = {"method": "full", "optimizer_in_backward": "in_backward" in str(raised.value)}
    assert resolve({"optimizer": instead, **fields})
