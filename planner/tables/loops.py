"""Loop: what a stack's training loop does beside the model. A recipe's row names one (recipes.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """What a stack's training loop holds on to, adds, and leaves to accelerate: each field moves memory."""

    holds_outputs: bool
    """The forward's outputs live until the step ends (a local variable), not only until the loss is there."""
    clips: bool
    """Gradients are clipped to a norm before the optimizer's step."""
    collates: bool
    """A data collator makes labels and an attention mask: tensors beside the input ids."""
    prefetches: bool
    """All micro-batches of one optimizer step are on the device at once."""
    decay_groups: bool
    """The optimizer has two groups of parameters: decayed ones, then norms and biases."""
    embeddings_32bit: bool
    """8-bit optimizers keep the states of nn.Embedding weights in 32 bits."""
    prepares: bool
    """accelerate prepares the model: it wraps it for several ranks, upcasts what FSDP2 trains, reduces
    gradients in the last micro-batch alone, and scales fp16 losses."""
    frees_gradients: bool
    """Gradients are freed as soon as the optimizer has stepped, before an evaluation."""
    callbacks: bool
    """The loop is a library's: a method that acts between steps (AdaLoRA) needs a callback."""


PLAIN = Loop(
    holds_outputs=True,
    clips=False,
    collates=False,
    prefetches=False,
    decay_groups=False,
    embeddings_32bit=False,
    prepares=False,
    frees_gradients=False,
    callbacks=False,
)
"""A loop that the user writes: zero_grad, forward, backward, step."""
TRAINER = Loop(
    holds_outputs=False,  # transformers 5.24 trainer.py compute_loss, training_step
    clips=True,  # training_args.py max_grad_norm 1.0
    collates=True,  # data/data_collator.py DataCollatorForLanguageModeling
    prefetches=True,  # trainer.py get_batch_samples
    decay_groups=True,  # trainer.py create_optimizer, get_decay_parameter_names
    embeddings_32bit=True,  # trainer.py create_optimizer: register_module_override for bitsandbytes' Adam
    prepares=True,  # accelerate 1.15 accelerator.py prepare_model
    frees_gradients=True,  # trainer.py _run_epoch: model.zero_grad()
    callbacks=True,  # trainer_callback.py
)
"""transformers' Trainer, which TRL, axolotl and LLaMA-Factory subclass."""
