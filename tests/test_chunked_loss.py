"""Where TRL's chunked loss cannot run, both engines say so; a GPU that nobody named is listed with why."""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.cli.main import run
from memplan.planner.tables.chunked_loss import refuses_chunked_loss
from memplan.planner.tables.errors import UsageError

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


def test_bfloat16_below_8_alone() -> None:
    assert refuses_chunked_loss((7, 5), "bfloat16") and not refuses_chunked_loss((7, 5), "float16")
    assert refuses_chunked_loss((7, 0), "bfloat16") and not refuses_chunked_loss((8, 0), "bfloat16")


@pytest.mark.parametrize("engine", ["plan", pytest.param("trace", marks=pytest.mark.trace)])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_both_engines_refuse_what_torch_refuses(engine: str, method: str) -> None:
    if engine == "trace":
        pytest.importorskip("transformers")
    predict: Any = getattr(memplan, engine)
    said: dict[str, Any] = {"recipe": "trl", "method": method, "sequence_length": 64, "gpu": "t4"}
    with pytest.raises(UsageError, match=r"compute capability 8\.0 or later, found 7\.5: use --loss full"):
        predict(SMALL, **said)
    assert predict(SMALL, **{**said, "weight_dtype": "float16"}).peak.allocated_bytes
    assert predict(SMALL, **{**said, "loss": "full"}).peak.allocated_bytes
    assert predict(SMALL, **{**said, "gpu": "a10g"}).peak.allocated_bytes


def test_a_gpu_that_nobody_named_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["llama-3.2-1b", "--recipe", "trl"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "– t4: TRL's chunked loss in bfloat16 needs compute capability 8.0" in text
    assert run(["llama-3.2-1b", "--recipe", "trl", "--gpu", "t4"]) == 2
    assert "use --loss full" in capsys.readouterr().err
