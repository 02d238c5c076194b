"""The loss of TRL's DistillationTrainer: the divergence of a student's next-token distributions from a
teacher's, tile by tile, of completions that the student sampled.

trl 1.16 trainer/distillation_trainer.py _compute_loss, _get_last_hidden_state, _chunked_divergence_loss and
kernels/chunked_divergence.py ChunkedDivergenceFunction at `beta` 1, its default. The trainer calls both
backbones through models/utils.py _ForwardRedirection, which puts a plain method in the place of the
forward that
accelerate wrapped: neither autocast nor the conversion of outputs is on. B rows, C completion tokens, H
hidden
sizes, V vocabulary, N = B x C.
"""

from __future__ import annotations

from typing import Any

import torch

from memplan.planner.inputs.tasks import generated
from memplan.planner.run.built import Built
from memplan.planner.run.chunked_loss import ENTRIES, TOKENS
from memplan.planner.run.preferences import unchecked
from memplan.planner.tables.errors import UsageError


def distill(built: Built) -> Any:
    """The mean divergence of the completion tokens."""
    if built.device == "cpu":
        raise UsageError(f"task '{built.setup.task}' has no rule for device 'cpu': use --device cuda")
    batch, teacher, length = built.batch, built.companions["teacher"], generated(built.setup).completion
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    student_hidden = _hidden(built.base, ids, mask, length)
    with torch.no_grad(), unchecked(teacher):
        teacher_hidden = _hidden(teacher, ids, mask, length)
    flat = batch["completion_mask"].reshape(-1)
    scored, places = flat != 0, torch.arange(flat.shape[0], device=flat.device)  # every token is real
    student, taught = (each.reshape(-1, each.shape[-1]) for each in (student_hidden, teacher_hidden))
    student, taught = student[places], taught[places]
    heads = [each.get_output_embeddings() for each in (built.base, teacher)]  # type: ignore[operator]
    divergence, entropy = TiledDivergence.apply(
        student, heads[0].weight, heads[0].bias, taught, heads[1].weight, heads[1].bias
    )
    loss = divergence.sum() / scored.sum().clamp(min=1)
    del entropy
    return {"loss": loss}


def _hidden(model: Any, ids: torch.Tensor, mask: torch.Tensor, length: int) -> torch.Tensor:
    """(B, C, H): the backbone's last hidden states before each completion token."""
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden[:, :-1, :][:, -length:, :]  # type: ignore[no-any-return]


class TiledDivergence(torch.autograd.Function):
    """KL(student || teacher) and the student's entropy for each of N tokens, of hidden states (N, H) and
    output projections (V, H); a gradient for the student alone. Tiles of logits are fp32, 4,096 x 32,768, one
    for each
    model; on meta and on a GPU nothing is folded, since a Triton kernel allocates nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        taught: torch.Tensor,
        teacher_weight: torch.Tensor,
        teacher_bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A divergence and an entropy for each token."""
        tokens, device = student.shape[0], student.device
        sums = [torch.zeros((tokens,), device=device, dtype=torch.float32) for _ in range(9)]
        largest, teachers_largest, total, weighted, teachers_total, _, gap, _, _ = sums
        tiles = _tiles(tokens, device)
        log_z = largest + torch.log(total)
        teachers_log_z = teachers_largest + torch.log(teachers_total)
        entropy = log_z - weighted / total
        divergence = gap / total - log_z + teachers_log_z
        del tiles
        ctx.save_for_backward(
            student, weight, bias, taught, teacher_weight, teacher_bias, log_z, teachers_log_z, divergence
        )
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(entropy)
        return divergence, entropy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *unused: Any) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Gradients of the student's hidden states, weight and bias, summed in fp32."""
        student, weight, bias = ctx.saved_tensors[:3]
        grad = grad.float().contiguous()
        pairs = zip((student, weight, bias), ctx.needs_input_grad[:3], strict=True)
        sums = [
            torch.zeros(each.shape, device=each.device, dtype=torch.float32)
            if each is not None and needed
            else None
            for each, needed in pairs
        ]
        # nobody deletes them, nor the last copy: they are there while the sums are cast
        held: list[Any] = [*_tiles(student.shape[0], student.device), None]
        for start in range(0, student.shape[0], TOKENS):
            rows = min(TOKENS, student.shape[0] - start)
            for column in range(0, weight.shape[0], ENTRIES):
                held[2] = held[0][:rows, : min(ENTRIES, weight.shape[0] - column)].to(student.dtype)
        given = (student, weight, bias)
        return (
            *(
                None if total is None else total.to(each.dtype)
                for total, each in zip(sums, given, strict=True)
            ),
            *(None,) * 3,
        )


def _tiles(tokens: int, device: torch.device) -> list[torch.Tensor]:
    size = (min(tokens, TOKENS), ENTRIES)
    return [torch.empty(size, device=device, dtype=torch.float32) for _ in range(2)]
