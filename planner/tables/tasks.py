"""TASKS: what each kind of training holds beside the model of a supervised step: rows of a batch for each
example, the model's head, a reference model, dropout.

Adding a task is adding a row here. `lacks` names what of a task is not modeled: its prediction is a lower
bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Head = Literal["vocabulary", "pooled", "tokens", "none"]

WHOLE_LOGITS = ("1.13", "1.14")
"""The releases of TRL (`Setup.trl`) whose trainers take whole logits: those up to 1.13 row by row, with metrics
of all of them; 1.14 by one Triton kernel for a token's log-probability and entropy (trl 1.9, 1.12, 1.13, 1.14
trainer/utils.py selective_log_softmax, entropy_from_logits, kernels/logprob_entropy.py)."""

KERNEL_SINCE = WHOLE_LOGITS[-1]
"""The first release of TRL that has that kernel, which those with tiles keep for whole logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One kind of training: its batch, its head, its loss, and where that was read."""

    name: str
    summary: str
    source: str
    rows: int = 1
    """Rows of the batch for each example: a pair has two."""
    head: Head = "vocabulary"
    """pooled: one linear layer of `num_labels` outputs, of which a row's last token is kept. tokens: of which
    every token is. none: the last hidden states are all that the model returns."""
    labels: int | None = None
    """The outputs of a pooled head where the trainer fixes them; None: `num_labels` says."""
    sequences: tuple[str, ...] = ()
    """The int64 tensors (rows, S) of a batch; empty: those of the stack's own collator."""
    row_labels: bool = False
    """The batch has one label for each row."""
    reference: bool = False
    """The loss compares with the log-probabilities of a reference model: a second forward."""
    classes: str = ""
    """transformers' table of the classes that train so; empty: the one that a model trains on text with."""
    targets: tuple[str, ...] = ()
    """Those of `sequences` that are of the decoder's length, `target_length`."""
    joined: bool = False
    """Chosen and rejected rows come apart and are joined on the device: the batch is there twice."""
    generates: bool = False
    """Its batch is sampled from the model before it is trained on: a moment of its own. A row is a prompt and
    a completion."""
    compares: bool = False
    """A reference model may be asked for; `reference`: it is there where nobody says anything."""
    divergence: bool = False
    """Each model also scores other completions, without a graph, for an estimate of their divergence."""
    old_scores: Literal["later", "always", "never"] = "later"
    """Whether the log-probabilities of sampled tokens are taken before training: later: where the model is
    trained before all of them have been used."""
    formula: bool = True
    """Whether the formula has a rule for it; else the trace answers alone."""
    companion: str = ""
    """The Setup field that names a model which the task cannot do without."""
    judges: tuple[str, ...] = ()
    """The Setup fields of models that are there in any case: of the trained model's own config where nobody
    names another."""
    checkpoints: bool = True
    """False: its trainer never switches gradient checkpointing on."""
    prepared: bool = True
    """False: the loss calls the backbones beside the forward that accelerate wrapped: without autocast."""
    folds: bool = False
    """TRL takes its log-probabilities from tiles of logits since 1.15, from whole ones before (`Setup.trl`)."""
    dropout: bool = True
    """False: the trainer sets the probability of every nn.Dropout to 0."""
    stacks: tuple[str, ...] = ()
    """The recipes whose stack trains so; empty: every one."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Setup fields that follow from the task, over the recipe's."""
    lacks: str = ""
    """What the task needs beside a supervised step that is not counted."""

    def loss(self, trl: str) -> str | None:
        """How its trainer takes logits (`Setup.loss`) in a release of TRL; None: as somebody says."""
        return "full" if self.folds and trl in WHOLE_LOGITS else self.defaults.get("loss")


def _table(*rows: Task) -> dict[str, Task]:
    return {row.name: row for row in rows}


_LATER = "not modeled: predicted as a supervised step, which it needs at least"

_SAMPLES = {
    "loss": "chunked",
    "completion_length": 512,  # trl 1.16 grpo_config.py, rloo_config.py, distillation_config.py
    "micro_batch": 8,  # num_generations, of which a batch has a multiple
}

