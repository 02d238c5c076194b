"""bitsandbytes' layers and offloaded checkpoints, run by the libraries' own code: what the trace holds
against a real step on the CPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from memplan.planner.inputs.setup import resolve  # noqa: E402
from memplan.planner.tables.errors import UsageError  # noqa: E402
from memplan.planner.trace.engine import trace  # noqa: E402

LAYERS, HIDDEN, BATCH, SEQUENCE = 3, 64, 2, 16
LLAMA = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": 4,
    "vocab_size": 128,
    "n_positions": 64,
}  # Conv1D, biases
COMMON = {
    "micro_batch": BATCH,
    "sequence_length": SEQUENCE,
    "rank": 4,
    "optimizer": "adamw_torch_fused",
    "recipe": "raw",
}
QUANTIZED = [
    {"quant_type": "int8", "checkpointing": "none"},
    {"quant_type": "int8", "checkpointing": "non_reentrant"},
    {"quant_type": "int8", "checkpointing": "reentrant", "kbit_prepare": False},
    {"quant_type": "nf4", "double_quant": True, "checkpointing": "none"},
    {"quant_type": "fp4", "double_quant": False, "checkpointing": "non_reentrant"},
    {"quant_type": "nf4", "quant_block": 128, "quant_storage": "bfloat16", "checkpointing": "none"},
]


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize(
    "fields", QUANTIZED, ids=["-".join(map(str, fields.values())) for fields in QUANTIZED]
)
def test_quantized_layers_hold_what_the_real_ones_hold(config, fields, held):
    setup = resolve({"method": "qlora", "device": "cpu", **COMMON, **fields})
    found = held.traced(config, setup)
    assert found.differences(held.real(config, setup)) == {}
    assert any(name.endswith(("SCB", "absmax")) for name in found.weights)


def offloaded(**fields):
    """(prediction without, with offload), every layer run."""
    setups = (
        resolve({"method": "full", **COMMON, **fields, "checkpoint_offload": offload})
        for offload in (False, True)
    )
    return [trace(LLAMA, setup, full=True) for setup in setups]


@pytest.mark.parametrize("checkpointing", ["non_reentrant", "reentrant"])
@pytest.mark.parametrize("every", [1, 2])
def test_offload_moves_each_checkpointed_layers_input_to_the_host(checkpointing, every):
    """transformers 5.23 modeling_utils.py checkpoint_func in save_on_cpu; bfloat16, so L * B * S * H * 2
    bytes.
    """
    kept, moved = offloaded(checkpointing=checkpointing, checkpoint_every=every)
    inputs = len(range(0, LAYERS, every))
    assert (kept.host_bytes, moved.host_bytes) == (0, inputs * BATCH * SEQUENCE * HIDDEN * 2)
    before, after = (
        {m.moment: m.allocated_bytes for m in prediction.moments} for prediction in (kept, moved)
    )
    assert {name for name in before if after[name] != before[name]} <= {"forward", "backward"}
    assert all(after[name] <= before[name] for name in before)


def test_offload_needs_a_device_to_move_from():
    with pytest.raises(UsageError, match="device cpu has none"):
        trace(
            LLAMA,
            resolve(
                {
                    "method": "full",
                    "device": "cpu",
                    **COMMON,
                    "checkpointing": "non_reentrant",
                    "checkpoint_offload": True,
                }
            ),
        )


def test_no_kernel_is_asked_of_the_hub_and_nothing_is_printed(tmp_path):
    """bitsandbytes 0.50 backends/cpu/ops.py calls kernels.get_kernel while it is imported, on a processor
    with AVX-512 and bfloat16.
    """
    asked = tmp_path / "asked"
    (tmp_path / "kernels.py").write_text(f"def get_kernel(*a, **k):\n    open({str(asked)!r}, 'w').close()\n")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    script = """
import sys
from memplan.cli.main import run
sys.exit(max(run([*sys.argv[1:], "--method", method]) for method in ("lora", "qlora")))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(config), "--engine", "trace", "--seq", "16"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not asked.exists()
