"""The trainers of other tasks, run on tensors without storage: a classifier under transformers' Trainer,
TRL's trainers of rewards, DPO, KTO, ORPO and CPO allocate in a step what the trace says.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")
pytest.importorskip("trl")

import peft
import torch
import torch.fx.experimental._config
import transformers
import trl
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset
from test_trace_trainer import (
    BATCH,
    BLOCKS,
    CONFIG,
    NUMBER,
    TOKENS,
    allocations,
    arguments,
    peak,
    setup_of,
    steady,
    trained,
    word_tokenizer,
)

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.build import outline
from memplan.planner.run.built import NoWatcher
from memplan.planner.run.loading import materialize
from memplan.planner.run.model import task_type
from memplan.planner.tables.tasks import TASKS
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.events.record import record

pytestmark = pytest.mark.trace

CASES: dict[str, dict[str, Any]] = {
    "classify, full": {"recipe": "hf", "task": "classify", "method": "full", "num_labels": 5},
    "classify, lora, checkpoints": {
        "recipe": "hf",
        "task": "classify",
        "method": "lora",
        "checkpointing": "non_reentrant",
    },
    "reward, full": {"recipe": "trl", "task": "reward", "method": "full"},
    "reward, lora": {"recipe": "trl", "task": "reward", "method": "lora"},
    "dpo, full": {"recipe": "trl", "task": "dpo", "method": "full"},
    "dpo, lora": {"recipe": "trl", "task": "dpo", "method": "lora"},
    "kto, full": {"recipe": "trl", "task": "kto", "method": "full"},
    "kto, lora": {"recipe": "trl", "task": "kto", "method": "lora"},
    "orpo, full": {"recipe": "trl", "task": "orpo", "method": "full"},
    "orpo, lora": {"recipe": "trl", "task": "orpo", "method": "lora"},
    "cpo, full, no checkpoints": {
        "recipe": "trl",
        "task": "cpo",
        "method": "full",
        "checkpointing": "none",
    },
    "cpo, lora": {"recipe": "trl", "task": "cpo", "method": "lora"},
    "mlm, full": {"recipe": "hf", "task": "mlm", "method": "full"},
    "mlm, lora, checkpoints": {
        "recipe": "hf",
        "task": "mlm",
        "method": "lora",
        "targets": ("query", "value"),
        "checkpointing": "non_reentrant",
    },
    "seq2seq, full": {"recipe": "hf", "task": "seq2seq", "method": "full", "target_length": 16},
    "seq2seq, lora": {
        "recipe": "hf",
        "task": "seq2seq",
        "method": "lora",
        "targets": ("q", "v"),
        "target_length": 16,
    },
    "dpo, lora, no checkpoints": {"recipe": "trl", "task": "dpo", "method": "lora", "checkpointing": "none"},
}


BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "vocab_size": 1024,
}
T5: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 256,
    "d_ff": 512,
    "d_kv": 64,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 1024,
    "decoder_start_token_id": 0,
}
CONFIGS = {"mlm": BERT, "seq2seq": T5}


def lora(model: Any, s: Setup) -> Any:
    """The adapter's configuration as a script writes it; None where every parameter is trained."""
    if s.method == "full":
        return None
    targets = "all-linear" if s.targets == ("all-linear",) else None
    if s.task in CONFIGS:
        targets = list(s.targets)
    return peft.LoraConfig(
        r=s.rank,
        lora_alpha=s.alpha,
        lora_dropout=s.dropout,
        target_modules=targets,
        task_type=task_type(model),
    )


def classifier(model: Any, s: Setup, folder: Path, callback: Any) -> Any:
    config = lora(model, s)
    row = {"input_ids": list(range(TOKENS)), "attention_mask": [1] * TOKENS, "labels": 1}
    return transformers.Trainer(
        model=model if config is None else peft.get_peft_model(model, config),
        args=transformers.TrainingArguments(**arguments(s, folder)),
        train_dataset=[row] * 8,
        data_collator=transformers.default_data_collator,
        callbacks=[callback],
    )


def encoder(model: Any, s: Setup, folder: Path, callback: Any) -> Any:
    """transformers' Trainer and its collator for masked tokens, or for an encoder-decoder."""
    tokenizer, config = word_tokenizer(), lora(model, s)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    row = {"input_ids": [3] * TOKENS, "attention_mask": [1] * TOKENS}
    if s.task == "seq2seq":
        row["labels"] = [3] * int(s.target_length or TOKENS)
        collator: Any = transformers.DataCollatorForSeq2Seq(tokenizer, model=model)
    else:
        collator = transformers.DataCollatorForLanguageModeling(tokenizer)
    return transformers.Trainer(
        model=model if config is None else peft.get_peft_model(model, config),
        args=transformers.TrainingArguments(**arguments(s, folder)),
        train_dataset=[row] * 8,
        data_collator=collator,
        callbacks=[callback],
    )


def rewards(model: Any, s: Setup, folder: Path, callback: Any) -> Any:
    ids = list(range(3, TOKENS + 3))
    return trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(**arguments(s, folder), max_length=TOKENS),
        train_dataset=Dataset.from_list([{"chosen_ids": ids, "rejected_ids": ids}] * 8),
        processing_class=word_tokenizer(),
        peft_config=lora(model, s),
        callbacks=[callback],
    )


