"""What a training decides by the values of its batches: `python dryrun_branches.py KIND MODEL OUT`.

Runs a Trainer, TRL's SFTTrainer or a plain loop over padded, unpadded and packed batches, on a GPU where
torch has one, and writes what was decided: was a mask built, how was attention called, what was the loss
divided by, where do packed documents begin.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers
from transformers import masking_utils
from transformers.integrations import sdpa_attention
from transformers.loss import loss_utils

KIND, MODEL, OUT = sys.argv[1:4]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEEN: list[list[Any]] = []
LENGTHS = {"padded": (24, 17), "unpadded": (24, 24), "packed": (9, 15)}


def note(*what: Any) -> None:
    """Keep a decision, once in a row."""
    if not SEEN or SEEN[-1] != list(what):
        SEEN.append(list(what))


def recorded(module: Any, name: str, decision: Any) -> None:
    """Replace a library's function by one that notes what `decision` makes of its arguments and result."""
    call = getattr(module, name)

    def observed(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        note(name, *decision(args, kwargs, result))
        return result

    setattr(module, name, observed)


def number(value: Any) -> Any:
    """A tensor of one number as that number."""
    return value.item() if isinstance(value, torch.Tensor) else value


recorded(masking_utils, "sdpa_mask", lambda args, kwargs, mask: [None if mask is None else list(mask.shape)])
for interface in (masking_utils.AttentionMaskInterface, masking_utils.ALL_MASK_ATTENTION_FUNCTIONS):
    interface._global_mapping["sdpa"] = masking_utils.sdpa_mask
recorded(
    masking_utils,
    "find_packed_sequence_indices",
    lambda args, kwargs, found: [None if found is None else found.tolist()],
)
recorded(
    loss_utils,
    "fixed_cross_entropy",
    lambda args, kwargs, loss: [
        number(kwargs.get("num_items_in_batch", args[2] if len(args) > 2 else None)),
        int((args[1] != -100).sum()),
    ],
)
recorded(
    transformers.Trainer, "get_batch_samples", lambda args, kwargs, found: [number(found[1])]
)  # what a loss that is summed is divided by
attention = torch.nn.functional.scaled_dot_product_attention


def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Note how attention is called: its shapes, whether it has a mask or is causal by itself."""
    mask = kwargs.get("attn_mask", args[0] if args else None)
    shape = None if mask is None else list(mask.shape)
    note("attention", list(query.shape), list(key.shape), shape, kwargs.get("is_causal", False))
    return attention(query, key, value, *args, **kwargs)


torch.nn.functional.scaled_dot_product_attention = attended


def rows(mode: str) -> list[dict[str, list[int]]]:
    """Documents of this mode's lengths; labels are the ids, the first three of each not counted."""
    found = []
    for place in range(4):
        ids = [3 + (7 * place + n) % 50 for n in range(LENGTHS[mode][place % 2])]
        found.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return found


def loaded() -> Any:
    """The model, its weights random, as a script would load it."""
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(MODEL))


def collator(mode: str, tokenizer: Any) -> Any:
    """transformers' own collator for that kind of batch."""
    if mode == "packed":
        return transformers.DataCollatorWithFlattening()
    return transformers.DataCollatorForSeq2Seq(tokenizer)


def with_loop(mode: str, tokenizer: Any) -> None:
    """A plain loop over what the collator makes."""
    model = loaded().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters())
    collate, data = collator(mode, tokenizer), rows(mode)
    for place in (0, 2):
        batch = {
            name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
            for name, value in collate(data[place : place + 2], return_tensors="pt").items()
        }
        note("tokens", int((batch["labels"] != -100).sum()))
        model(**batch, use_cache=False).loss.backward()  # with a cache, transformers looks for no packing
        optimizer.step()
        optimizer.zero_grad()


def with_trainer(mode: str, tokenizer: Any) -> None:
    """transformers' Trainer."""
    args = transformers.TrainingArguments(
        OUT + mode, per_device_train_batch_size=2, report_to=[], max_steps=2
    )
    transformers.Trainer(loaded(), args, collator(mode, tokenizer), train_dataset=rows(mode)).train()


def with_trl(mode: str, tokenizer: Any) -> None:
    """TRL's SFTTrainer, whose own collator pads and packs."""
    import datasets
    import trl

    args = trl.SFTConfig(
        OUT + mode,
        per_device_train_batch_size=2,
        report_to=[],
        max_steps=2,
        bf16=False,  # on a GPU, TRL would choose it
        packing=mode == "packed",
        max_length=24,
    )
    data = datasets.Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows(mode)])
    trl.SFTTrainer(loaded(), args, train_dataset=data, processing_class=tokenizer).train()


def main() -> None:
    """Every mode, one after the other."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    found = {}
    for mode in LENGTHS:
        SEEN.clear()
        transformers.set_seed(1)
        {"loop": with_loop, "trainer": with_trainer, "trl": with_trl}[KIND](mode, tokenizer)
        found[mode] = list(SEEN)
    with open(OUT, "w", encoding="utf-8") as file:
        json.dump({"device": DEVICE, "seen": found}, file)


assert sdpa_attention is not None
main()
