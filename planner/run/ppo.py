"""PPO as TRL's PPOTrainer runs it: a policy and its value model in one step, after a rollout that a reference
and a reward model judge.

trl 1.12 experimental/ppo/ppo_trainer.py PPOTrainer.train, generate, batch_generation, forward, masked_whiten,
PolicyAndValueWrapper; experimental/utils.py get_reward, first_true_indices; trainer/utils.py
selective_log_softmax, pad (trl 1.13 has PPO no more). Only the wrapper of policy and value model is prepared
by accelerate: what is sampled and judged is so without autocast. A local variable lives until it is assigned
again: the scores of every sampled token (N, C, V) until the next rollout has its own, a micro-step's outputs
through the next one of the same mini-batch. Numbers of metrics are left out. N rows of P prompt and C
completion tokens, B of them in a micro-step, S = P + C, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from memplan.planner.inputs.tasks import GeneratedRows, generated, micro_rows
from memplan.planner.run.built import Announcer, Built
from memplan.planner.run.preferences import called
from memplan.planner.run.sampling import sample
from memplan.planner.tables.components import GENERATION
from memplan.planner.tables.errors import UsageError

PADDING = -1
"""No token's id: no row ends before it is full."""
HEAT, KL, LAMBDA, CLIP, VALUE = 0.7 + 1e-7, 0.05, 0.95, 0.2, 0.1
"""trl 1.12 ppo_config.py temperature, kl_coef, lam, cliprange, vf_coef: none moves memory."""
CHOSEN = {"temperature": HEAT, "top_p": 1.0, "top_k": 0, "pad_token_id": 0, "output_scores": True}

Tensors = dict[str, torch.Tensor]


class PolicyAndValue(nn.Module):
    """What the optimizer trains: the policy, under its adapter, and all of the value model."""

    def __init__(self, policy: nn.Module, value_model: Any) -> None:
        super().__init__()
        self.policy, self.value_model = policy, value_model
        if not hasattr(value_model, "score"):
            raise UsageError(
                f"value_model: {type(value_model).__name__} has no layer 'score', which TRL's PPOTrainer "
                "calls: name a model of another family"
            )

    def forward(self, **inputs: Any) -> tuple[Any, torch.Tensor]:
        """The policy's outputs, and the value of each token (B, S, 1)."""
        output = _backbone(self.value_model)(**inputs)
        values = self.value_model.score(output.hidden_states[-1])  # type: ignore[operator]
        return self.policy(**inputs), values

    def get_output_embeddings(self) -> Any:
        """The policy's."""
        return self.policy.get_output_embeddings()  # type: ignore[operator]


def with_value(model: nn.Module, beside: dict[str, nn.Module]) -> nn.Module:
    """The policy and its value model, taken out of `beside`; the model itself where there is none."""
    return PolicyAndValue(model, beside.pop("value_model")) if "value_model" in beside else model


def _backbone(model: Any) -> Any:
    return getattr(model, model.base_model_prefix)


def run(built: Built, watcher: Announcer, step: int, micro_steps: int) -> None:
    """A rollout and one optimizer step of `micro_steps` micro-steps: the first of those that train on it, as
    every other one.
    """
    sizes = generated(built.setup)
    ids = _rollout(built, watcher, step, sizes)
    with watcher.announce(GENERATION, step), torch.no_grad():
        built.rollout |= _advantages(_judged(built, ids, sizes))
        built.empty_cache()
    _train(built, watcher, step, micro_steps, sizes.prompt)
    built.rollout = {"logits": built.rollout["logits"]}
    built.empty_cache()
    if built.setup.eval_batch is not None:
        _shown(built, watcher, step, sizes)


# ---- the rollout -------------------------------------------------------------------------------------------


def _rollout(built: Built, watcher: Announcer, step: int, sizes: GeneratedRows) -> torch.Tensor:
    """Prompts with their completions (N, S); the scores of every sampled token in `built.rollout`."""
    where = next(built.model.parameters()).device
    with watcher.announce(GENERATION, step):
        queries = torch.randint(0, 100, (sizes.rows, sizes.prompt), device=where)
        built.batch = {"input_ids": queries, "attention_mask": torch.ones_like(queries)}
    parts: list[torch.Tensor] = []
    scores: list[torch.Tensor] = []
    with torch.no_grad():
        for query in queries.split(sizes.chunk):
            ids, logits = _sampled(built, watcher, step, query, sizes.completion)
            parts.append(ids)
            scores.append(logits)
        with watcher.announce(GENERATION, step):
            joined = _padded(parts, sizes.rows)
            built.rollout = {"logits": _padded(scores, sizes.rows), "rows": joined}
    return joined


