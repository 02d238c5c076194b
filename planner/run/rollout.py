"""The batch that a policy is trained on: completions sampled from the model itself, then scored.

What trl 1.16 trainer/grpo_trainer.py does before a step (RLOO's and the distillation trainer too):
`_generate_single_turn` calls transformers'
generate with the model in training mode, checkpoints off and no gradients; `_generate_and_score_completions`
joins prompts and completions and asks a micro-batch at a time for the log-probabilities that the loss
compares with. N rows at once, P prompt tokens, C completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from typing import Any

import torch

from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.tasks import GeneratedRows, generated, server_bytes
from memplan.planner.run import pictures, policy, sampling
from memplan.planner.run.built import Announcer, Built
from memplan.planner.run.preferences import called, unchecked
from memplan.planner.tables.components import GENERATION
from memplan.planner.tables.tasks import TASKS


def run(built: Built, watcher: Announcer, step: int) -> None:
    """Sample and score one generation, announced as a moment of training step `step`; `built.rollout` holds
    it until the next one is there, as the trainer's buffer does.
    """
    sample(built, watcher, step, GENERATION, generated(built.setup))


def sample(built: Built, watcher: Announcer, step: int, moment: str, sizes: GeneratedRows) -> None:
    """The same of so many rows, in a moment of another name where an evaluation samples."""
    setup = built.setup
    where = next(built.model.parameters()).device
    with watcher.announce(moment, step):
        beside = share_of_vllm(setup, where) if setup.vllm_sleeps else None
        prompts = pictures.prompts(built.config, setup, sizes, where)
        mask = torch.ones_like(prompts)
    if setup.vllm_share is None:
        with unchecked(built.base), torch.no_grad(), prepared(built):
            with watcher.announce(moment, step):
                shown = pictures.of_prompts(built.config, setup, sizes, where)
            announce, chosen = partial(watcher.announce, moment, step), _chosen(built)
            sampling.sample(built, announce, built.model, prompts, mask, sizes.completion, chosen, shown)
    with watcher.announce(moment, step), built.kernels():
        shown = {}
        del beside, mask
        made = _batch(prompts, sizes)
        shown = pictures.of_rows(built.config, setup, sizes, where)
        again = _again(prompts) if shown else ()
        del prompts
        with torch.no_grad(), unchecked(built.base):
            ids = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
            both = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1)
            found = _scores(built, ids, both, sizes, shown)
        _reward(built, ids)
        built.rollout = _shuffled(made | _kept(built, found, made)) | _cloned(shown)
        del again


def _again(prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of the prompts that the processor makes a second time, with the pictures (trl 1.16
    trainer/grpo_trainer.py _generate_and_score_completions prompt_inputs)."""
    return prompts.clone(), torch.ones_like(prompts)


def share_of_vllm(setup: Setup, where: torch.device) -> torch.Tensor | None:
    """What a vLLM in the trainer's process takes by configuration; None where there is none."""
    nbytes = server_bytes(setup)
    return torch.empty(nbytes, dtype=torch.uint8, device=where) if nbytes else None


def _chosen(built: Built) -> dict[str, Any]:
    """How trl 1.16 configures generate; tokens that stand for pictures are never drawn."""
    setup = built.setup
    return {
        "temperature": 1.0,
        "top_p": float(setup.top_p or 1.0),
        "top_k": setup.top_k or 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "suppress_tokens": pictures.never_sampled(built.config, setup),
    }


@contextmanager
def prepared(built: Built) -> Iterator[None]:
    """The model's forward as generate finds it: where the model itself is trained, accelerate has wrapped
    it in autocast and a conversion of its outputs (accelerate 1.15 accelerator.py prepare_model); under an
    adapter generate calls the base, which nobody wrapped.
    """
    if built.model is not built.base or built.setup.autocast == "none":
        with nullcontext():
            yield
        return
    from accelerate.utils.operations import convert_to_fp32

    own, model = built.base.__dict__.get("forward"), built.base
    forward = model.forward

    @wraps(type(model).forward)
    def prepared(*args: Any, **inputs: Any) -> Any:
        with built.autocast():
            made = forward(*args, **inputs)
        return convert_to_fp32(made) if built.setup.outputs_fp32 else made

    model.forward = prepared
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


def _batch(prompts: torch.Tensor, sizes: GeneratedRows) -> dict[str, torch.Tensor]:
    """Prompts and completions as they come back from the host, and an advantage for each row."""
    completions = prompts.new_zeros((sizes.rows, sizes.completion))
    return {
        "prompt_ids": prompts.clone(),
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.zeros(sizes.rows, device=prompts.device),
    }


def _scores(
    built: Built,
    ids: torch.Tensor,
    mask: torch.Tensor,
    sizes: GeneratedRows,
    shown: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Log-probabilities of the sampled tokens before the step (where the task takes them) and by the
    reference, a micro-batch at a time.
    """
    setup, found = built.setup, {}

    def scored(model: Any) -> torch.Tensor:
        return policy.scores(built, model, ids, mask, setup.micro_batch, shown)[0]

    if sizes.old_scores:
        found["old_logps"] = scored(built.model)
    if setup.reference == "model":
        found["ref_logps"] = scored(built.reference)
    elif setup.reference == "base":
        with built.model.disable_adapter():  # type: ignore[operator]
            found["ref_logps"] = scored(built.model)
    return found


def _reward(built: Built, ids: torch.Tensor) -> None:
    """A reward model reads all rows at once, tokenized anew, as accelerate calls it (trl 1.16
    trainer/grpo_trainer.py and rloo_trainer.py _calculate_rewards). Where rewards are computed on the host,
    nothing is on the device.
    """
    model = built.companions.get("reward_model")
    if model is None:
        return
    rewards = torch.zeros(len(ids), 1, device=ids.device)
    with torch.no_grad():
        inputs = {"input_ids": ids.clone(), "attention_mask": torch.ones_like(ids)}
        rewards[:, 0] = called(built, model, inputs).logits[:, 0]


def _kept(
    built: Built, found: dict[str, torch.Tensor], made: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What of the scores the batch has: of RLOO a number for each row, the reference's being in the rewards
    (trl 1.16 trainer/rloo_trainer.py _generate_and_score_completions).
    """
    if TASKS[built.setup.task].old_scores != "always":
        return found
    return {"old_logps": (found["old_logps"] * made["completion_mask"]).sum(1)}


def _shuffled(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The rows in another order, as trl's shuffle_sequence_dict copies them."""
    return {name: torch.empty_like(tensor).copy_(tensor) for name, tensor in batch.items()}


def _cloned(shown: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The pictures in the rows' new order (trl 1.16 trainer/utils.py unsplit_pixel_values_by_grid joins each
    micro-batch's anew); the grids' values are known still.
    """
    return {name: tensor.clone() for name, tensor in shown.items()}


def micro_batch(built: Built, number: int) -> dict[str, torch.Tensor]:
    """The rows of one micro-step: views of the generation (trl 1.16 trainer/utils.py split_tensor_dict)."""
    rows, sizes = built.setup.micro_batch, generated(built.setup)
    first = number % sizes.steps * rows
    return pictures.part(built.rollout, sizes.rows, first, first + rows)
