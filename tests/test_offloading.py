"""Activation offloading: the trace's hook is TRL's own class, event by event; the formula's peak is near;
training files say it; and what dry runs of SFTTrainer on torch 2.14 (CUDA build) allocated is what the trace
does.
"""

from __future__ import annotations

import contextlib
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

import torch

import memplan
from memplan.planner.importers.files import read_training_file
from memplan.planner.inputs.setup import resolve
from memplan.planner.run import offloading
from memplan.planner.tables.errors import UsageError
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.engine import trace
from memplan.planner.trace.events.record import record

pytestmark = pytest.mark.trace

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
LARGE = SMALL | {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}
SFT: dict[str, Any] = {
    "recipe": "trl",
    "weight_dtype": "bfloat16",
    "load": "random",
    "torch": "2.14",
    "padded": False,
    "activation_offload": "trl",
}
LORA: dict[str, Any] = {"method": "lora", "rank": 16, "alpha": 32, "dropout": 0.0, "targets": ("all-linear",)}
DRY_RUNS: dict[str, tuple[dict[str, Any], int, int, str, dict[str, Any], int]] = {
    "lora": (SMALL, 2, 1024, "rtx-4090", {**LORA, "checkpointing": "none"}, 345.98),
    "lora, checkpoints": (SMALL, 2, 1024, "rtx-4090", {**LORA, "checkpointing": "non_reentrant"}, 289.58),
    "full": (SMALL, 2, 1024, "rtx-4090", {"method": "full", "checkpointing": "none"}, 705.57),
    "full, checkpoints": (
        LARGE,
        1,
        2048,
        "h100-80gb",
        {"method": "full", "checkpointing": "non_reentrant"},
        2007.54,
    ),
    "full, small": (SMALL, 2, 1024, "rtx-4090", {"method": "full", "checkpointing": "non_reentrant"}, 592.07),
    "reentrant": (LARGE, 4, 1024, "a100-40gb", {"method": "full", "checkpointing": "reentrant"}, 2283.8),
}
"""(config, batch, tokens, GPU, setup, MiB of the largest allocated sum) of unmodified scripts of TRL 1.16."""


def setup_of(case: str, **fields: Any) -> Any:
    _, batch, tokens, gpu, own, _ = DRY_RUNS[case]
    return resolve({**SFT, "micro_batch": batch, "sequence_length": tokens, "gpu": gpu, **own, **fields})


@pytest.mark.parametrize(
    "case",
    [
        "lora",
        pytest.param("full", marks=pytest.mark.slow),
        pytest.param("lora, checkpoints", marks=pytest.mark.slow),
        pytest.param("full, checkpoints", marks=pytest.mark.slow),
        pytest.param("reentrant", marks=pytest.mark.slow),
    ],
)
def test_the_trace_allocates_what_the_dry_run_did(case: str) -> None:
    found = trace(DRY_RUNS[case][0], setup_of(case)).peak.allocated_bytes
    assert abs(found / (DRY_RUNS[case][-1] * 2**20) - 1) < 0.005


@pytest.mark.parametrize(
    ("case", "hook"),
    [
        pytest.param("lora", "trl", marks=pytest.mark.slow),
        pytest.param("full, checkpoints", "torchtune", marks=pytest.mark.slow),
        pytest.param("lora, checkpoints", "trl", marks=pytest.mark.slow),
        ("full, small", "trl"),
        pytest.param("lora", "axolotl", marks=pytest.mark.slow),
    ],
)
def test_the_formula_is_within_two_percent_of_the_trace(case: str, hook: str) -> None:
    config, setup = DRY_RUNS[case][0], setup_of(case, activation_offload=hook)
    traced = trace(config, setup)
    planned = memplan.plan(config, setup)
    assert abs(planned.peak.allocated_bytes / traced.peak.allocated_bytes - 1) < 0.02
    assert abs(planned.host_bytes / traced.host_bytes - 1) < 0.01
    assert planned.host_bytes > 0


