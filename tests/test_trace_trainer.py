"""The stacks' own trainers, run on tensors without storage and watched by the trace's observer: what `hf` and
`trl` allocate in a step is what transformers' Trainer and TRL's SFTTrainer allocate, as on an A100, event by
event; they keep a handful of single numbers more.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")

import peft
import torch
import transformers
from torch.utils._python_dispatch import _disable_current_modes

from memplan.planner.allocator.replay import replay
from memplan.planner.formula.engine import plan
from memplan.planner.inputs.families.table import read_config
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.run.build import outline
from memplan.planner.run.loading import materialize
from memplan.planner.run.model import quiet
from memplan.planner.run.quantize import replace_linears
from memplan.planner.run.renamed import argument
from memplan.planner.trace import patches
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.events.log import Log
from memplan.planner.trace.events.record import STEPS, record, watching
from memplan.planner.trace.kernels import Kernels
from memplan.planner.trace.observe import Observer

pytestmark = pytest.mark.trace

BATCH, TOKENS = 2, 64
NUMBER = 8  # bytes: a loss, a count, a flag
# of 512 bytes: the loss summed up between logs, the gradients' norm, the count of tokens, what the loss is
# divided into
BLOCKS = 8
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "tie_word_embeddings": False,
    "architectures": ["LlamaForCausalLM"],
}
HF: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full, checkpoints": {"method": "full", "checkpointing": "non_reentrant"},
    "full, fp32, eager": {
        "method": "full",
        "autocast": "none",
        "weight_dtype": "float32",
        "attention": "eager",
    },
    "lora": {"method": "lora"},
    "lora, checkpoints": {"method": "lora", "checkpointing": "reentrant"},
    "lora, two micro-batches": {"method": "lora", "gradient_accumulation": 2},
    "lora, paged states": {"method": "lora", "optimizer": "paged_adamw_8bit"},
    "qlora": {"method": "qlora", "checkpointing": "none"},
    "qlora, checkpoints, 8-bit states": {
        "method": "qlora",
        "checkpointing": "non_reentrant",
        "optimizer": "adamw_bnb_8bit",
    },
}
TRL: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
}


def setup_of(recipe: str, fields: dict[str, Any]) -> Setup:
    given = {
        "recipe": recipe,
        "load": "random",
        "micro_batch": BATCH,
        "sequence_length": TOKENS,
        "gpu": "a100-40gb",
    }
    return resolve({**given, **({"checkpointing": "none"} if recipe == "hf" else {}), **fields})


def rows() -> list[dict[str, list[int]]]:
    return [
        {"input_ids": list(range(TOKENS)), "labels": list(range(TOKENS)), "attention_mask": [1] * TOKENS}
        for _ in range(8)
    ]


class Windows(transformers.TrainerCallback):
    """Where in the log each optimizer step of a Trainer begins and ends."""

    def __init__(self, log: Log) -> None:
        self.log, self.begins, self.ends = log, [], []  # type: ignore[var-annotated]

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begins.append(len(self.log.events))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(len(self.log.events))


def adapted(model: Any, s: Setup) -> Any:
    """The model as a user's script hands it to a trainer."""
    if s.quant_type != "none":
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
        with _disable_current_modes():
            model.hf_quantizer = transformers.quantizers.AutoHfQuantizer.from_config(config)
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=s.checkpointing != "none"
        )
    if s.method == "full":
        return model
    targets = "all-linear" if s.targets == ("all-linear",) else None
    lora = peft.LoraConfig(
        r=s.rank, lora_alpha=s.alpha, lora_dropout=s.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, lora)


def arguments(s: Setup, folder: Path) -> dict[str, Any]:
    """What a script tells a trainer of this setup."""
    common: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": s.autocast == "bfloat16",
        "max_steps": STEPS,
        "report_to": [],
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": s.gradient_accumulation,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "optim": s.optimizer,
        "dataloader_pin_memory": False,
    }
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    common[argument("activation_checkpointing", known)] = s.checkpointing != "none"
    common[argument("activation_checkpointing_kwargs", known)] = {
        "use_reentrant": s.checkpointing == "reentrant"
    }
    return common


def trainer_of(model: Any, s: Setup, folder: Path, callback: Any) -> Any:
    common = arguments(s, folder)
    if s.recipe == "hf":
        return transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(**common),
            train_dataset=rows(),
            data_collator=transformers.default_data_collator,
            callbacks=[callback],
        )
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    args = trl.SFTConfig(**common, max_length=TOKENS, dataset_kwargs={"skip_prepare_dataset": True})
    return trl.SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows()),
        processing_class=word_tokenizer(),
        callbacks=[callback],
    )


def word_tokenizer() -> Any:
    """A tokenizer of a few words, which a trainer asks for."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@contextlib.contextmanager
def tiles_as_triton_folds_them() -> Any:
    """TRL's kernels for a GPU allocate nothing; what it runs elsewhere in their place does."""
    tiles = pytest.importorskip("trl.kernels.chunked_logprob")
    nothing = {
        name: lambda *args, **kwargs: None for name in ("_forward_tile", "_backward_tile", "_addmm_fp32")
    }
    with patch.multiple(tiles, **nothing):
        yield


