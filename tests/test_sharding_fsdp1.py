"""One rank under FSDP1 against torch's own FullyShardedDataParallel on a fake process group: the length of
each flat parameter, what a rank keeps of it, which of the parameters the optimizer has; and what the files
and names that mean FSDP1 become. What is allocated and reserved: tests/test_ranks_recorded.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memplan
from memplan.planner.formula.sharding.fsdp1 import Fsdp1Plan
from memplan.planner.formula.sharding.wiring import sharding_plan
from memplan.planner.importers.files import read_training_file
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.parallel import MEANT

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
TIED = {**LLAMA, "tie_word_embeddings": True}


@pytest.fixture
def ranks() -> Iterator[Any]:
    """Makes this process rank 0 of N, the others imaginary."""
    for library in ("torch", "transformers", "peft", "accelerate"):
        pytest.importorskip(library)
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    yield lambda count: distributed.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    distributed.destroy_process_group()


def wrapped(config: dict[str, Any], setup: Setup) -> Any:
    """The model as a loop wraps it, on the CPU."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from peft.utils.other import fsdp_auto_wrap_policy
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    known = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(known, dtype=torch.bfloat16)
    layer = type(model.model.layers[0])
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={layer})
    if setup.method == "lora":
        lora = LoraConfig(r=setup.rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
        policy = fsdp_auto_wrap_policy(model)
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=policy,
        use_orig_params=setup.use_orig_params,
        device_id=torch.device("cpu"),
    )


@pytest.mark.parametrize("count", (2, 3, 7))
@pytest.mark.parametrize("orig", (False, True), ids=("flat", "orig"))
@pytest.mark.parametrize(("config", "method"), ((LLAMA, "full"), (TIED, "full"), (LLAMA, "lora")))
def test_flat_parameters_are_torchs_own(
    config: dict[str, Any], method: str, orig: bool, count: int, ranks: Any
) -> None:
    ranks(count)
    fields = {"recipe": "raw", "method": method, "rank": 5, "gpus": count, "parallel": "fsdp1"}
    setup = resolve({**fields, "targets": ("all-linear",), "use_orig_params": orig})
    plan = sharding_plan(find(config).spec(), setup)
    assert isinstance(plan, Fsdp1Plan)
    values = {"R": setup.rank}
    model = wrapped(config, setup)
    handles = [module._handle for module in model.fsdp_modules(model) if module._handle is not None]
    theirs = sorted(
        (handle.flat_param._unpadded_unsharded_size.numel(), handle.flat_param.numel()) for handle in handles
    )
    ours = sorted(
        (size, flat.part.evaluate(values))
        for flat in plan.flats
        for size in [
            -(-flat.elements.evaluate(values) // count) * count if orig else flat.elements.evaluate(values)
        ]
        for _ in range(flat.count)
    )
    assert ours == theirs
    stepped = sorted(p.numel() for p in model.parameters() if p.requires_grad and p.numel())
    pieces = sorted(piece.elements.evaluate(values) for piece in plan.pieces() for _ in range(piece.count))
    assert pieces == stepped


def test_a_name_means_a_version() -> None:
    for name, fields in MEANT.items():
        setup = resolve({"gpus": 2, "parallel": name})
        assert {key: getattr(setup, key) for key in fields} == fields


FIELDS = {"method": "qlora", "gpus": 2, "parallel": "fsdp1"}


def test_what_fsdp1_cannot_flatten_is_refused_and_what_it_can_is_chosen() -> None:
    chosen = resolve(FIELDS)
    assert (chosen.quant_storage, chosen.kbit_prepare) == ("bfloat16", False)
    for asked in ({"quant_storage": "uint8"}, {"kbit_prepare": True}):
        with pytest.raises(UsageError, match="FSDP1 flattens.*kbit_prepare=false"):
            memplan.plan("llama-7b", resolve({**FIELDS, **asked}))


def test_bitsandbytes_steps_on_flat_parts() -> None:
    """On float tensors, which FSDP2's are not; nothing of it is in the sentence that refuses FSDP2."""
    found = memplan.plan("llama-7b", resolve({**FIELDS, "optimizer": "paged_adamw_8bit"}))
    assert found.peak.allocated_bytes > 0 and "FSDP2" not in str(found.warnings)
    with pytest.raises(UsageError, match="--parallel fsdp1"):
        memplan.plan("llama-7b", resolve({**FIELDS, "parallel": "fsdp2", "optimizer": "paged_adamw_8bit"}))


def test_what_has_no_rule_is_a_lower_bound() -> None:
    """A flat tensor that is trained in part makes whole gradients."""
    shared = {"gpu": "a100-80gb", "gpus": 2, "parallel": "fsdp1"}
    saved = memplan.plan("llama-7b", resolve({**shared, "method": "lora", "modules_to_save": ("lm_head",)}))
    assert saved.gpus[0].verdict is None and any("FSDP1" in each for each in saved.not_modelled)
    full = memplan.plan("llama-7b", resolve({**shared, "method": "full"}))
    assert full.gpus[0].verdict == "fits" and not full.not_modelled


def test_more_ranks_hold_less_and_the_lead_of_the_host_is_in_the_larger_course() -> None:
    from memplan.planner.formula.engine import replay_of

    spec, sizes = find("llama-3.2-1b").spec(), []
    for count in (2, 4, 8):
        setup = resolve(
            {"method": "full", "gpus": count, "parallel": "fsdp1", "checkpointing": "non_reentrant"}
        )
        run = replay_of(spec, setup)
        assert run is not None and run.reserved_of[0] >= run.reserved_of[1]
        sizes.append(memplan.plan("llama-3.2-1b", setup).peak.allocated_bytes)
    assert sizes == sorted(sizes, reverse=True)


AXOLOTL = """\
base_model: mistralai/Mistral-7B-v0.1
load_in_4bit: true
adapter: qlora
lora_r: 32
lora_target_linear: true
sequence_len: 1024
micro_batch_size: 1
optimizer: paged_adamw_8bit
gradient_checkpointing: true
attn_implementation: flash_attention_2
fsdp:
  - full_shard
  - auto_wrap
fsdp_config:
  fsdp_use_orig_params: false
  fsdp_backward_prefetch: BACKWARD_PRE
"""


def test_axolotls_files_without_a_version_are_fsdp1(tmp_path: Path) -> None:
    """axolotl 0.19 utils/schemas/validation.py check_fsdp_version_in_fsdp_config."""
    path = tmp_path / "a.yaml"
    path.write_text(AXOLOTL)
    imported = read_training_file(path)
    setup = resolve({"gpus": 2}, imported=imported.fields)
    assert (setup.fsdp_version, setup.use_orig_params, setup.backward_prefetch) == (1, False, "pre")
    assert memplan.plan(imported.model, setup).peak.allocated_bytes > 0
    path.write_text(AXOLOTL.replace("BACKWARD_PRE", "SIDEWAYS"))
    with pytest.raises(UsageError, match="BACKWARD_POST"):
        read_training_file(path)