@contextlib.contextmanager
def trls_own_hook() -> Any:
    """TRL's class on meta: addresses are numbers of storages, streams the observer's, a copy on the host is
    one element.
    """
    library = pytest.importorskip("trl.models.activation_offloading")

    class Side:
        def wait_event(self, event: Any) -> None: ...
        def wait_stream(self, stream: Any) -> None: ...
        def synchronize(self) -> None: ...
        def record_event(self) -> None: ...

    def made(model: Any, row: Any, watcher: Any) -> Any:
        class Device:
            Stream = Side
            empty_cache = staticmethod(watcher.empty_cache)
            current_stream = staticmethod(Side)

            @staticmethod
            def stream(stream: Any) -> Any:
                return watcher.side_stream()

        real = torch.empty_like

        def on_host(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
            if options.get("device") != "cpu":
                return real(tensor, **options)
            return torch.empty(1, dtype=tensor.dtype).expand(tensor.shape)

        stack.enter_context(patch.object(torch, "empty_like", on_host))
        with (
            patch.object(torch.accelerator, "current_accelerator", lambda: torch.device("meta")),
            patch.object(torch, "get_device_module", lambda kind: Device),
        ):
            return library.get_act_offloading_ctx_manager(model, use_streams=row.streams)

    def address(storage: Any) -> int:
        return storage._cdata << 32 if storage.device.type == "meta" else original(storage)

    original = torch.UntypedStorage.data_ptr
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(torch.UntypedStorage, "data_ptr", address))
        stack.enter_context(patch.object(torch.Tensor, "record_stream", lambda *_: None))
        stack.enter_context(patch.object(offloading, "Offloading", made))
        stack.enter_context(patch.object(offloading, "_spare_head", lambda model: None))
        yield


@pytest.mark.parametrize("checkpointing", ["none", "non_reentrant"])
def test_the_hook_is_trls_own(checkpointing: str) -> None:
    """Every allocation and release of two steps, in order."""
    config = SMALL | {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 512,
    }
    setup = setup_of("lora", checkpointing=checkpointing, loss="full", sequence_length=128)
    ours, _ = record(config, setup, target_of(setup), full=True)
    with trls_own_hook():
        theirs, _ = record(config, setup, target_of(setup), full=True)
    assert any(storage.stream for storage in ours.storages)
    assert [(kind, n) for kind, _, n in ours.events] == [(kind, n) for kind, _, n in theirs.events]
    assert ours.streams == theirs.streams


AXOLOTL = "base_model: a\nmicro_batch_size: 1\ngradient_checkpointing: true\n"
ADAPTER = "adapter: lora\nlora_r: 8\nlora_target_modules: [q_proj]\n"
TORCHTUNE = (
    "model:\n  _component_: torchtune.models.llama2.llama2_7b\noptimizer:\n  _component_: torch.optim.AdamW\n"
)


@pytest.mark.parametrize(
    ("text", "hook", "checkpointing"),
    [
        (f"{AXOLOTL}{ADAPTER}activation_offloading: true\n", "axolotl", "none"),
        (f"{AXOLOTL}{ADAPTER}activation_offloading: disk\n", "axolotl", "none"),
        (f"{AXOLOTL}{ADAPTER}activation_offloading: legacy\n", "axolotl-synchronous", "none"),
        (f"{AXOLOTL}activation_offloading: true\n", "trl", "non_reentrant"),
        (f"{AXOLOTL.replace('true', 'offload')}", "trl", "non_reentrant"),
        (f"{AXOLOTL.replace('true', 'false')}activation_offloading: true\n", "none", "none"),
        ("model_name_or_path: a\ndataset_name: x\nactivation_offloading: true\n", "trl", "non_reentrant"),
        (
            f"{TORCHTUNE}enable_activation_checkpointing: true\nenable_activation_offloading: true\n",
            "torchtune",
            "non_reentrant",
        ),
        (f"{TORCHTUNE}enable_activation_offloading: true\n", "none", "none"),
        (f"{TORCHTUNE}ac_mode: selective\nac_option: 2\n", "none", "non_reentrant"),
    ],
)
def test_training_files_say_it(text: str, hook: str, checkpointing: str, tmp_path: Any) -> None:
    (path := tmp_path / "run.yaml").write_text(text)
    setup = resolve(imported=read_training_file(path).fields)
    assert (setup.activation_offload, setup.checkpointing) == (hook, checkpointing)
    assert setup.checkpoint_every == (2 if "ac_option" in text else 1)


def test_hidden_states_are_a_lower_bound(tmp_path: Any) -> None:
    (path := tmp_path / "run.yaml").write_text(f"{AXOLOTL}activation_offloading: hidden_states\n")
    imported = read_training_file(path)
    assert imported.fields["checkpoint_offload"]
    assert any("activation_offloading" in missing for missing in imported.not_modelled())


def test_a_cpu_has_nothing_to_move() -> None:
    with pytest.raises(UsageError, match="device cpu has none"):
        setup_of("lora", device="cpu")
