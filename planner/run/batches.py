"""The batch that a training step reads: random tokens of the setup's shape, padded or packed."""

from __future__ import annotations

from typing import Any

import torch

from memplan.planner.inputs import sounds
from memplan.planner.inputs.picture_sizes import rule_of
from memplan.planner.inputs.pictures import read_sizes
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.tasks import rows
from memplan.planner.run import pictures
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.peft_types import PEFT_TYPES
from memplan.planner.tables.tasks import TASKS


def make(config: Any, setup: Setup, device: torch.device) -> dict[str, Any]:
    """input_ids and labels, B x S int64 on the device; an attention mask where the stack's collator makes one
    or a row is padded.

    The plain loop passes one tensor as both; the stacks' collators make labels and an all-ones mask of their
    own (transformers 5.23 data/data_collator.py DataCollatorForLanguageModeling).
    """
    if TASKS[setup.task].generates:
        return {}  # sampled in each step
    size = (rows(setup) * setup.micro_batch, setup.sequence_length)
    vocab = getattr(config.get_text_config(), "vocab_size", 1000)
    if setup.method != "inference" and setup.texts is not None:
        return _texts(setup, vocab, device)
    if sounds.is_speech(config.to_dict()):
        return _sounds(config, setup, device)
    if read_sizes(setup.images):
        ids = pictures.ids(config, setup, size[0], device)
    else:
        ids = torch.randint(0, vocab, size, device=device)
    if setup.method != "inference" and TASKS[setup.task].sequences:
        return _examples(ids, setup) | _shown(config, setup, ids)
    batch = {"input_ids": ids, "labels": ids}
    if setup.method == "inference":
        return {
            "input_ids": ids,
            "logits_to_keep": 1,  # what generate passes (transformers 5.23 generation/utils.py)
            **pictures.tensors(config, setup, size[0], device),
        }
    if setup.loop.collates:
        batch["labels"] = ids.clone()
    if setup.padded or (setup.loop.collates and setup.packed_documents == 1):
        batch["attention_mask"] = torch.ones_like(ids)
    if setup.padded:
        batch["attention_mask"][-1, setup.sequence_length - padding(setup) :].zero_()
    kind = PEFT_TYPES.get(str((setup.adapter or {}).get("peft_type", "")).upper())
    if kind is not None and kind.per_task:  # peft 0.21 peft_model.py, tuners/poly/model.py
        batch["task_ids"] = torch.zeros(setup.micro_batch, dtype=torch.int64, device=device)
    if setup.packed_documents > 1:
        batch["position_ids"] = _positions(setup, device)
    return batch | pictures.tensors(config, setup, size[0], device)


def _texts(setup: Setup, vocab: int, device: torch.device) -> dict[str, Any]:
    """Ids and a mask for each text of an example, apart: "0:input_ids" and so on (sentence-transformers 6.2
    base/data_collator.py).
    """
    size = (setup.micro_batch, setup.sequence_length)
    batch: dict[str, Any] = {}
    for number in range(setup.texts or 0):
        ids = torch.randint(0, vocab, size, device=device)
        batch |= {f"{number}:input_ids": ids, f"{number}:attention_mask": torch.ones_like(ids)}
        if setup.padded:
            batch[f"{number}:attention_mask"][-1, setup.sequence_length - padding(setup) :] = 0
    return batch


def _sounds(config: Any, setup: Setup, device: torch.device) -> dict[str, Any]:
    """Features of the encoder and labels, which the model shifts for its decoder: what the collator of a
    speech model returns (transformers examples/pytorch/speech-recognition/run_speech_recognition_seq2seq.py).
    """
    if setup.method == "inference":
        raise UsageError(
            "method 'inference': memplan has no rule for the transcription of sounds: name a --method"
        )
    sound = sounds.sound_of(config.to_dict())
    length = setup.target_length or sound.most_tokens
    return {
        "input_features": torch.rand(setup.micro_batch, sound.bins, sound.frames, device=device),
        "labels": torch.ones(setup.micro_batch, length, dtype=torch.int64, device=device),
    }


def _examples(ids: torch.Tensor, setup: Setup) -> dict[str, Any]:
    """The batch of a task whose collator makes its own tensors: every token real and, of a pair, part of the
    completion; one label for each row, a number where the head has one output.
    """
    task = TASKS[setup.task]
    batch: dict[str, Any] = {
        name: ids if name == "input_ids" else torch.ones_like(ids)
        for name in task.sequences
        if name not in task.targets
    }
    length = setup.target_length or setup.sequence_length
    for name in task.targets:
        batch[name] = torch.ones(ids.shape[0], length, dtype=ids.dtype, device=ids.device)
    if setup.padded:
        batch["attention_mask"][-1, setup.sequence_length - padding(setup) :] = 0
    if task.row_labels:
        kind = torch.float32 if setup.num_labels == 1 else torch.int64
        batch["labels"] = torch.zeros(ids.shape[0], dtype=kind, device=ids.device)
    return batch


def _shown(config: Any, setup: Setup, ids: torch.Tensor) -> dict[str, Any]:
    """What pictures and videos add to a task's batch: they are part of the prompt, which is not scored (trl
    1.16 trainer/dpo_trainer.py DataCollatorForVisionPreference, trainer/kto_trainer.py
    DataCollatorForVisionUnpairedPreference). Rows with another completion have the same kinds of tokens.
    """
    found = pictures.tensors(config, setup, len(ids), ids.device)
    if not found:
        return {}
    task, kinds, shown = TASKS[setup.task], rule_of(config.to_dict()).kinds, pictures.shown(config, setup)
    for name in task.sequences:
        if name.endswith("completion_mask"):
            mask = torch.ones(ids.shape, dtype=torch.int64)
            mask[:, :shown] = 0
            found[name] = mask.to(ids.device)
    if task.divergence:
        found["KL_input_ids"] = ids.clone()
        found |= {f"KL_{kinds}": found[kinds].clone()} if kinds else {}
    return found


def waiting(setup: Setup) -> int:
    """Micro-batches on the device beside the one that runs: the Trainer fetches all of an optimizer step's at
    once (transformers 5.23 trainer.py get_batch_samples), a plain loop one by one.
    """
    waits = setup.loop.prefetches and setup.method != "inference"
    return setup.gradient_accumulation - 1 if waits else 0


def padding(setup: Setup) -> int:
    """Padding tokens of the batch: an eighth of its last row where it is padded."""
    return max(1, setup.sequence_length // 8) if setup.padded else 0


def _positions(setup: Setup, device: torch.device) -> torch.Tensor:
    """B x S positions that restart at each of the row's documents, all of nearly one length."""
    length = -(-setup.sequence_length // setup.packed_documents)
    row = torch.arange(setup.sequence_length) % length
    several = row.repeat(setup.micro_batch, 1)
    return torch.empty_like(several, device=device) if device.type == "meta" else several.to(device)