TASKS: dict[str, Task] = _table(
    Task(
        name="sft",
        summary="next-token loss on one row for each example",
        source="transformers 5.24 loss/loss_utils.py",
    ),
    Task(
        name="asft",
        summary="as sft, and the divergence of whole logits from those of a reference model",
        source="LLaMA-Factory 0.9.5 train/sft/trainer.py compute_loss, train/trainer_utils.py asft_loss_func, "
        "create_ref_model",
        reference=True,
        formula=False,
        stacks=("llamafactory",),
        defaults={"loss": "full"},
    ),
    Task(
        name="classify",
        summary="a pooled head of num_labels outputs, one label for each row",
        source="transformers 5.24 modeling_layers.py GenericForSequenceClassification, data/data_collator.py "
        "DataCollatorWithPadding",
        head="pooled",
        sequences=("input_ids", "attention_mask"),
        row_labels=True,
        stacks=("raw", "hf"),
        defaults={"loss": "full"},
    ),
    Task(
        name="reward",
        summary="a pooled head of one output, a chosen and a rejected row for each example",
        source="trl 1.16 trainer/reward_trainer.py RewardTrainer.compute_loss, DataCollatorForPreference; "
        "trainer/reward_config.py disable_dropout",
        rows=2,
        head="pooled",
        labels=1,
        sequences=("input_ids", "attention_mask"),
        dropout=False,
        stacks=("hf", "trl", "axolotl"),
        defaults={"loss": "full"},
    ),
    Task(
        name="prm",
        summary="a head of num_labels outputs for every token, of which those that end a step have a label",
        source="trl 1.0 experimental/prm/prm_trainer.py PRMTrainer; transformers 5.24 modeling_layers.py "
        "GenericForTokenClassification, loss/loss_utils.py ForTokenClassification",
        head="tokens",
        sequences=("input_ids", "attention_mask", "labels"),
        dropout=False,
        stacks=("hf", "trl", "axolotl"),
        defaults={"loss": "full", "targets": ("peft-default",)},
    ),
    Task(
        name="dpo",
        summary="log-probabilities of a chosen and a rejected row, by the model and by a reference model",
        source="trl 1.16 trainer/dpo_trainer.py DPOTrainer._compute_loss, DataCollatorForPreference; "
        "trainer/dpo_config.py disable_dropout",
        rows=2,
        sequences=("input_ids", "attention_mask", "completion_mask"),
        reference=True,
        dropout=False,
        folds=True,
        stacks=("hf", "trl", "axolotl"),
        defaults={"loss": "chunked"},
    ),
    Task(
        name="dpo_logits",
        summary="as dpo, each log-probability from whole logits in fp32 and their log-softmax: torchtune's and "
        "LLaMA-Factory's own trainers",
        source="LLaMA-Factory ff6d4d12e train/dpo/trainer.py concatenated_forward, train/trainer_utils.py "
        "get_batch_logps; torchtune bd2a0fc7c recipes/lora_dpo_single_device.py, rlhf/sequence_processing.py",
        rows=2,
        sequences=("input_ids", "attention_mask", "labels"),
        reference=True,
        dropout=False,
        stacks=("raw", "llamafactory"),
        defaults={"loss": "full"},
    ),
    Task(
        name="kto_logits",
        summary="as kto, each log-probability from whole logits in fp32 and their log-softmax: LLaMA-Factory's own "
        "trainer",
        source="LLaMA-Factory 0.9.5 train/kto/trainer.py concatenated_forward, get_batch_loss_metrics, data/"
        "collator.py KTODataCollatorWithPadding",
        sequences=tuple(
            start + name for start in ("", "KL_") for name in ("input_ids", "attention_mask", "labels")
        ),
        reference=True,
        divergence=True,
        formula=False,
        dropout=False,
        stacks=("llamafactory",),
        defaults={"loss": "full"},
    ),
    Task(
        name="kto",
        summary="log-probabilities of one row for each example, and of another's completion, by the model and by a "
        "reference model",
        source="trl 1.16 trainer/kto_trainer.py KTOTrainer._compute_loss, _compute_kl_logps, "
        "DataCollatorForUnpairedPreference; trainer/kto_config.py disable_dropout",
        sequences=tuple(
            start + name
            for start in ("", "KL_")
            for name in ("input_ids", "attention_mask", "completion_mask")
        ),
        row_labels=True,
        reference=True,
        divergence=True,
        dropout=False,
        folds=True,
        stacks=("hf", "trl", "axolotl"),
        defaults={
            "loss": "chunked",
            "micro_batch": 2,
        },  # it takes two rows at least: completions are exchanged
    ),
    *(
        Task(
            name=name,
            summary=f"{what} of a chosen and a rejected row, from whole logits, and the chosen row's own loss",
            source=f"trl 1.16 experimental/{name}/{name}_trainer.py concatenated_forward, DPODataCollatorWithPadding; "
            f"{name}_config.py disable_dropout",
            rows=2,
            sequences=("input_ids", "attention_mask", "labels"),
            joined=True,
            dropout=False,
            stacks=("hf", "trl", "axolotl"),
            defaults={"loss": "full"},
        )
        for name, what in (("orpo", "the odds ratio"), ("cpo", "log-probabilities"))
    ),
    Task(
        name="mlm",
        summary="masked tokens predicted from both sides, of an encoder's logits for every token",
        source="transformers 5.24 data/data_collator.py DataCollatorForLanguageModeling, loss/loss_utils.py "
        "ForMaskedLMLoss",
        sequences=("input_ids", "attention_mask", "labels"),
        classes="MODEL_FOR_MASKED_LM_MAPPING",
        stacks=("raw", "hf"),
        defaults={"loss": "full"},
    ),
    Task(
        name="seq2seq",
        summary="an encoder reads a row, a decoder predicts target_length tokens of another",
        source="transformers 5.24 data/data_collator.py DataCollatorForSeq2Seq",
        sequences=("input_ids", "attention_mask", "labels", "decoder_input_ids"),
        targets=("labels", "decoder_input_ids"),
        classes="MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
        stacks=("raw", "hf"),
        defaults={"loss": "full"},
    ),
    Task(
        name="grpo",
        summary="completions sampled from the model, then the clipped ratio of their log-probabilities",
        source="trl 1.16 trainer/grpo_trainer.py GRPOTrainer._generate_single_turn, "
        "_generate_and_score_completions, _compute_loss; grpo_config.py",
        generates=True,
        compares=True,
        folds=True,
        stacks=("hf", "trl", "axolotl"),
        defaults=_SAMPLES,
    ),
    Task(
        name="rloo",
        summary="completions sampled from the model, scored by it and by a reference model, then the clipped ratio "
        "of whole rows' probabilities",
        source="trl 1.16 trainer/rloo_trainer.py RLOOTrainer._generate_and_score_completions, _compute_loss; "
        "rloo_config.py beta",
        generates=True,
        reference=True,
        old_scores="always",
        folds=True,
        stacks=("hf", "trl"),
        defaults=_SAMPLES,
    ),
    Task(
        name="distill",
        summary="completions sampled from the model, then the divergence of its tokens' distributions from a "
        "teacher's, in tiles",
        source="trl 1.16 trainer/distillation_trainer.py DistillationTrainer._compute_loss, kernels/"
        "chunked_divergence.py; distillation_config.py",
        generates=True,
        old_scores="never",
        prepared=False,
        companion="teacher",
        stacks=("hf", "trl"),
        defaults=_SAMPLES,
    ),
    Task(
        name="ppo",
        summary="completions sampled from the model with every token's scores kept, judged by a reference, a value "
        "and a reward model, then the clipped ratio's loss and that of the value model, which is trained too",
        source="trl 1.12 experimental/ppo/ppo_trainer.py PPOTrainer.train, PolicyAndValueWrapper; ppo_config.py "
        "(trl 1.13 has it no more)",
        generates=True,
        reference=True,
        old_scores="never",
        formula=False,
        dropout=False,
        judges=("value_model", "reward_model"),
        checkpoints=False,
        stacks=("hf", "trl"),
        defaults={
            "loss": "full",
            "completion_length": 53,  # response_length
            "rollout_batch": 64,  # local_rollout_forward_batch_size
            "micro_batch": 8,
            "checkpointing": "none",
            "load": "random",  # on the host; accelerate moves module by module
            # its Accelerator asks the environment, where transformers 5 writes no mixed precision
            "autocast": "none",
        },
    ),
    Task(
        name="embed",
        summary="an embedding of each of an example's texts, of which the others of the batch are negatives",
        source="sentence-transformers 6.2 sentence_transformer/losses/multiple_negatives_ranking.py, "
        "cached_multiple_negatives_ranking.py, sentence_transformer/modules/pooling.py",
        head="none",
        sequences=("input_ids", "attention_mask"),
        stacks=("hf",),
        # 6.2 base/model.py __init__: loaded on the host, then moved module by module (self.to(device))
        defaults={"loss": "full", "texts": 2, "micro_batch": 8, "load": "random"},
    ),
    *(
        Task(name=name, summary=_LATER, source=source, lacks=lacks)
        for name, source, lacks in (
            ("gkd", "trl 1.16 experimental/gkd/gkd_trainer.py", "the teacher model and whole logits of both"),
        )
    ),
)


HOLDS_LOGITS = ("llamafactory",)
"""Recipes whose DPO names the model's logits until the loss is there; torchtune's drops them before its
reference runs (recipes/lora_dpo_single_device.py)."""

OWN_ADAPTERS = ("axolotl",)
"""Recipes that hand ORPO's and CPO's trainers a model with its adapters, so that TRL casts nothing of a quantized
base (axolotl 0.19 core/builders/rl.py build)."""

FUNCTIONAL_DROPOUT = ("opt",)
"""Model types whose every dropout is a function's argument, which no trainer zeroes (transformers 5.24
models/opt/modeling_opt.py)."""

MODULE_ATTENTION_DROPOUT = ("gpt2", "bloom", "falcon")
"""Model types whose attention dropout is a module of its own; elsewhere it is a function's argument
(transformers 5.24 models/*/modeling_*.py attn_dropout, attention_dropout)."""
