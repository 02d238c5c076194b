"""`--device dry` on a CUDA build of torch: one case of every method, a GPU that is too small, and what a
record says. MEMPLAN_DRYRUN_PYTHON names the interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

import pytest

from memplan.cli.main import run as cli
from memplan.planner.tables.methods import METHODS
from memplan.profiler.record import Measurement, scan

PYTHON = os.environ.get("MEMPLAN_DRYRUN_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="MEMPLAN_DRYRUN_PYTHON names no CUDA build of torch")

TINY = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096}
TINY |= {"max_position_embeddings": 2048}
TRAINED = [name for name in METHODS if name != "inference"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Measurement]]:
    """Method (or `resized`, LoRA with new tokens) -> its record, all of one campaign."""
    folder = tmp_path_factory.mktemp("dry")
    cases = [{"model": "biased" if method == "bitfit" else "tiny", "method": method} for method in TRAINED]
    models = {"tiny": TINY, "biased": TINY | {"attention_bias": True, "mlp_bias": True}}
    defaults = {"recipe": "raw", "sequence_length": 128, "gpu": "a100-80gb"}
    cases.append({"model": "tiny", "method": "lora", "vocabulary": 4160})
    document = {"device": "dry", "steps": 1, "models": models, "defaults": defaults, "cases": cases}
    (folder / "methods.json").write_text(json.dumps(document))
    out = folder / "out"
    assert cli(["campaign", str(folder / "methods.json"), "--out", str(out), "--python", str(PYTHON)]) == 0
    found, problems = scan(out)
    assert not problems
    yield {
        "resized" if measurement.setup.vocabulary else measurement.setup.method: measurement
        for _, measurement in found
    }
    shutil.rmtree(folder)


@pytest.mark.parametrize("method", [*TRAINED, "resized"])
def test_every_moment_of_the_trace_is_the_dry_runs_to_the_byte(
    method: str, records: dict[str, Measurement]
) -> None:
    record = records[method]
    assert record.outcome == "ok", record.failure
    assert record.prediction is not None
    predicted = {moment["name"]: moment["allocated_bytes"] for moment in record.prediction["moments"]}
    assert {moment.name: moment.allocated_bytes for moment in record.moments} == predicted
    assert len(predicted) >= 5


def test_a_record_says_that_it_is_a_dry_run(records: dict[str, Measurement]) -> None:
    record = records["lora"]
    environment = record.environment
    assert record.dry and (environment["driver"], environment["device"]) == ("stub", "cuda")
    assert environment["gpu"] == "NVIDIA A100-80GB (stub)" and environment["capability"] == [8, 0]
    assert record.peak is not None and record.peak.context_bytes is None and record.device_bytes is None
    assert record.step_seconds == () and record.tokens_per_second is None
    assert any("not a GPU measurement" in warning for warning in record.warnings)
    assert record.alignment is not None and record.alignment["events"]["matched"] > 100


def test_out_of_memory_is_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["profile", "smollm2-135m", "--method", "full", "--recipe", "raw", "--seq", "64", "--steps", "1"]
    assert cli([*words, "--device", "dry", "--gpu", "900MiB", "--python", str(PYTHON), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["outcome"], document["failure"]["kind"]) == ("oom", "oom")
    assert document["failure"]["requested_bytes"] > 0 and document["environment"]["driver"] == "stub"
