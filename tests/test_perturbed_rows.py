"""Keys that a run showed to move memory, which were ignored once: what becomes of each in a file."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.importers.files import FORMATS
from memplan.planner.importers.rules import walk

ZERO = "zero_optimization"


def zero(**keys: Any) -> dict[str, Any]:
    """A DeepSpeed file with some keys of ZeRO."""
    return {ZERO: keys}


MOVES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("hf", {"debug": "underflow_overflow"}, {"debug": "tpu_metrics_debug"}),
    ("axolotl", {"fix_untrained_tokens": 5}, {"fix_untrained_tokens": None}),
    ("axolotl", {"reinit_weights": True}, {"reinit_weights": False}),
    ("trl", {"env": {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}}, {"env": {"WANDB_MODE": "offline"}}),
    ("unsloth", {"lora": {"finetune_mlp_modules": False}}, {"lora": {"finetune_mlp_modules": True}}),
    ("torchtune", {"optimizer": {"foreach": False}}, {"optimizer": {"foreach": True}}),
    ("torchtune", {"optimizer": {"amsgrad": True}}, {"optimizer": {"amsgrad": False}}),
    ("torchtune", {"optimizer": {"maximize": True}}, {"optimizer": {"maximize": False}}),
    ("torchtune", {"loss": {"num_output_chunks": 4}}, {"loss": {"num_output_chunks": 8}}),
    ("torchtune", {"model": {"attn_dropout": 0.1}}, {"model": {"attn_dropout": 0.0}}),
    ("torchtune", {"fsdp_reshard_after_forward": False}, {"fsdp_reshard_after_forward": True}),
    (
        "deepspeed",
        zero(stage3_allgather_sequential=True),
        zero(stage3_allgather_sequential=False),
    ),
    (
        "deepspeed",
        zero(offload_optimizer={"ratio": 0.5}),
        zero(offload_optimizer={"ratio": 1.0}),
    ),
]


@pytest.mark.parametrize(("name", "on", "off"), MOVES)
def test_a_key_that_moves_memory_is_said(name: str, on: dict[str, Any], off: dict[str, Any]) -> None:
    for document, status in ((on, "not_modelled"), (off, "ignored")):
        _, (report,), warnings = walk(FORMATS[name].rules, document)
        assert report.status == status
        assert bool(warnings) == (status == "not_modelled")


def test_older_words_of_deepspeed_offload_the_states() -> None:
    row = FORMATS["deepspeed"]
    said = []
    for host in ({"cpu_offload": True}, {"offload_optimizer": {"device": "cpu"}}):
        facts, _, warnings = walk(row.rules, zero(stage=2, **host))
        said.append(row.finish(facts, warnings))
    assert said[0] == said[1]
    assert said[0]["offload"] == "optimizer"


def test_a_trainer_without_cuda_runs_on_the_cpu() -> None:
    facts, _, warnings = walk(FORMATS["hf"].rules, {"no_cuda": True, "output_dir": "x"})
    assert FORMATS["hf"].finish(facts, warnings)["device"] == "cpu"