def preferences(model: Any, s: Setup, folder: Path, callback: Any) -> Any:
    text = " a" * (TOKENS + 2)
    with patch.object(Accelerator, "prepare_model", on_meta(Accelerator.prepare_model)):
        return trl.DPOTrainer(
            model=model,
            ref_model=second(s),
            args=trl.DPOConfig(**arguments(s, folder), max_length=TOKENS),
            train_dataset=Dataset.from_list([{"prompt": " a", "chosen": text, "rejected": text}] * 8),
            processing_class=word_tokenizer(),
            peft_config=lora(model, s),
            callbacks=[callback],
        )


def unpaired(model: Any, s: Setup, folder: Path, callback: Any) -> Any:
    text = " a" * (TOKENS + 2)
    data = [{"prompt": " a", "completion": text, "label": bool(i % 2)} for i in range(8)]
    with patch.object(Accelerator, "prepare_model", on_meta(Accelerator.prepare_model)):
        return trl.KTOTrainer(
            model=model,
            ref_model=second(s),
            args=trl.KTOConfig(**arguments(s, folder), max_length=TOKENS),
            train_dataset=Dataset.from_list(data),
            processing_class=word_tokenizer(),
            peft_config=lora(model, s),
            callbacks=[callback],
        )


def second(s: Setup) -> Any:
    """The reference model that a script loads; None where an adapter is switched off."""
    if s.method != "full":
        return None
    reference = outline(CONFIG, s)
    materialize(reference, s, torch.device("meta"), NoWatcher())
    return reference.eval()


def on_meta(prepare: Any) -> Any:
    """accelerate places a reference model while the trainer is made, on what it takes for the device."""

    def prepared(accelerator: Any, model: Any, **options: Any) -> Any:
        states, meta = (PartialState, AcceleratorState), torch.device("meta")
        with contextlib.ExitStack() as stack:
            for state in states:
                stack.enter_context(patch.dict(state._shared_state, device=meta))
            return prepare(accelerator, model, **options)

    return prepared


def without_reference(model: Any, s: Setup, folder: Path, callback: Any) -> Any:
    package = importlib.import_module(f"trl.experimental.{s.task}")
    name, text = s.task.upper(), " a" * (TOKENS + 2)
    return getattr(package, f"{name}Trainer")(
        model=model,
        args=getattr(package, f"{name}Config")(**arguments(s, folder), max_length=TOKENS),
        train_dataset=Dataset.from_list([{"prompt": " a", "chosen": text, "rejected": text}] * 8),
        processing_class=word_tokenizer(),
        peft_config=lora(model, s),
        callbacks=[callback],
    )


@contextlib.contextmanager
def one_kernel_for_log_probabilities() -> Iterator[None]:
    """TRL's own function around its Triton kernel, of which only the launch is left out: a kernel allocates
    nothing. Without Triton TRL takes log-probabilities row by row.
    """
    from trl.trainer import utils

    class Kernel:
        def __init__(self, function: Any) -> None:
            self.function = function

        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **options: None

    triton, language = ModuleType("triton"), ModuleType("triton.language")
    triton.jit, triton.cdiv, triton.language = Kernel, lambda a, b: -(-a // b), language  # type: ignore[attr-defined]
    language.constexpr = int  # type: ignore[attr-defined]
    with patch.dict(sys.modules, {"triton": triton, "triton.language": language}):
        path = Path(utils.__file__).parents[1] / "kernels/logprob_entropy.py"
        loader = importlib.util.spec_from_file_location("logprob_entropy", path)
        assert loader is not None and loader.loader is not None
        kernels = importlib.util.module_from_spec(loader)
        loader.loader.exec_module(kernels)
    whole = {
        "is_triton_available": lambda: True,
        "_supports_trl_loss_kernel": lambda *args: True,
        "_fused_logprob_entropy": kernels.selective_log_softmax_and_entropy,
    }
    with patch.multiple(utils, create=True, **whole):
        yield


MAKERS = {
    "classify": classifier,
    "reward": rewards,
    "dpo": preferences,
    "kto": unpaired,
    "orpo": without_reference,
    "cpo": without_reference,
    "mlm": encoder,
    "seq2seq": encoder,
}


@pytest.mark.parametrize("case", CASES)
def test_a_tasks_own_trainer(case: str, tmp_path: Path) -> None:
    """Every allocation beyond a number to a token, and the peak but for a handful of numbers."""
    fields = dict(CASES[case])
    s = setup_of(fields.pop("recipe"), fields)
    config = CONFIGS.get(s.task, CONFIG)
    with (
        torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True),
        one_kernel_for_log_probabilities() if TASKS[s.task].joined else contextlib.nullcontext(),
    ):
        theirs, windows = trained(
            s, tmp_path, lambda model, heard: MAKERS[s.task](model, s, tmp_path, heard), config
        )
    ours, _ = record(config, s, target_of(s), full=True)
    begin, end = steady(ours)
    least = TASKS[s.task].rows * BATCH * TOKENS * NUMBER + 1
    expected = Counter(allocations(ours, begin, end, least))
    found = Counter(allocations(theirs, windows.begins[-1], windows.ends[-1], least))
    assert sum(expected.values()) > 300
    assert {key: count for key, count in (found - expected).items() if key[0] == "alloc"} == {}
    assert {key: count for key, count in (expected - found).items() if key[0] == "alloc"} == {}
    metrics = 4 * TASKS[s.task].rows * BATCH * TOKENS * NUMBER if TASKS[s.task].reference else 0
    apart = peak(theirs, windows.begins[-1], windows.ends[-1]) - peak(ours, begin, end)
    assert 0 <= apart <= BLOCKS * 512 + metrics