def trained(s: Setup, folder: Path, make: Any = None, config: dict[str, Any] = CONFIG) -> tuple[Log, Windows]:
    """What the stack's trainer does in STEPS steps on meta, seen by the observer. `make`: what makes the
    trainer of the model where it is another task's.
    """
    from accelerate.state import AcceleratorState, PartialState

    target, meta = target_of(s), torch.device("meta")
    observer = Observer(Kernels(target))
    observer.answers = patches.answers(s, observer)
    windows = Windows(observer.log)
    model = outline(config, s)
    with observer.on_host(), quiet():
        replace_linears(model, s)
    with contextlib.ExitStack() as stack:
        stack.enter_context(watching(observer, s, target))
        if s.recipe == "trl":
            stack.enter_context(tiles_as_triton_folds_them())
        with observer.announce("load"):
            materialize(model, s, meta, observer)
        real = transformers.TrainingArguments.device
        stack.enter_context(
            patch.object(
                transformers.TrainingArguments, "device", property(lambda args: (real.fget(args), meta)[1])
            )
        )
        AcceleratorState._reset_state(reset_partial_state=True)
        stack.callback(AcceleratorState._reset_state, reset_partial_state=True)
        trainer = make(model, windows) if make else trainer_of(adapted(model, s), s, folder, windows)
        for state in (PartialState, AcceleratorState):
            stack.enter_context(patch.dict(state._shared_state, device=meta))
        with contextlib.redirect_stdout(None):
            trainer.train()
        observer.freeze()
    return observer.log, windows


def allocations(log: Log, begin: int, end: int, least: int) -> list[tuple[str, int]]:
    """(kind, bytes) of the events in [begin, end) on storages of at least so many bytes."""
    events = ((kind, log.storages[sid].nbytes) for kind, sid, _ in log.events[begin:end])
    return [(kind, nbytes) for kind, nbytes in events if nbytes >= least]


def steady(log: Log) -> tuple[int, int]:
    marks = [mark for mark in log.marks if mark.step == STEPS - 1]
    return marks[0].begin, marks[-1].end


def peak(log: Log, begin: int, end: int) -> int:
    return replay(log.events).peaks(begin, end).allocated


@pytest.mark.parametrize("case", HF)
def test_transformers_trainer(case: str, tmp_path: Path) -> None:
    s = setup_of("hf", HF[case])
    theirs, windows = trained(s, tmp_path)
    ours, _ = record(CONFIG, s, target_of(s), full=True)
    begin, end = steady(ours)
    expected = allocations(ours, begin, end, NUMBER + 1)
    found = allocations(theirs, windows.begins[-1], windows.ends[-1], NUMBER + 1)
    assert len(expected) > 300
    assert found[: len(expected)] == expected
    assert {kind for kind, _ in found[len(expected) :]} <= {"free"}, (
        "what follows is zero_grad, which our step begins with"
    )
    assert 0 <= peak(theirs, windows.begins[-1], windows.ends[-1]) - peak(ours, begin, end) <= BLOCKS * 512


@pytest.mark.parametrize("case", TRL)
def test_trls_sft_trainer(case: str, tmp_path: Path) -> None:
    """Its loss is our own rendering of TRL's: the same tiles and casts; numbers to a token may come in
    another order.
    """
    s = setup_of("trl", TRL[case])
    theirs, windows = trained(s, tmp_path)
    ours, _ = record(CONFIG, s, target_of(s), full=True)
    begin, end = steady(ours)
    least = BATCH * TOKENS * NUMBER + 1
    expected = Counter(allocations(ours, begin, end, least))
    found = Counter(allocations(theirs, windows.begins[-1], windows.ends[-1], least))
    assert {key: count for key, count in (found - expected).items() if key[0] == "alloc"} == {}
    assert {key: count for key, count in (expected - found).items() if key[0] == "alloc"} == {}
    assert 0 <= peak(theirs, windows.begins[-1], windows.ends[-1]) - peak(ours, begin, end) <= BLOCKS * 512


def test_the_trainer_holds_every_micro_batch_of_an_optimizer_step() -> None:
    """In both engines, the batches that wait are three int64 tensors each; a plain loop fetches one at a
    time.
    """
    for recipe, waiting in (("hf", 3), ("raw", 0)):
        setups = [
            setup_of(recipe, {"method": "lora", "checkpointing": "none", "gradient_accumulation": n})
            for n in (2, 5)
        ]
        logs = [record(CONFIG, s, target_of(s), full=True)[0] for s in setups]
        traced = [
            replay(log.events).allocated[min(mark.begin for mark in log.marks if mark.step >= 0) - 1]
            for log in logs
        ]
        planned = [plan(read_config(CONFIG), s).moment("load").allocated_bytes for s in setups]
        assert traced[1] - traced[0] == planned[1] - planned[0] == 3 * waiting * BATCH * TOKENS * 8
