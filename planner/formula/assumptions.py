"""What a prediction assumed, and what a user should know before trusting it: sentences.

Most follow from the model and the setup, so both engines say them; `of_formula` is what the formula alone
leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.resident.parameter_spec import NEVER_QUANTIZED
from memplan.planner.formula.sharding.strategies import wraps
from memplan.planner.inputs import mixer_kernels, quantized
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec, Moe
from memplan.planner.tables.dtypes import itemsize
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.methods import METHODS, reads_of
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.recipes import RECIPES
from memplan.planner.tables.tasks import TASKS
from memplan.planner.tables.units import gib


def assumptions(spec: ModelSpec | None, setup: Setup) -> Iterator[str]:
    """What was taken for granted, most telling first; `spec` is None for a family that only the trace
    knows.
    """
    recipe = RECIPES[setup.recipe]
    yield f"recipe {setup.recipe}: {recipe.summary}"
    yield from (text for about, text in recipe.notes if _applies(about, setup))
    yield from _of_task(setup)
    yield from spec.notes if spec is not None else ()
    yield from quantized.said(setup, {} if spec is None else spec.config)
    if setup.device == "cuda" and (setup.gpu is None or find_gpu(setup.gpu).capability is None):
        yield "assuming an Ampere GPU"
    yield "steady state: a step after the first, when optimizer states and cuBLAS workspaces exist"
    if setup.eval_batch is not None:
        yield (
            f"evaluation: batches of {setup.eval_batch} return the loss only; with compute_metrics the "
            "Trainer also keeps the logits of every batch: --set eval_kept=ROWS counts them"
            if setup.eval_kept is None
            else f"evaluation: compute_metrics has the logits of {setup.eval_kept} rows on the GPU at once"
        )
    if setup.method == "adalora" and setup.importance_buffers and setup.loop.callbacks:
        yield (
            "AdaLoRA pruning is on: a callback has to call update_and_allocate, which no Trainer "
            "does by itself (without one: --set importance_buffers=false)"
        )
    others = OPTIMIZERS[setup.optimizer].others
    if others is not None and METHODS[setup.method].trains != "nothing":
        yield (
            f"{setup.optimizer} trains the 2-D weights of layers alone: embeddings, the output projection, "
            f"norms and biases are trained by {others}"
        )
    if OPTIMIZERS[setup.optimizer].paged and METHODS[setup.method].trains != "nothing":
        yield (
            "paged optimizer states are counted as host memory; they move to the GPU while it has "
            "room, so nvidia-smi can show more"
        )
    if OPTIMIZERS[setup.optimizer].on_host and METHODS[setup.method].trains != "nothing":
        yield (
            f"{setup.optimizer} keeps its states on the host and copies those of one tensor after another to "
            "the GPU and back; the host holds the largest state twice meanwhile, which is not counted"
        )


def _of_task(setup: Setup) -> Iterator[str]:
    """What the task is, and which tokens its loss counts."""
    task = TASKS[setup.task]
    if setup.task != "sft":
        yield f"task {task.name}: {task.summary}"
    if task.judges and setup.reward_model is None:
        yield "value and reward model: of the policy's own size (--set reward_model=MODEL)"
    if "completion_mask" in task.sequences:
        yield "every token of a row is counted as completion: prompts only make the loss smaller"


def of_formula(setup: Setup, replayed: bool) -> Iterator[str]:
    """What the formula simplifies. `replayed`: its run went through the caching allocator."""
    if setup.device == "cuda" and not replayed:
        why = f"{setup.parallel} so set up" if wraps(setup) else "a model of this depth"
        yield (
            f"{why}: reserved memory is allocated memory rounded up to 2 MiB segments, since the allocator "
            "is not replayed: fragmentation is not counted"
        )


def _applies(about: str, setup: Setup) -> bool:
    """Whether a word about a setting's default says anything of this setup: nobody chose the setting, and the
    method reads it.
    """
    if setup.origins.get(about) in ("user", "import", "checkpoint") or (
        about == "quant_type" and setup.quant_type == "none"
    ):
        return False
    reads = reads_of(setup.method, setup.adapters)
    return about in reads or not any(about in row.reads for row in METHODS.values())


def warnings(spec: ModelSpec | None, setup: Setup, model_type: str = "") -> Iterator[str]:
    """What can surprise. `model_type`: of the model as its library has it, where `spec` does not say it."""
    whole = model_type or (spec.whole_type or spec.model_type if spec is not None else "")
    if setup.fused_kernels:
        from memplan.planner.inputs import fused_kernels

        yield from fused_kernels.warnings(whole, setup)
    yield from mixer_kernels.warnings(whole, setup)
    if spec is not None and setup.quant_type != "none":
        if spec.model_type in NEVER_QUANTIZED:
            yield (
                f"transformers does not quantize the linear layers of {spec.architecture}: their class is "
                "not nn.Linear itself"
            )
        yield from _unquantized_experts(spec, setup)
    yield from _no_bfloat16(setup)
    yield from _unscalable(setup)
    if METHODS[setup.method].trains == "last_layers" and setup.checkpointing != "none":
        yield (
            "only the last layers are trained: checkpointing keeps the inputs of frozen layers too "
            "and can need more memory than no checkpointing"
        )


def _unquantized_experts(spec: ModelSpec, setup: Setup) -> Iterator[str]:
    """Experts that are 3-D parameters: transformers 5.23 integrations/bitsandbytes.py converts nn.Linear and
    Conv1D alone.
    """
    if not any(isinstance(layer.mlp, Moe) for _, layer in spec.layers):
        return
    base = ParameterTable(
        spec, setup.with_(method="inference", modules_to_save=())
    ).base  # without what the method adds
    experts = [each for each in base if each.role == "expert" and each.dtype not in ("nf4", "fp4")]
    if not experts or (setup.quantize_experts and all(len(each.shape) < 3 for each in experts)):
        return
    size = sum(itemsize(stored.dtype) * stored.elements.evaluate({}) * stored.count for stored in experts)
    half = (
        "; without the fp32 upcast of k-bit preparation they would take half (--set kbit_prepare=false)"
        if setup.kbit_prepare
        else "; in 4 bits too: --set quantize_experts=true"
        if setup.quant_type != "int8" and not setup.quantize_experts
        else ""
    )
    yield (
        f"{gib(size)} of expert weights stay in {experts[0].dtype}: they are 3-D parameters, and "
        "bitsandbytes quantizes only linear layers" + half
    )


def _unscalable(setup: Setup) -> Iterator[str]:
    """What the Trainer's fp16 mixed precision cannot train: torch 2.13 amp/grad_scaler.py _unscale_grads_
    refuses float16 gradients.
    """
    trained = {
        "all": setup.weight_dtype,
        "last_layers": setup.weight_dtype,
        "adapter": setup.adapter_dtype,
    }.get(METHODS[setup.method].trains)
    if (
        not setup.loop.prepares
        or setup.autocast != "float16"
        or trained != "float16"
        or setup.trainable_dtype == "float32"
    ):
        return
    yield (
        "fp16 mixed precision does not train float16 weights ('Attempting to unscale FP16 "
        "gradients'): use float32 or bfloat16 weights"
    )


def _no_bfloat16(setup: Setup) -> Iterator[str]:
    """GPUs before Ampere: torch 2.13 aten/src/ATen/native/transformers/cuda/sdp_utils.cpp check_dtypes_sm80
    and below.
    """
    gpu = find_gpu(setup.gpu) if setup.gpu else None
    if (
        gpu is None
        or gpu.capability is None
        or gpu.capability >= (8, 0)
        or "bfloat16" not in (setup.weight_dtype, setup.autocast)
    ):
        return
    yield (
        f"{gpu.name} has no bfloat16 units: bfloat16 is slow, and fused attention rejects it "
        "(use --dtype float16 --autocast float16)"
    )
