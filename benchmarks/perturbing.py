"""What a run of another library's program shows: the settings that reach transformers, peft and torch, the
parameters, and what its last optimizer step allocates on a CPU. For `perturbed_keys.py`.

Each run is a process of its own, forked from one that has imported the library, so that what a library
patches ends with the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import gc
import os
import pickle
import re
import select
import signal
import sys
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

BATCH, TOKENS = 2, 64
NUMBER = BATCH * TOKENS * 8  # bytes: a number for each token
BLOCKS = 8 * 512  # bytes: eight scalars, which a trainer may keep more or fewer of
SECONDS = 120  # of one run

_WORKERS = {"dataloader_num_workers": 1}
TRAINING_VALUES: dict[str, Any] = {
    "accelerator_config": {"split_batches": False, "dispatch_batches": False},
    "dataloader_multiprocessing_context": "fork",
    "dataloader_num_workers": 1,
    "dataloader_prefetch_factor": 2,
    "debug": "underflow_overflow",
    "hub_strategy": "end",
    "log_level": "error",
    "log_level_replica": "error",
    "logging_steps": 1,
    "logging_strategy": "epoch",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "lr_scheduler_type": "cosine",
    "max_steps": 3,
    "report_to": [],
    "save_steps": 3,
    "save_strategy": "epoch",
    "eval_steps": 1,
    "logging_dir": "logs",
    "push_to_hub_model_id": "a/b",
    "half_precision_backend": "cpu_amp",
    "optim": "adamw_torch",
}
"""Values of transformers' TrainingArguments where the annotation says too little."""
TRAINING_BESIDE: dict[str, dict[str, Any]] = {
    "dataloader_multiprocessing_context": _WORKERS,
    "dataloader_persistent_workers": _WORKERS,
    "dataloader_prefetch_factor": _WORKERS,
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine_with_restarts"},
}
"""What a training argument needs beside it to be taken."""

Seen = dict[str, Any]
"""What a run shows: `settings` (path -> text), `parameters`, `step` (bytes -> count) and `peak` (bytes)."""


def flat(value: Any, path: str = "", depth: int = 0) -> dict[str, str]:
    """Every leaf of nested settings as text, by its path. Addresses are left out; what is deeper than eight
    levels is its type.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    elif hasattr(value, "model_dump") and not isinstance(value, type):
        with contextlib.suppress(Exception):
            value = value.model_dump()
    elif hasattr(value, "to_dict") and not isinstance(value, type):
        with contextlib.suppress(Exception):
            value = value.to_dict()
    if isinstance(value, Mapping) and depth < 8:
        found: dict[str, str] = {}
        for key, inner in value.items():
            found |= flat(inner, f"{path}.{key}" if path else str(key), depth + 1)
        return found
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = (
            sorted(map(str, value)) if isinstance(value, (set, frozenset)) else [str(item) for item in value]
        )
        return {path: re.sub(r"0x[0-9a-f]+", "", str(parts))}
    text = str(value.value if isinstance(value, enum.Enum) else value)
    return {path: re.sub(r" at 0x[0-9a-f]+", "", text)[:400]}


class Watch:
    """Records what the program inside does; `begin` and `end` are told of each optimizer step."""

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}
        self.parameters: Counter[str] = Counter()
        self.steps = 0
        self.step: Counter[int] = Counter()
        self.peak = self._now = 0
        self._alive: dict[int, Any] = {}
        self._open = False
        self._paused = 0

    def say(self, kind: str, value: Any) -> None:
        """Settings that reach a library."""
        self.settings |= flat(value, kind)

    def begin(self, model: Any = None) -> None:
        """An optimizer step begins: what is recorded is the last one's."""
        gc.collect()  # what is garbage by now is not the step's
        for tensor in () if model is None else (*model.parameters(), *model.buffers()):
            self.made(tensor)  # a weight that no op returned yet, as files map it
        self.step, self.peak, self._open = Counter(), self._now, True
        if model is not None:
            self.parameters = Counter(
                f"{tuple(p.shape)} {p.dtype} {p.device.type}{' trained' if p.requires_grad else ''}"
                for p in model.parameters()
            )

    def end(self, *_: Any, **__: Any) -> None:
        """An optimizer step ends."""
        self.steps += self._open
        self._open = False

    def seen(self) -> Seen:
        """What the run showed. RuntimeError where it took no second step."""
        if self.steps < 2:
            raise RuntimeError(f"{self.steps} optimizer steps were taken")
        tensors = {size: count for size, count in self.step.items() if size > NUMBER}
        return {
            "settings": self.settings,
            "parameters": dict(self.parameters),
            "step": tensors,
            "peak": self.peak,
        }

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is made inside is the host's: batches."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def made(self, tensor: Any) -> None:
        """A tensor that an op returned: its storage counts once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or self._paused:
            return
        self._alive[key] = weakref.ref(storage, lambda _, key=key, size=size: self._died(key, size))
        self._now += size
        if self._open:
            self.step[size] += 1
            self.peak = max(self.peak, self._now)

    def _died(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self._now -= size

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Records every op inside, of every thread that autograd runs on a CPU (the caller's)."""
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        watch = self

        class Ops(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = func(*args, **(kwargs or {}))
                for leaf in tree_leaves(out):
                    if isinstance(leaf, torch.Tensor) and not leaf.is_meta:
                        watch.made(leaf)
                return out

        data = torch.utils.data.dataloader._BaseDataLoaderIter
        fetch = data.__next__

        def fetched(it: Any) -> Any:
            with watch.paused():
                return fetch(it)

        data.__next__ = fetched
        try:
            with Ops():
                yield
        finally:
            data.__next__ = fetch


def watch_trainers(watch: Watch) -> None:
    """transformers' Trainer and `from_pretrained` of this process tell the watch of their settings and
    steps.
    """
    import transformers
    from transformers import trainer as module

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, *_: Any, model: Any = None, **__: Any) -> None:
            watch.say("args", args)
            watch.say("peft", getattr(model, "peft_config", {}))

        def on_step_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
            watch.begin(model)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.end()

    module.DEFAULT_CALLBACKS.insert(0, Steps)
    load = transformers.PreTrainedModel.from_pretrained.__func__

    def loaded(cls: type, *args: Any, **kwargs: Any) -> Any:
        watch.say("load", {key: value for key, value in kwargs.items() if key != "config"})
        return load(cls, *args, **kwargs)

    transformers.PreTrainedModel.from_pretrained = classmethod(loaded)


