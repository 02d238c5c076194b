"""Training scripts of each task dry-run, and what the trace and the formula predict of them.

`python benchmarks/tasks_dryrun.py --python CUDA_PYTHON` runs what is not in tasks_dryrun.json yet and keeps
it there; `--page > docs/tasks.md` writes the page. The scripts are TRL's and transformers' trainers as their
documentation calls them, with random weights, over stub libraries: nothing here runs on a GPU. CUDA_PYTHON
needs torch, transformers, peft, trl, datasets and triton, without which TRL folds logits by other tensors,
and torchvision and num2words for videos.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vision_scripts
import vision_tasks
from script_runs import HEADER, bytes_of, command, error, summary, table
from tasks_scripts import CONFIGS, HEAD, SCRIPTS

from memplan.planner.formula.engine import plan, replay_of
from memplan.planner.formula.lacking import lacking
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.companions import COMPANIONS
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.tasks import TASKS
from memplan.planner.tables.units import MIB
from memplan.profiler.dryrun.rehearse import Rehearsal, rehearse

KEPT = Path(__file__).with_suffix(".json")
GPUS = ("a100-80gb", "h100-80gb")


@dataclass(frozen=True, slots=True)
class Case:
    """One script on one GPU."""

    task: str
    model: str
    method: str
    batch: int
    tokens: int
    checkpoints: bool
    gpu: str
    sampled: tuple[int, ...] = ()  # of a task that generates: completion tokens, micro-batches of a step
    picture: tuple[int, ...] = (0, 0)
    """Width and height of an example's picture, frames too of a video (0: a picture, by the model's whole
    processor), or bins and frames of its sound; zeros: text alone."""
    said: Mapping[str, Any] = field(default_factory=dict)
    """Setup fields of the task's own."""

    @property
    def label(self) -> str:
        """The case's name in the file of results."""
        kept = "checkpoints" if self.checkpoints else "none"
        beside = f" {self.beside}" if self.beside else ""
        shape = f"b{self.batch} s{self.tokens}{beside} {kept}"
        whole = f"{self.task} {self.model} {self.method} {shape} {self.gpu}"
        return " ".join((whole, *map(str, self.sampled), *self.words))

    @property
    def words(self) -> list[str]:
        """What the script is told beside its sizes, and the setup too: FIELD=VALUE."""
        return [f"{name}={value}" for name, value in self.said.items()]

    @property
    def beside(self) -> str:
        """What an example has beside its tokens, "" for text alone."""
        return "x".join(str(size) for size in self.picture if size)

    @property
    def targets(self) -> str:
        """The layers that the script adapts."""
        return "peft-default" if self.task == "prm" else "all-linear"

    @property
    def whole(self) -> bool:
        """Whether the script is one of benchmarks/vision_tasks.py."""
        return len(self.picture) == 3

    @property
    def heard(self) -> bool:
        """Whether an example is a sound."""
        return self.model.startswith("whisper")

    def config(self) -> Mapping[str, Any]:
        """The model's config.json."""
        found = {**CONFIGS, **vision_scripts.CONFIGS}.get(self.model)
        return find(self.model).config if found is None else found

    def setup(self) -> Setup:
        """What the script says, as memplan's options have it."""
        own: dict[str, Any] = {}
        if self.sampled:  # with Triton there is a newer torch here than for the others
            own = dict(zip(("completion_length", "gradient_accumulation"), self.sampled, strict=True))
            own |= {"torch": "2.14"}
            if self.task in ("grpo", "rloo"):
                own["reference"] = "model" if self.method == "full" else "base"
        adapters = {} if self.method == "full" else {"targets": (self.targets,), "rank": 16, "alpha": 32}
        return resolve(
            {
                "task": self.task,
                "recipe": "hf"
                if self.task in (*OF_TRANSFORMERS, "embed")
                or (self.task == "sft" and self.whole)
                or (self.model in vision_scripts.OF_TRAINER and not self.whole)
                else "trl",
                "method": self.method,
                "micro_batch": self.batch,
                "sequence_length": self.picture[1] if self.heard else self.tokens,
                "images": (f"1@{self.beside}",) if self.beside and not self.heard else (),
                "checkpointing": "non_reentrant" if self.checkpoints else "none",
                "weight_dtype": "bfloat16",
                "compute_dtype": "bfloat16",
                "num_labels": 5 if self.task == "classify" else None,
                "target_length": (self.tokens if self.heard else self.tokens // 4)
                if self.task == "seq2seq"
                else None,
                "gpu": self.gpu,
                "torch": "2.14"
                if self.beside or "trl" in self.said or self.task in (*LLAMAS, "embed")
                else "2.12",
                **adapters,
                **({} if self.method == "full" else {"dropout": 0.05}),
                **own,
                **self.said,
            }
        )


LLAMAS: dict[str, tuple[tuple[str, str, int, int, bool], ...]] = {
    "prm": (
        ("llama-3.2-1b", "full", 4, 1024, True),
        ("llama-3.2-1b", "lora", 4, 512, False),
        ("llama-3.1-8b", "lora", 2, 1024, True),
    ),
}
"""Tasks that only these shapes are run of, prm with trl 1.0; torch 2.14."""

EARLIER = (
    ("dpo", "llama-3.2-1b", "lora", 2, 512, True, ()),
    ("dpo", "llama-3.2-1b", "full", 1, 1024, False, ()),
    ("dpo", "llama-3.2-1b", "full", 4, 256, True, ()),
    ("dpo", "qwen2.5-0.5b", "qlora", 2, 512, True, ()),
    ("kto", "llama-3.2-1b", "lora", 4, 512, True, ()),
    ("kto", "llama-3.2-1b", "full", 2, 512, False, ()),
    ("kto", "qwen2.5-0.5b", "qlora", 4, 512, True, ()),
    ("orpo", "llama-3.2-1b", "lora", 2, 512, True, ()),
    ("cpo", "llama-3.2-1b", "full", 2, 256, True, ()),
    ("grpo", "llama-3.2-1b", "lora", 8, 256, True, (64, 2)),
    ("grpo", "llama-3.2-1b", "full", 4, 192, True, (32, 2)),
    ("rloo", "llama-3.2-1b", "lora", 8, 128, True, (32, 2)),
)
"""With TRL before 1.15, which takes whole logits: 1.9 (trl=1.13) and 1.14; torch 2.14."""

SHAPES = (
    ("qwen2.5-0.5b", "lora", 4, 1024, True),
    ("qwen2.5-0.5b", "full", 2, 512, False),
    ("qwen2.5-0.5b", "qlora", 2, 1024, True),
    ("llama-3.2-1b", "lora", 2, 512, False),
    ("llama-3.2-1b", "full", 2, 1024, True),
)


WITHOUT = (("classify", "qlora"), ("orpo", "qlora"), ("cpo", "qlora"))
"""Tasks that have no rule for a method."""


OF_TRANSFORMERS = ("classify", "mlm", "seq2seq")
"""Tasks of transformers' own Trainer."""
ALONE = (
    ("mlm", "bert-base", "full", 8, 256, False),
    ("classify", "bert-base", "full", 8, 256, False),
    ("classify", "bert-base", "lora", 16, 128, False),
    ("seq2seq", "t5-base", "full", 4, 512, False),
    ("seq2seq", "t5-base", "lora", 4, 512, True),
)
"""An encoder's tasks and an encoder-decoder's."""


SAMPLED = (
    ("grpo", "qwen2.5-0.5b", "full", 4, 256, False, (16, 1), {}),
    ("grpo", "qwen2.5-0.5b", "lora", 8, 256, True, (16, 2), {}),
    ("grpo", "qwen2.5-0.5b", "qlora", 4, 256, True, (32, 8), {}),
    ("grpo", "llama-3.2-1b", "full", 4, 192, True, (32, 2), {}),
    ("grpo", "llama-3.2-1b", "lora", 4, 192, True, (32, 16), {}),
    ("grpo", "llama-3.2-1b", "lora", 4, 192, True, (16, 2), {"reward_model": "llama-3.2-1b", "top_p": 0.9}),
    ("grpo", "llama-3.2-1b", "full", 4, 192, False, (16, 1), {"top_k": 50}),
    ("rloo", "llama-3.2-1b", "full", 4, 192, True, (32, 2), {}),
    ("rloo", "llama-3.2-1b", "lora", 8, 256, True, (16, 4), {"reward_model": "llama-3.2-3b"}),
    ("rloo", "llama-3.1-8b", "lora", 4, 256, True, (16, 1), {}),
    ("distill", "llama-3.2-1b", "full", 4, 256, True, (16, 2), {"teacher": "llama-3.2-3b"}),
    ("distill", "llama-3.2-1b", "lora", 8, 512, True, (16, 1), {"teacher": "llama-3.1-8b"}),
    ("distill", "llama-3.2-3b", "lora", 2, 512, False, (16, 1), {"teacher": "llama-3.1-8b"}),
    ("ppo", "qwen2.5-0.5b", "full", 4, 128, False, (16, 2), {"num_mini_batches": 2, "rollout_batch": 3}),
    ("ppo", "qwen2.5-0.5b", "lora", 16, 256, False, (32, 1), {}),
    ("ppo", "llama-3.2-1b", "lora", 4, 256, False, (16, 2), {}),
    ("ppo", "llama-3.2-1b", "full", 2, 192, False, (16, 1), {"reward_model": "llama-3.2-3b"}),
    ("ppo", "qwen2.5-0.5b", "lora", 2, 192, False, (16, 1), {"autocast": "bfloat16", "eval_batch": 24}),
)
"""Completions are short: a dry run calls every kernel of every token."""
EMBEDDED = (
    ("llama-3.2-1b", "full", 16, 256, True, {"texts": 2}),
    ("llama-3.2-1b", "lora", 8, 256, False, {"texts": 3}),
    ("llama-3.2-1b", "lora", 32, 256, True, {"texts": 2, "mini_batch": 4}),
    ("llama-3.1-8b", "lora", 8, 512, True, {"texts": 2}),
)
"""A cached loss has a mini-batch."""
NEWER = (
    ("rloo", "qwen3-0.6b", "full", 8, 256, True, (32, 2), {}),
    ("rloo", "qwen3-1.7b", "lora", 8, 512, True, (16, 2), {}),
    ("rloo", "llama-3.2-3b", "qlora", 4, 256, True, (16, 2), {}),
    ("distill", "qwen3-0.6b", "full", 4, 512, True, (16, 2), {"teacher": "qwen3-4b"}),
    ("distill", "qwen3-1.7b", "lora", 4, 512, True, (16, 1), {"teacher": "qwen3-8b"}),
    ("grpo", "qwen3-0.6b", "full", 8, 256, True, (16, 2), {"reward_model": "qwen3-0.6b"}),
    ("grpo", "qwen3-4b", "lora", 4, 256, True, (16, 1), {"top_p": 0.9, "top_k": 50}),
    ("embed", "qwen3-0.6b", "full", 32, 128, False, (), {"texts": 2}),
    ("embed", "qwen3-4b", "lora", 16, 256, True, (), {"texts": 3}),
    ("embed", "qwen3-0.6b", "full", 64, 256, True, (), {"texts": 2, "mini_batch": 8}),
    ("embed", "bert-base", "full", 32, 256, False, (), {"texts": 2, "weight_dtype": "float32"}),
    ("embed", "bge-large", "full", 16, 256, True, (), {"texts": 3, "weight_dtype": "float32"}),
    (
        *("embed", "e5-large", "full", 64, 512, False, ()),
        {"texts": 2, "mini_batch": 8, "weight_dtype": "float32"},
    ),
    ("prm", "qwen3-0.6b", "full", 4, 1024, True, (), {}),
    ("prm", "qwen3-4b", "lora", 4, 1024, True, (), {}),
)
"""Newer tasks at sizes that people use, on capabilities 9.0 and 8.9."""


def cases() -> Iterator[Case]:
    """Every task on two GPUs: decoders full, with LoRA and QLoRA, with and without checkpoints; BERT, T5."""
    for model, method, batch, tokens, checkpoints, picture in vision_scripts.BESIDE:
        task = "seq2seq" if model.startswith("whisper") else "sft"
        for gpu in GPUS:
            yield Case(task, model, method, batch, tokens, checkpoints, gpu, picture=picture)
    for *shape, picture, own in vision_tasks.SHOWN:
        yield from (Case(*shape, gpu, own, picture) for gpu in GPUS)
    for task, *shape in ALONE:
        yield from (Case(task, *shape, gpu) for gpu in GPUS)
    for *shape, own, said in SAMPLED:
        yield from (Case(*shape, gpu, own, said=said) for gpu in GPUS)
    for *shape, own, said in NEWER:
        yield from (Case(*shape, gpu, own, said=said) for gpu in ("h100-80gb", "rtx-4090"))
    for *shape, said in EMBEDDED:
        yield from (Case("embed", *shape, gpu, said=said) for gpu in GPUS)
    for task, shapes in LLAMAS.items():
        yield from (Case(task, *shape, gpu) for shape in shapes for gpu in GPUS)
    for *shape, own in EARLIER:
        for trl, gpus in (("1.13", GPUS), ("1.14", GPUS[1:])):
            yield from (Case(*shape, gpu, own, said={"trl": trl}) for gpu in gpus)
    for shape in SHAPES:
        for task in SCRIPTS:
            if (
                task not in ("mlm", "seq2seq", "embed", "grpo", "rloo", "distill", "ppo", *LLAMAS)
                and (task, shape[1]) not in WITHOUT
            ):
                yield from (Case(task, *shape, gpu) for gpu in GPUS)


def judged(kept: dict[str, Any]) -> list[Case]:
    """The cases that have been dry-run and predicted."""
    return [case for case in cases() if "formula" in kept.get(case.label, ())]


def script(case: Case) -> str:
    """What the case runs."""
    if case.whole:
        return vision_tasks.script(case.task, case.model)
    if case.beside:
        return vision_scripts.HEAD + vision_scripts.SCRIPTS[case.model]
    return HEAD + SCRIPTS[case.task]


def dry_run(case: Case, python: str) -> dict[str, int]:
    """Peak allocated and reserved bytes of the script, over stub libraries."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(case.config()))
        for beside in COMPANIONS.keys() & case.said.keys():
            (folder / beside).mkdir()
            (folder / beside / "config.json").write_text(json.dumps(find(case.said[beside]).config))
        (folder / "train.py").write_text(script(case))
        more = (case.picture if case.beside else ()) + case.sampled
        sizes = tuple(map(str, (case.batch, case.tokens, int(case.checkpoints), *more)))
        words = ("python", str(folder / "train.py"), name, case.method, *sizes, *case.words)
        request = Rehearsal(words, find_gpu(case.gpu), python=python, random_weights=True)
        found = rehearse(request).observation
    return bytes_of(found)


def predictions(case: Case) -> dict[str, dict[str, int]]:
    """The same of the trace and of the formula."""
    from memplan.planner.compiled.engine import Compiled
    from memplan.planner.trace.engine import trace

    config, setup, blocks = case.config(), case.setup(), None
    if case.beside:  # a compiled trace of one size is that trace
        made = trace(config, setup)
        return dict.fromkeys(
            ("trace", "formula"),
            bytes_of(made.peak),
        )
    if case.model in CONFIGS or lacking(find(case.model).spec(), setup):
        made = Compiled(config, setup).at((case.batch, case.tokens), case.model)
    else:
        spec = find(case.model).spec()
        made, blocks = plan(spec, setup), replay_of(spec, setup)
    found = {"trace": trace(config, setup), "formula": made}
    return {name: bytes_of(p.peak) for name, p in found.items()} | (
        {} if blocks is None else {"blocks": {"allocated_bytes": blocks.step_allocated_bytes}}
    )


PAGE = """# Tasks: what is trained, and how well it is predicted

`--task NAME` says what is trained; training files, scripts and launch lines that name one of TRL's trainers
set it. `memplan list tasks` lists them, each with what of it is not counted: such a prediction says "at
least" and has no verdict of fits.

| task | rows for each example | head | reference model | read in |
|---|---|---|---|---|
{tasks}

`--set num_labels=N` is the size of a classifier's head. `--set reference=base|model|none` says what DPO
compares with: the model with its adapter switched off (the default with adapters), a second copy (the default
without), or log-probabilities that came with the data. `mlm` and `seq2seq` train a class that transformers
lists for them (BERT, T5): others are refused. `--set target_length=N` is the length of the decoder's rows
(the encoder's where it is left out). Not counted: `token_type_ids`, 8 bytes a token.

`dpo_logits` is torchtune's and LLaMA-Factory's DPO, `kto_logits` LLaMA-Factory's KTO (`stage: kto`), which
copies the logits of chosen and rejected rows besides. `asft` is LLaMA-Factory's `use_asft_loss`, full
fine-tuning beside a frozen copy of the model. Its reward models and PPO (`stage: rm`, `ppo`: a value head on
whole logits of both, every layer's hidden states) are "at least".

## TRL's releases

How `dpo`, `kto`, `grpo`, `rloo`, `orpo` and `cpo` take log-probabilities changed twice in TRL;
`--set trl=` says whose:

| `trl` | releases read | log-probabilities |
|---|---|---|
| `1.13` | 1.9, 1.12, 1.13 | of whole logits, row by row; DPO's and KTO's metrics copy them once more |
| `1.14` | 1.14 | of whole logits, by one Triton kernel, which has the entropies too |
| `1.16` | 1.15, 1.16 | of tiles of logits; ORPO and CPO as in 1.14 |

DPO and KTO hold the whole logits of model and reference until their metrics are there. `1.16` is the
default; the recipe `axolotl` has `1.13`, since axolotl 0.19 pins TRL 1.9: its `rl: dpo`, `ipo`, `kto`,
`orpo`, `simpo` (`cpo`), `grpo`, `gdpo` and `process_reward_model` are these tasks, `ebft` is "at least".
GRPO's adapter is made by axolotl, not by TRL, which with a `beta` keeps a frozen copy of it: "at least".
Without an adapter axolotl loads a reference model even where TRL loads its own (KTO, GRPO) or there is
none (SimPO), and drops it before training: it is not in `load`. The formula has all of these but GRPO and
RLOO of whole logits, which the trace answers. KTO's second model returns its keys and values too, since
nobody switches them off there.

TRL 1.15's release notes print 1.14.2's peaks (gemma-3-1b, 8,192 tokens, H100): DPO 48.97 GiB, KTO 64.91, GRPO
24.15; the trace with `trl=1.14` has 48.75, 64.75 and 24.17. LLaMA-Factory 0.9.5's KTO (llama-3.2-1b, LoRA,
4 x 512, H100), run dry by its own command's code: 8,702.8 MiB; the trace is 0.001 % below it, and reserves
the same.

## Sampling

`grpo` trains on completions that the model samples itself: the moment `generate`, before the step. A row
(`--seq`) is a prompt and a completion, `--set completion_length=N` says how much of it is sampled (512, as
TRL's default). `--batch` counts completions; `--set generations=N`, how many of them share a prompt, moves no
memory, but a generation must be a multiple of it. As many rows are sampled at once as an optimizer step
trains on, or `--set steps_per_generation=N` micro-batches. `--set reference=base` or `model` is a `beta`
above 0.

The trace runs transformers' own generate. Of its loop it runs the first token, which reads the prompts, and
the last; between them the KV cache is concatenated as it grows. That is the whole loop's peak: a token makes
the tensors of the one before, of which only the cache, the mask and what attention reads of them are longer
(tests/test_trace_sampling.py compares it with a loop that runs token by token). Reserved bytes are less
exact: of a completion of more than 64 tokens the cache grows in 64 steps, so that fewer blocks stay behind.

```console
$ memplan llama-3.2-1b --task grpo --recipe trl --method lora --seq 1024 --batch 8 --gpu rtx-4090
```

The formula samples as the trace does: the first token, the growth of the cache, the last token, the scores
of one micro-batch beside those of the others (planner/formula/generation.py); its
blocks are within {sampled:.2%} of the dry runs below. Several GPUs are refused.

The trace answers what the formula has no rule for. `--set top_p=0.9` and `--set top_k=50` run transformers'
own code. `--set reward_model=MODEL` is a reward model beside the trained one, which reads all that is sampled
at once and keeps keys and values while it does; without one, rewards are computed on the host. Of a script's
`reward_funcs` a function is on the host, and a model is read by its name or its `from_pretrained`; what may
be either is "at least".

`rloo` samples alike, always takes the log-probabilities before training, and has a reference model (its
`beta` is 0.05). `distill` is TRL's DistillationTrainer: `--set teacher=MODEL` is held in the trained weights'
dtype; the loss needs two tiles of fp32 logits, whatever its `beta`, and runs without autocast, since the
trainer calls the backbones beside the forward that accelerate wrapped. Both have a formula
(planner/formula/forward/policy.py, distillation.py). Their own trainers, run on meta, allocate what the trace
does (tests/test_trace_sampled_trainers.py).

`ppo` is the PPOTrainer that TRL had up to 1.12. Four models are on the GPU: the policy and a value model,
which the optimizer trains whole even where the policy has an adapter, a reference and a reward model.
`--set reward_model=MODEL` names the reward model and, as TRL's script does, the value model (`--set
value_model=MODEL` another); without it both are of the policy's size. `--set rollout_batch=N` (64) rows
are sampled and judged at once, `--set num_mini_batches=N` cuts what was sampled. Three things in its loop
cost memory that no option names: the fp32 scores of every sampled token, rows x tokens x vocabulary, are
kept until the next rollout has its own; hidden states of every layer and the KV cache are returned in the
step too; and gradient checkpointing is never switched on, whatever its arguments say. bf16 weights are
not autocast (`bf16=True` does not reach its Accelerator under transformers 5): `--set autocast=bfloat16`
is `accelerate launch --mixed_precision bf16`. `--set eval_batch=N` counts the samples of an evaluation
set, part of `generate`. Models are loaded on the host and moved, as TRL's script does. Refused: quantized
policies, several GPUs, saving. tests/test_trace_ppo.py compares every allocation with the trainer's own
where a TRL that has it is installed.
Its log-probabilities are taken row by row, so that each batch that `fit` asks about is traced anew: minutes,
where `memplan MODEL` takes one trace.

```console
$ memplan pythia-1b --task ppo --recipe trl --method full --seq 565 --set reward_model=pythia-410m --gpu l4
```

With `--set vllm_share=0.3` a vLLM in the trainer's process samples: it counts as that share of the GPU (its
`gpu_memory_utilization`), into which memplan does not look, all along, or with `--set vllm_sleeps=true` in
`generate` alone.

## Embeddings

`embed` is sentence-transformers' MultipleNegativesRankingLoss on a model without a head: `--batch` counts
examples, `--set texts=3` the texts of one (anchor, positive, negative; 2 by default), `--seq` the tokens of a
text, which a script's `model.max_seq_length = N` says too. `--set mini_batch=N` is the cached loss. A decoder
is pooled by its last token, an encoder by the mean. The formula has a decoder's losses
(planner/formula/forward/embeddings.py): the first text of every example, then all others in one forward; or
cached, a mini-batch without a graph and again with one. The trace answers for encoders. SentenceTransformer
loads on the host and then moves the model to the GPU module by module, each weight in a block of its own:
`load` is `random` here (54 MiB of qwen3-4b below). The trace keeps the graph of BERT's pooler, whose output
nobody uses, and the dry run does not: of bge-large 8.6 MiB. `prm` has a head for every token; PEFT 0.21
adapts and copies that head under `all-linear`, and transformers 5.24 quantizes it: both are refused, as the
libraries do.

## Merging

`--set merge=true` adds the moment `merge` after training: PEFT's `merge_and_unload` while optimizer and
adapters are still there. Linear layers are merged one after another, so the largest one decides. Into a
16-bit base it takes 8 bytes for each of its weights (the update in fp32, and that scaled), into a 4-bit base
14 (the layer in 16 bits; in fp32 its update, their sum, and the sum on its way back, since bitsandbytes
quantizes it again). Both engines have it; that of DoRA, AdaLoRA, IA3 and of experts' adapters the trace
alone, which then answers. The formula's merge is the trace's within 0.1 % in every component
(tests/test_merging.py). Over stub libraries the peak of an unmodified script (tests/dryrun_scripts/merges.py,
llama-3.2-1b, torch 2.14) is the trace's to the byte for LoRA, 2,631.4 MiB, and 1.0 MiB less than it for
QLoRA, 1,359.6 MiB.

## Saving

`--set save=true` adds the moment `save` after training: what `Trainer.save_model` has. On one GPU each tensor
goes to the host, where the file is written, and nothing is made on the GPU: an unmodified Trainer script
(full fine-tuning, LoRA) allocates 0 bytes there in a dry run. Under FSDP2 with `FULL_STATE_DICT` every rank
gathers one parameter after another, whole and in the dtype that it is kept in (fp32 where it is trained),
which two ranks of a dry run show to the byte (tests/test_saving.py). `save_host_bytes` (JSON) is what the
writing rank's host holds: the file, or under FSDP the whole model, with LoRA too, since PEFT picks the
adapter out of it. ZeRO-3 with `stage3_gather_16bit_weights_on_model_save` gathers the parameters of one
module after another in the dtype that computes, and keeps the adapter alone where there is one; ZeRO-1 and 2
copy the whole model to each rank's host (read in deepspeed 0.19.8, judged by no dry run). `--set
save_sharded=true`: each rank writes its part (`SHARDED_STATE_DICT`, or ZeRO-3 without that key), and nothing
is gathered. Not counted: parameters that FSDP offloads, gathered, which is refused.

## Serving

`--method inference` is the forward over a prompt with its KV cache. `--set adapters=N` puts N LoRA adapters
(`--rank`, `--targets`) beside the base, unmerged, one of them active, as PEFT's `load_adapter` and
`set_adapter` do: N adapters in fp32 (`--set adapter_dtype=bfloat16`: loaded with `autocast_adapter_dtype`
off), the active one's input copied to its dtype and its output added in every layer, and while loading each
adapter's file a second time, since PEFT reads it onto the GPU. Without it weights are merged. A script that
loads three adapters and swaps them has the trace's peak within 4 KiB in a dry run (tests/test_serving.py).

```console
$ memplan llama-3.1-8b --method inference --set adapters=20 --rank 16 --gpu rtx-4090
```

Not counted: several adapters in one batch, and what a serving engine such as vLLM sets aside.

## Evaluation

`--set eval_batch=8` adds an evaluation step after training, the moment `evaluate`: the loss of so many
rows without a graph, as the Trainer asks for it without `compute_metrics` (transformers 5.24 trainer.py
prediction_step). A Trainer's file with `eval_strategy: steps` or `epoch` has it by itself, of
`per_device_eval_batch_size` rows (8 where the file is silent). It often decides, since gradient
checkpointing saves nothing there and the batch is larger:

```console
$ memplan llama-3.1-8b --method lora --recipe hf --checkpointing --set eval_batch=8 --gpu rtx-5090
```

The peak is then where evaluation is, `step_peak` (JSON) is that of training alone, and the first lines say
where only the evaluation does not fit. The trace's evaluation equals that of an unmodified Trainer script in
a dry run but for a few scalars (tests/test_dryrun_scripts.py), and the formula's is within 0.1 % of the
trace's in every component (tests/test_evaluation.py).

With `compute_metrics` the Trainer keeps the logits of every batch on the GPU and joins them as they come,
so that nearly twice as many are there at once. `--set eval_kept=ROWS` counts them: the rows of the evaluation
set, or `eval_accumulation_steps` x the batch, after which they go to the host. With a
`preprocess_logits_for_metrics` that returns a few numbers for each token, leave it out.

```console
$ memplan llama-3.2-1b --method lora --recipe hf --set eval_batch=8 --set eval_kept=64 --gpu rtx-4090
```

Under DDP it is one GPU's, beside the buckets. Under FSDP2 and ZeRO-3 a rank gathers as in a forward of
training; FSDP2's head and norm stay whole from one batch to the next, and so does what ZeRO-3 keeps for a
backward that does not come. Kept logits are those of all ranks. Scripts of two ranks
(tests/dryrun_scripts/rank_trainer.py: a llama of 26 million parameters, batches of 8 or 16 x 256 tokens,
torch 2.14, deepspeed 0.19.8), dry-run, and the formula's sum of tensors in `evaluate`:

| ranks | method | kept rows | dry run, bytes | formula | reserved |
|---|---|---|---|---|---|
| FSDP2 | full | | 354,845,696 | -0.51% | equal |
| FSDP2 | full | 64 | 704,412,160 | -0.16% | equal |
| FSDP2 | lora | | 399,287,296 | -0.73% | equal |
| ZeRO-1 | full | 64 | 746,798,080 | -0.07% | not replayed |
| ZeRO-2 | full | | 387,859,456 | -0.01% | not replayed |
| ZeRO-3 | full | | 439,777,792 | +0.07% | not replayed |

What FSDP2's lack is blocks that are larger than what was asked for, which the replay has: what it reserves is
equal. FSDP1: docs/ranks.md.

### Generation while evaluating

`--task seq2seq --set eval_batch=8 --set eval_generate=128 --set eval_beams=4` is Seq2SeqTrainer's
`predict_with_generate` with its `generation_max_length` and `generation_num_beams`: transformers' own
generate, then the loss of the labels. The trace answers: of generate's loop it runs the first token and the
last, as for GRPO. Each beam has keys and values of the encoder's tokens; T5's decoder keeps them while the
loss is computed too, since the Trainer's `use_cache=False` does not reach its copy of the config. Of t5-base
(full, 8 rows, 512 to 24 tokens; tests/dryrun_scripts/generates.py, torch 2.14) the trace's `evaluate` is
0.58 % below a dry run, with four beams 2.1 % above it, which is not explained. Without `compute_metrics`
the Trainer generates nothing. A file's `predict_with_generate` is "at least" as before: which class it is
for, a file does not say. Whisper's own generate and a decoder's are refused.

GRPO and RLOO sample for their evaluation too: `--set eval_batch=N` is so many completions, sampled, scored
and their loss, beside what training sampled last, by the trace.

{beside}
## Checked by dry runs

Scripts that call the trainers as their documentation does, on PyTorch's CUDA build without a GPU
([dry-run.md](dry-run.md)): torch 2.12 (pictures, videos and sounds: 2.14), transformers 5.24, peft 0.21,
trl 1.16, random weights (PPO: trl 1.12, since trl 1.13 has it no more; `prm`: 1.0; `trl=1.13`: 1.9,
`trl=1.14`: 1.14). Peak allocated, and by how much predictions differ from it. Models are loaded on the GPU,
as TRL's trainers do; a classifier that is loaded on the host first has its adapters between its weights,
which moved one peak by 0.45 % (blocks are split in another order). `python benchmarks/tasks_dryrun.py
--python CUDA_PYTHON` repeats it.

The formula's peak is the sum of its tensors. The allocator hands out blocks, which can be larger: a request
of 19 MiB is served by a segment of 20 MiB, whose last MiB is not split off (c10/cuda/CUDACachingAllocator.cpp
should_split keeps a rest of up to 1 MiB). An MLP of width 4,864 at 4 x 512 tokens saves 96 such tensors, so
that full fine-tuning without checkpoints has up to 1.9 % more. *Its blocks* is the same peak in the formula's
own replay, as the trace and the device count it; reserved bytes and every verdict come from that replay.

Reserved bytes differ by whole segments. The two largest differences of full fine-tuning, -258 MiB of the
trace and +254 MiB of the formula, are about one segment of qwen2.5-0.5b's embedding gradient (260 MiB),
served from what is cached or asked for anew; this was not followed event by event. Nor was what whole
logits leave behind row by row (`trl=1.13`): of {rows_by_row} runs the trace's reserved bytes are off by more
than 1 % in {far_off}, {farthest:.0%} at worst.

BERT, XLM-R, T5, Whisper, pictures, PPO, reward models and `top_p` have no formula: that column is the
trace, which plan answers with. The workspaces of cuDNN's convolutions (a tower's patches, Whisper's first
two layers) neither counts. GRPO's dry runs are torch 2.14's, with `beta` 0.04; completions are short, since
a dry run calls every kernel of every token; the scripts keep them at their length by `min_new_tokens`,
whose processor copies the logits twice (transformers 5.24 generation/logits_process.py): of 32 rows of 16
tokens, nearly all of which are logits, a dry run that is not in the table had 52.9 MB (4.3 %) more than
either engine, 38.9 MB of it such copies, the rest not followed. Where eight or more micro-batches are
sampled at once, that is the peak.

A reward model reads completions as text. The dry run's sampled tokens have no values, so its scripts make
token 0 a word there: as padding, which is left out of a text, completions were not read (91 MiB less).

{header}
{rows}

{runs} runs. Allocated, trace: median {trace_median:.2%}, worst {trace_worst:.2%}; formula: median
{formula_median:.2%}, worst {formula_worst:.2%}. None is a GPU measurement.
"""
COLUMNS = ("task", *HEADER)


def of_step(case: Case) -> str:
    """What a sampled batch has beside its size: micro-batches of a step, completion tokens."""
    found = ""
    if case.sampled:
        completion, steps = case.sampled
        found = f", {steps} of them, {completion} sampled"
    return found + "".join(f", {word}" for word in case.words)


def by_row(kept: dict[str, Any]) -> dict[str, Any]:
    """What is reserved where logits are taken row by row: how many runs, how many are more than 1 % off, and
    the largest difference.
    """
    off = [
        abs(error(kept[case.label], "trace", "reserved_bytes"))
        for case in judged(kept)
        if case.said.get("trl") == "1.13"
    ]
    return {"rows_by_row": len(off), "far_off": sum(each > 0.01 for each in off), "farthest": max(off)}


def page(kept: dict[str, Any]) -> str:
    """docs/tasks.md of the kept results."""
    rows = []
    for case in judged(kept):
        entry = kept[case.label]
        cells = (
            case.task,
            case.model,
            case.method,
            f"{case.batch} x {case.tokens}{of_step(case)}" + (f", {case.beside}" if case.beside else ""),
            "yes" if case.checkpoints else "no",
            case.gpu,
            f"{entry['dry_run']['allocated_bytes'] / MIB:,.1f}",
            f"{error(entry, 'trace'):+.2%}",
            f"{error(entry, 'formula'):+.2%}",
            f"{error(entry, 'blocks'):+.2%}" if "blocks" in entry else "",
            f"{error(entry, 'trace', 'reserved_bytes'):+.2%}",
            f"{error(entry, 'formula', 'reserved_bytes'):+.2%}",
        )
        rows.append(cells)
    tasks = [
        f"| `{t.name}` | {t.rows} | {t.head} | {'yes' if t.reference else 'no'} | {t.source} |"
        for t in TASKS.values()
        if not t.lacks
    ]
    return PAGE.format(
        tasks="\n".join(tasks),
        beside=vision_scripts.section(),
        **by_row(kept),
        **table(COLUMNS, rows),
        sampled=max(
            abs(error(kept[case.label], "blocks"))
            for case in judged(kept)
            if case.sampled and "blocks" in kept[case.label]
        ),
        **summary(kept[case.label] for case in judged(kept)),
    )


if __name__ == "__main__":
    command(__doc__, KEPT, cases, dry_run, predictions, page)
