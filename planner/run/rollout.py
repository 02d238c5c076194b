"""The batch that a policy is trained on: completions sampled from the model itself, then scored.

What trl 1.16 trainer/grpo_trainer.py does before a step (RLOO's and the distillation trainer too):
`_generate_single_turn` calls transformers'
generate with the model in training mode, checkpoints off and no gradients; `_generate_and_score_completions`
joins prompts and completions and asks a micro-batch at a time for the log-probabilities that the loss
compares with. N rows at once, P prompt tokens, C completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from typing import Any
from unittest.mock import patch

import torch

from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.tasks import GeneratedRows, generated, growth, server_bytes
from memplan.planner.run import policy
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
        prompts = torch.randint(0, 100, (sizes.rows, sizes.prompt), device=where)
        mask = torch.ones_like(prompts)
    if setup.vllm_share is None:
        with unchecked(built.base), torch.no_grad(), prepared(built):
            _sample(built, partial(watcher.announce, moment, step), prompts, mask, sizes)
    with watcher.announce(moment, step), built.kernels():
        del beside, mask
        made = _batch(prompts, sizes)
        del prompts
        with torch.no_grad(), unchecked(built.base):
            ids = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
            both = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1)
            found = _scores(built, ids, both, sizes)
        _reward(built, ids)
        built.rollout = _shuffled(made | _kept(built, found, made))


def share_of_vllm(setup: Setup, where: torch.device) -> torch.Tensor | None:
    """What a vLLM in the trainer's process takes by configuration; None where there is none."""
    nbytes = server_bytes(setup)
    return torch.empty(nbytes, dtype=torch.uint8, device=where) if nbytes else None


def _sample(
    built: Built,
    announce: Callable[[], AbstractContextManager[None]],
    prompts: torch.Tensor,
    mask: torch.Tensor,
    sizes: GeneratedRows,
) -> None:
    """transformers' own generate for the first token and for the last, the cache's own concatenation between
    them.

    That the first and the last decide: what a further token makes differs from the one before in one size,
    the tokens that the cache has, and no tensor shrinks as that grows. So no token between needs more than
    the last one, and the first, which reads the prompts whole, is run as it is. Where the cache grows in
    fewer steps than there are tokens (GROWTH_STEPS), blocks that it leaves behind are fewer: reserved bytes
    are less than, allocated bytes equal to, a run of every token.
    """
    drawn: dict[str, torch.Tensor] = {}
    with announce(), built.kernels(), _drawing(drawn):
        name, cache = _one_token(built, prompts, mask, drawn)
        if sizes.completion < 2:
            return
        for more in growth(sizes.completion - 2):
            grow(cache, more)
        built.held = cache
    with announce(), built.kernels(), _drawing(drawn):
        built.held = None
        sampled = prompts.new_zeros((sizes.rows, sizes.completion - 1))
        ids = torch.cat([prompts, sampled], dim=1)
        both = torch.ones_like(ids)
        del sampled
        _one_token(built, ids, both, drawn, **{name: cache})
        drawn.clear()


@contextmanager
def _drawing(drawn: dict[str, torch.Tensor]) -> Iterator[None]:
    """The probabilities that a token is drawn from stay until those of the next token are there, as the
    variable of generate's loop keeps them; so do the logits (`_one_token`).
    """
    draw = torch.multinomial

    def drawing(probabilities: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        drawn["probabilities"] = probabilities
        return draw(probabilities, *args, **options)

    with patch.object(torch, "multinomial", drawing):
        yield


def _one_token(
    built: Built, ids: torch.Tensor, mask: torch.Tensor, drawn: dict[str, torch.Tensor], **given: Any
) -> tuple[str, Any]:
    """One token of each row, sampled by transformers' generate as trl 1.16 configures it, and the cache,
    under the name that generate has for it. `drawn` keeps what generate's loop would.
    """
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    class Kept(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            drawn["logits"] = scores
            return scores

    chosen = GenerationConfig(
        max_new_tokens=1,
        do_sample=True,
        temperature=1.0,
        top_p=float(built.setup.top_p or 1.0),
        top_k=built.setup.top_k or 0,
        pad_token_id=0,
        eos_token_id=1,
        disable_compile=True,
        use_cache=True,
        return_dict_in_generate=True,
    )
    made = built.model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        generation_config=chosen,
        logits_processor=LogitsProcessorList([Kept()]),
        **given,
    )
    name = "cache" if "cache" in made else "past_key_values"  # its name until transformers 5.2x
    return name, made[name]


def grow(cache: Any, more: int) -> None:
    """Keys and values of so many tokens more, in each of the cache's layers that hold those of every one."""
    for layer in cache.layers:
        if getattr(layer, "keys", None) is None:
            continue
        keys, values = layer.keys, layer.values
        layer.update(*(each.new_empty((*each.shape[:-2], more, each.shape[-1])) for each in (keys, values)))
        del keys, values


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
    built: Built, ids: torch.Tensor, mask: torch.Tensor, sizes: GeneratedRows
) -> dict[str, torch.Tensor]:
    """Log-probabilities of the sampled tokens before the step (where the task takes them) and by the
    reference, a micro-batch at a time.
    """
    setup, found = built.setup, {}
    if sizes.old_scores:
        found["old_logps"] = policy.scores(built, built.model, ids, mask, setup.micro_batch)[0]
    if setup.reference == "model":
        found["ref_logps"] = policy.scores(built, built.reference, ids, mask, setup.micro_batch)[0]
    elif setup.reference == "base":
        with built.model.disable_adapter():  # type: ignore[operator]
            found["ref_logps"] = policy.scores(built, built.model, ids, mask, setup.micro_batch)[0]
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


def micro_batch(built: Built, number: int) -> dict[str, torch.Tensor]:
    """The rows of one micro-step: views of the generation (trl 1.16 trainer/utils.py split_tensor_dict)."""
    rows, sizes = built.setup.micro_batch, generated(built.setup)
    first = number % sizes.steps * rows
    return {name: tensor[first : first + rows] for name, tensor in built.rollout.items()}