def _sampled(
    built: Built, watcher: Announcer, step: int, query: torch.Tensor, completion: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n, S) and the scores of their sampled tokens (n, C, V) fp32, stacked while the cache is there."""
    policy = built.model.policy
    with watcher.announce(GENERATION, step):
        mask = query != PADDING
        prompts = torch.masked_fill(query, ~mask, 0)
    announce = partial(watcher.announce, GENERATION, step)
    found = sample(built, announce, policy, prompts, mask, completion, CHOSEN)
    with watcher.announce(GENERATION, step):
        logits = torch.stack(found.scores, 1)
        return torch.cat((query, query.new_zeros((len(query), completion))), dim=1), logits


def _shown(built: Built, watcher: Announcer, step: int, sizes: GeneratedRows) -> None:
    """Completions of a batch of the evaluation set, sampled and rated (PPOTrainer.generate_completions)."""
    where = next(built.model.parameters()).device
    with watcher.announce(GENERATION, step):
        queries = torch.randint(0, 100, (built.setup.eval_batch or 0, sizes.prompt), device=where)
    with torch.no_grad():
        ids, logits = _sampled(built, watcher, step, queries, sizes.completion)
        with watcher.announce(GENERATION, step):
            ids, logits = _padded([ids], len(ids)), _padded([logits], len(ids))
            rated = _rated(
                built.companions["reward_model"], torch.cat(ids.tensor_split([sizes.prompt], 1), 1)
            )
            del rated, logits
            built.empty_cache()


def _padded(tensors: list[torch.Tensor], rows: int) -> torch.Tensor:
    """The rows of several chunks, of which the last may have fewer, in one tensor."""
    first = tensors[0]
    made = torch.full((len(tensors), *first.shape), 0, dtype=first.dtype, device=first.device)
    for number, tensor in enumerate(tensors):
        made[number][: len(tensor)] = tensor
    return made.view(-1, *first.shape[1:])[:rows]


def _judged(built: Built, ids: torch.Tensor, sizes: GeneratedRows) -> Tensors:
    """Of each sampled token its log-probability, the reference's and the value (N, C); each row's score."""
    names = ("logprobs", "ref_logprobs", "values", "scores", "lengths")
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for start in range(0, len(ids), sizes.chunk):
        rows = ids[start : start + sizes.chunk]
        query, response = rows[:, : sizes.prompt], rows[:, sizes.prompt :]
        logits = built.rollout["logits"][start : start + sizes.chunk]
        found["logprobs"].append(selected(logits, response))
        built.empty_cache()
        found["ref_logprobs"].append(_referred(built, rows, response))
        built.empty_cache()
        again = torch.cat((query, response), 1)
        found["lengths"].append(_first(response == PADDING) - 1)
        values = _rated(built.model.value_model, rows)
        found["values"].append(values[:, sizes.prompt - 1 : -1].squeeze(-1))
        scores = _rated(built.companions["reward_model"], again)
        last = _first(again[:, sizes.prompt :] == PADDING) - 1 + sizes.prompt
        found["scores"].append(scores[torch.arange(len(again), device=ids.device), last].squeeze(-1))
    return {"responses": ids[:, sizes.prompt :].clone()} | {
        name: torch.cat(each) for name, each in found.items()
    }


def _first(found: torch.Tensor) -> torch.Tensor:
    """Where a row of (n, C) is true first, C where it is not."""
    length = found.size(-1)
    places = length * (~found).type(torch.long) + torch.arange(length, device=found.device)
    return torch.min(places, dim=-1).values


def _inputs(rows: torch.Tensor, caches: bool) -> dict[str, Any]:
    """What a model reads rows (n, S) with: it returns the hidden states of every layer."""
    mask = rows != PADDING
    return {
        "attention_mask": mask,
        "position_ids": mask.cumsum(1) - mask.long(),
        "input_ids": torch.masked_fill(rows, ~mask, 0),
        "output_hidden_states": True,
        "use_cache": caches,
    }


def _referred(built: Built, rows: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """The reference's log-probabilities: a second model's, or the policy's with its adapter switched off."""
    if built.reference is not None:
        output = built.reference(**_inputs(rows, True))
    else:
        with built.model.policy.disable_adapter():  # type: ignore[operator, union-attr]
            output = built.model.policy(**_inputs(rows, True))  # type: ignore[operator]
    logits = output.logits[:, -response.shape[1] - 1 : -1]
    logits /= HEAT
    return selected(logits, response)


