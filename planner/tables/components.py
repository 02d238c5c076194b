"""Components and moments: what every table of bytes is split by, one definition for both engines and every
measurement.
"""

from __future__ import annotations

from typing import Literal, get_args

Component = Literal["weights", "gradients", "optimizer_states", "activations", "temporaries"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
"""What belongs where; a tensor that answers to several belongs to the first.

weights           parameters of the base and of adapters, buffers, constants of quantization
gradients         what `.grad` of a trained tensor holds
optimizer_states  states, fp32 master weights, AdaLoRA's importance buffers
activations       whatever autograd saved for the backward (a weight's autocast copy too, where it did), the
                  batch, what the forward returns
temporaries       what nothing saved: dequantized weights, gradients of activations, scratch memory of
                  kernels, lists that an optimizer makes, and the cuBLAS workspaces
"""
HELD_ACROSS_STEPS = COMPONENTS[:3]
"""What a tensor is called after in these: the parameter that it belongs to. In the others, after what made it."""

GENERATION = "generate"
"""The sampling and scoring of the batch that a step trains on, before it, where the setup's task has one."""
STEP_MOMENTS = ("forward", "backward", "optimizer_step")
"""The moments of one training step, in order."""
EVALUATION = "evaluate"
"""An evaluation step, after training steps, where a setup asks for it."""
SAVE = "save"
"""The model written to disk after training steps, where a setup asks for it."""
MERGE = "merge"
"""An adapter merged into its base, after training steps, where a setup asks for it."""
AFTER = (EVALUATION, SAVE, MERGE)
"""What follows training, in the order of a run."""
MOMENTS = ("load_peak", "load", *STEP_MOMENTS)
"""Those before them too: the peak while building, and what stays."""
