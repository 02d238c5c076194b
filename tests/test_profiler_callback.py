"""The callback inside a real transformers.Trainer: predicts before the first step, stops what cannot fit,
reports what was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.profiler.callback import DoesNotFit, MemoryCallback
from memplan.profiler.record import Measurement

pytestmark = pytest.mark.trace
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 256,
}
ROWS, LENGTH = 8, 128


def trainer(folder: Path, callback: MemoryCallback, lora: bool = False, **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG))
    if lora:
        import peft

        model = peft.get_peft_model(
            model, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    data = [
        {"input_ids": torch.arange(LENGTH) % 64, "labels": torch.arange(LENGTH) % 64} for _ in range(ROWS)
    ]
    settings = TrainingArguments(
        str(folder),
        use_cpu=True,
        max_steps=3,
        per_device_train_batch_size=2,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **arguments,
    )
    return Trainer(model, settings, train_dataset=data, callbacks=[callback])


@pytest.mark.parametrize("lora", [False, True])
def test_it_predicts_before_and_reports_after(tmp_path: Path, lora: bool) -> None:
    said: list[str] = []
    seen: list[tuple[Prediction, Measurement]] = []
    callback = MemoryCallback(
        report=said.append, reconcile=lambda p, m: seen.append((p, m)) or "reconciled", capacity=2**34
    )
    trainer(tmp_path, callback, lora).train()
    assert "this training fits" in said[0]
    assert said[-1].startswith("memplan: predicted ")
    assert callback.setup is not None
    assert (callback.setup.micro_batch, callback.setup.sequence_length, callback.setup.weight_dtype) == (
        2,
        LENGTH,
        "float32",
    )
    assert (callback.setup.method, callback.setup.autocast) == ("lora" if lora else "full", "none")
    assert callback.setup.optimizer == "adamw_torch_fused"
    assert callback.reconciliation == "reconciled"
    prediction, measurement = seen[0]
    assert measurement.peak is not None
    assert prediction.peak.allocated_bytes == pytest.approx(measurement.peak.allocated_bytes, rel=0.01)
    assert [moment.name for moment in measurement.moments] == ["backward", "optimizer_step"]
    assert len(measurement.step_seconds) == 3


def test_it_stops_what_cannot_fit_before_the_first_step(tmp_path: Path) -> None:
    callback = MemoryCallback(capacity=2**20, on_misfit="stop", report=lambda text: None)
    with pytest.raises(DoesNotFit, match="stopped before the first step"):
        trainer(tmp_path, callback).train()
    assert callback.measurement is None
    assert DoesNotFit("").exit_code == 1


def test_it_only_warns_unless_told_to_stop_and_changes_no_random_number(tmp_path: Path) -> None:
    said: list[str] = []
    watched = trainer(tmp_path, MemoryCallback(capacity=2**20, report=said.append), seed=3)
    plain = trainer(tmp_path, MemoryCallback(predict=_refuse, report=said.append), seed=3)
    assert watched.train().training_loss == plain.train().training_loss
    assert any("does not fit" in text for text in said)
    assert any("memplan cannot predict this training: no rule" in text for text in said)


def _refuse(config: Any, setup: Any, name: str) -> Prediction:
    raise UsageError("no rule")


def test_memplan_hands_the_reconciler_in() -> None:
    import memplan

    callback = memplan.trainer_callback(sequence_length=8, on_misfit="stop")
    assert isinstance(callback, MemoryCallback)
    assert callback._reconcile is memplan.reconcile


def test_a_wrong_choice_is_one_message() -> None:
    with pytest.raises(UsageError, match="on_misfit is 'explode', expected 'warn' or 'stop'"):
        MemoryCallback(on_misfit="explode")  # type: ignore[arg-type]