def rows_in_this_process() -> None:
    """Datasets are mapped and saved without worker processes, which a forked process cannot start."""
    import datasets

    def alone(method: Any) -> Any:
        return lambda *args, **kwargs: method(*args, **{**kwargs, "num_proc": None})

    for name in ("map", "filter", "save_to_disk"):
        setattr(datasets.Dataset, name, alone(getattr(datasets.Dataset, name)))


def apart(run: Callable[[], Seen], seconds: float = SECONDS) -> Seen | str:
    """What `run` shows in a process of its own; the last line of its error where it fails or lasts longer."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        silence = os.open(os.devnull, os.O_WRONLY)
        if not os.environ.get("PERTURBED_LOUD"):
            os.dup2(silence, 1)
            os.dup2(silence, 2)
        try:
            answer: Seen | str = run()
        except BaseException as error:  # a library may end the process
            if os.environ.get("PERTURBED_LOUD"):
                traceback.print_exc()
            answer = told(error)
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    data, end = b"", time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            data = pickle.dumps(f"no end within {seconds:.0f} s")
            break
        part = os.read(reading, 1 << 20)
        if not part:
            break
        data += part
    os.close(reading)
    os.waitpid(child, 0)
    return pickle.loads(data) if data else "the process ended without an answer"


def told(error: BaseException) -> str:
    """An error in one line, without paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {' '.join(lines[:4])}"
    return re.sub(r"(/[\w.+-]+){2,}", "...", text)[:200]


def differences(before: Seen, after: Seen) -> dict[str, list[str]]:
    """What differs between two runs: names of `settings`, and of what moves memory (`moved`)."""
    one, two = before["settings"], after["settings"]
    settings = sorted(name for name in {*one, *two} if one.get(name) != two.get(name))
    moved = [part for part in ("parameters", "step") if before[part] != after[part]]
    if abs(before["peak"] - after["peak"]) > BLOCKS:
        moved.append("peak")
    return {"settings": settings, "moved": moved}


CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}


def small_model(folder: Any) -> None:
    """A small Llama with a tokenizer of as many words in `folder`/model, and rows of TOKENS tokens in
    `folder`/rows.jsonl.
    """
    import json

    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG, tie_word_embeddings=False))
    model.save_pretrained(folder / "model")
    names = ["<pad>", "</s>", "<unk>"]
    words = {word: i for i, word in enumerate([*names, *(f"w{i}" for i in range(3, CONFIG["vocab_size"]))])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", bos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "model")
    tokens = list(range(3, 3 + TOKENS))
    row = {"input_ids": tokens, "attention_mask": [1] * TOKENS, "labels": tokens}
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({**row, "input_ids": tokens[i:] + tokens[:i]}) + "\n" for i in range(16))