def _rated(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """The head's output for each token (n, S, 1)."""
    output = _backbone(model)(**_inputs(rows, False))
    return model.score(output.hidden_states[-1])  # type: ignore[no-any-return]


def selected(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The log-probability of each label (n, C) from logits (n, C, V), a row at a time."""
    labels = labels.unsqueeze(-1)
    if logits.dtype == torch.float32:
        chosen = torch.gather(logits, dim=-1, index=labels)
        log_z = torch.stack([torch.logsumexp(row, dim=-1) for row in logits])
        return (chosen - log_z.unsqueeze(-1)).squeeze(-1)
    each = []
    for row, label in zip(logits, labels, strict=True):
        row_logps = functional.log_softmax(row, dim=-1)
        each.append(row_logps.gather(dim=-1, index=label))
    return torch.stack(each).squeeze(-1)


def _advantages(found: Tensors) -> Tensors:
    """What the loss compares with, (N, C) each: rows' scores carried back from their last token."""
    responses, lengths, values = found["responses"], found["lengths"], found["values"]
    count, device = responses.shape[1], responses.device
    places = torch.arange(count, device=device).repeat(len(responses), 1)
    padding, beyond = places > lengths.unsqueeze(1), places > (lengths + 1).unsqueeze(1)
    logprobs, reference = (
        torch.masked_fill(found[name], padding, 1.0) for name in ("logprobs", "ref_logprobs")
    )
    values = torch.masked_fill(values, beyond, 0)
    rewards = -KL * (logprobs - reference)
    ends = torch.where(lengths + 1 < count, lengths + 1, lengths)
    rewards[[torch.arange(len(rewards), device=device), ends]] += found["scores"]  # type: ignore[index]
    gain, backwards = values.new_zeros(()), []
    for place in reversed(range(count)):
        following = values[:, place + 1] if place < count - 1 else 0.0
        gain = rewards[:, place] + following - values[:, place] + LAMBDA * gain
        backwards.append(gain)
    advantages = torch.stack(backwards[::-1], dim=1)
    returns = advantages + values
    advantages = torch.masked_fill(_whitened(advantages, ~padding), padding, 0)
    kept = {"responses": responses, "logprobs": logprobs, "values": values, "returns": returns}
    return {**kept, "advantages": advantages, "rewards": rewards, "padding": padding, "beyond": beyond}


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum() / mask.sum()


def _whitened(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of mean 0 and variance 1 where the mask is set."""
    mean, count = _mean(values, mask), mask.sum()
    variance = _mean((values - mean) ** 2, mask) * (count / (count - 1))
    return (values - mean) * torch.rsqrt(variance + 1e-8)


# ---- the step ----------------------------------------------------------------------------------------------


def _train(built: Built, watcher: Announcer, step: int, micro_steps: int, prompt: int) -> None:
    """The micro-steps until the optimizer has stepped once, and after each the entropy of whole logits."""
    kept, optimizer = built.rollout, built.optimizer
    rows, a_mini_batch = micro_rows(built.setup)
    for number in range(micro_steps):
        with watcher.announce("forward", step):
            chosen = list(range(number * rows, (number + 1) * rows))
            part = {name: kept[name][chosen] for name in TRAINED_ON}
            output, predicted = called(built, built.model, _inputs(part["rows"], True))
            logits = output.logits[:, prompt - 1 : -1]
            logits /= HEAT
            logprobs = selected(logits, part["responses"])
            logprobs = torch.masked_fill(logprobs, kept["padding"][chosen], 1.0)
            predicted = predicted[:, prompt - 1 : -1].squeeze(-1)
            predicted = torch.masked_fill(predicted, kept["beyond"][chosen], 0)
            loss = _loss(part, logprobs, predicted, ~kept["padding"][chosen], ~kept["beyond"][chosen])
        with watcher.announce("backward", step):
            (loss / built.setup.gradient_accumulation).backward()
        last = number == micro_steps - 1
        with watcher.announce("optimizer_step" if last else "backward", step):
            if last:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                probabilities = functional.softmax(logits, dim=-1)
                entropy = torch.logsumexp(logits, dim=-1) - torch.sum(probabilities * logits, dim=-1)
            if last or (number + 1) % a_mini_batch == 0:
                del output, predicted, logits, logprobs, loss, probabilities, entropy, part
                built.empty_cache()


TRAINED_ON = ("advantages", "responses", "rows", "logprobs", "returns", "values")
"""What a micro-step takes its rows of."""


def _loss(
    part: Tensors,
    logprobs: torch.Tensor,
    predicted: torch.Tensor,
    real: torch.Tensor,
    valued: torch.Tensor,
) -> torch.Tensor:
    """The clipped ratio's loss and a share of the clipped value's."""
    clipped = torch.clamp(predicted, part["values"] - CLIP, part["values"] + CLIP)
    values = (torch.square(predicted - part["returns"]), torch.square(clipped - part["returns"]))
    of_values = 0.5 * _mean(torch.max(*values), valued)
    ratio = torch.exp(logprobs - part["logprobs"])
    bounded = torch.clamp(ratio, 1.0 - CLIP, 1.0 + CLIP)
    policy = torch.max(-part["advantages"] * ratio, -part["advantages"] * bounded)
    return _mean(policy, real) + VALUE * of_values
