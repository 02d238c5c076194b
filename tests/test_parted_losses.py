"""Losses of logits in parts: their value and gradients are the whole cross-entropy's, they save what the
libraries save, and the formula needs what the trace needs.
"""

from __future__ import annotations

from typing import Any

import pytest
from test_tasks import LLAMA, setup_of

from memplan.planner.formula.engine import plan
from memplan.planner.inputs.families.table import read_config
from memplan.planner.tables.losses import PARTS

ROWS, LENGTH, WIDTH, ENTRIES = 2, 24, 8, 40


@pytest.fixture
def problem() -> tuple[Any, Any, Any]:
    """Last hidden states, labels of which some are ignored, and a head."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    labels = torch.randint(0, ENTRIES, (ROWS, LENGTH))
    labels[:, :3] = -100
    hidden = torch.randn(ROWS, LENGTH, WIDTH, requires_grad=True)
    return hidden, labels, torch.nn.Linear(WIDTH, ENTRIES, bias=False)


def found(loss: Any, hidden: Any, head: Any) -> tuple[Any, Any, Any]:
    hidden.grad = head.weight.grad = None
    loss.backward()
    return loss.detach(), hidden.grad.clone(), head.weight.grad.clone()


@pytest.mark.trace
@pytest.mark.parametrize("which", ["torchtune", "torchtune_06", "axolotl"])
def test_the_value_and_the_gradients_are_the_whole_losss(which: str, problem: tuple[Any, Any, Any]) -> None:
    import torch
    from transformers.loss.loss_utils import ForCausalLMLoss

    from memplan.planner.run import parted_losses

    hidden, labels, head = problem
    whole = found(ForCausalLMLoss(head(hidden), labels, ENTRIES), hidden, head)
    of = getattr(parted_losses, which)
    parted = of(head(hidden), labels) if which == "axolotl" else of(hidden, labels, head).loss
    for ours, theirs in zip(found(parted, hidden, head), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.trace
def test_the_compiled_kernel_saves_what_ours_does(problem: tuple[Any, Any, Any]) -> None:
    """What torch.compile's partition of the same expression hands to its backward, by shape and dtype."""
    import torch
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table
    from torch.nn import functional

    from memplan.planner.run.parted_losses import CompiledCrossEntropy

    hidden, labels, head = problem
    logits, targets = head(hidden).detach().reshape(-1, ENTRIES).bfloat16(), labels.reshape(-1)
    given: list[Any] = []

    def backward_of(graph: Any, inputs: Any) -> Any:
        given.extend(inputs[:-1])  # the last is the gradient of the loss
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward),
        bw_compiler=backward_of,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )

    @torch.compile(backend=backend)
    def compiled(logits: Any, targets: Any) -> Any:
        return functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")

    compiled(logits.clone().requires_grad_(), targets).backward()
    ours = CompiledCrossEntropy.apply(logits.clone().requires_grad_(), targets).grad_fn.saved_tensors
    assert [(tuple(x.shape), x.dtype) for x in given] == [(tuple(x.shape), x.dtype) for x in ours]


@pytest.mark.trace
@pytest.mark.parametrize("loss", ["torchtune", "torchtune-0.6", "axolotl-chunked"])
@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_formula_needs_what_the_trace_needs(loss: str, rows: int) -> None:
    """The peak in allocated blocks within 0.2 %, every moment's tensors within 2 %."""
    pytest.importorskip("transformers")
    from memplan.planner.trace.engine import trace

    config = {**LLAMA, "num_hidden_layers": 3}
    s = setup_of(
        recipe="axolotl" if loss == "axolotl-chunked" else "raw",
        method="lora",
        loss=loss,
        micro_batch=rows,
        sequence_length=1003,
        checkpointing="non_reentrant",
    )
    traced, planned = trace(config, s), plan(read_config(config), s)
    for moment in traced.moments:
        bytes_ = planned.moment(moment.moment).allocated_bytes
        assert bytes_ == pytest.approx(moment.allocated_bytes, rel=0.02), moment.moment
    assert planned.survival is not None
    assert planned.survival.allocated_bytes == pytest.approx(traced.peak.allocated_bytes, rel=2e-3)


def test_between_the_whole_loss_and_the_tiles() -> None:
    """Nothing of torchtune's or axolotl's is recomputed: less than whole logits in fp32, more than tiles."""
    spec = read_config(LLAMA)
    peak = {
        loss: plan(spec, setup_of(recipe="raw", method="lora", loss=loss, sequence_length=2048)).peak
        for loss in ("full", "chunked", "torchtune", "torchtune-0.6", "axolotl-chunked")
    }
    sizes = {loss: each.allocated_bytes for loss, each in peak.items()}
    assert sizes["chunked"] < sizes["torchtune"] < sizes["torchtune-0.6"] < sizes["full"]
    assert sizes["chunked"] < sizes["axolotl-chunked"] < sizes["full"]
    assert PARTS == 8
