"""Choices of a setup that exclude each other, each pair with the sentence that says so."""

from __future__ import annotations

from typing import Any

from memplan.planner.inputs import after_rules, optimizer_rules, pictures, quantized, task_rules
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.other_optimizers import unknown_optimizer
from memplan.planner.tables.parallel import SPOKEN


def contradictions(s: Any) -> list[tuple[bool, str]]:
    """(whether it is so, the sentence) for each pair of choices that exclude each other."""
    row = OPTIMIZERS.get(s.optimizer)
    if row is None:
        raise unknown_optimizer(s.optimizer)
    method = METHODS[s.method]
    return [
        *quantized.contradictions(s),
        *pictures.contradictions(s),
        (
            s.optimizer_mode not in row.modes,
            f"optimizer_mode '{s.optimizer_mode}' contradicts optimizer '{s.optimizer}', which is "
            f"{' or '.join(row.modes)}",
        ),
        (
            method.quantized and s.quant_type == "none",
            f"method '{s.method}' needs a quantized base: set quant_type to nf4, fp4 or int8",
        ),
        (
            method.trains in ("all", "last_layers") and s.quant_type != "none",
            f"quant_type '{s.quant_type}' cannot be trained with method '{s.method}'",
        ),
        (
            s.method == "adalora" and (s.target_rank or 0) > (s.init_rank or 0),
            f"target_rank {s.target_rank} is more than the init_rank {s.init_rank} that AdaLoRA prunes from",
        ),
        (
            "targets" in method.reads and not (s.targets or s.target_parameters),
            "targets is empty: expected names such as q_proj,v_proj, or all-linear",
        ),
        (
            bool(s.fused_kernels) and s.device == "cpu",
            f"fused_kernels {','.join(s.fused_kernels)} run on a GPU alone: leave --device cpu out, or them",
        ),
        (
            bool(s.mixer_kernels) and s.device == "cpu" and s.origins.get("mixer_kernels") == "user",
            f"mixer_kernels {','.join(s.mixer_kernels)} run on a GPU alone: leave --device cpu out, or them",
        ),
        (
            "mamba-ssm" in s.mixer_kernels and "causal-conv1d" not in s.mixer_kernels,
            "mixer_kernels mamba-ssm calls causal-conv1d's functions: name both, mamba-ssm,causal-conv1d",
        ),
        (
            bool(s.target_parameters) and "target_parameters" not in method.reads,
            f"target_parameters: method '{s.method}' adapts modules only: use --method lora",
        ),
        (
            bool(s.target_parameters) and s.dropout > 0,
            f"target_parameters with dropout {s.dropout}: PEFT has dropout for modules only; set it to 0",
        ),
        (
            bool(s.trained_parameters) and method.trains != "all",
            f"trained_parameters applies to full fine-tuning only, not to method '{s.method}': leave it out",
        ),
        (
            s.gpus > 1 and s.parallel == "none",
            f"gpus {s.gpus} needs --parallel {SPOKEN}",
        ),
        (
            s.replicas > 1 and (s.parallel != "fsdp" or s.fsdp_version != 2),
            f"replicas {s.replicas} are copies of a model that FSDP2 cuts: use --parallel fsdp, or --gpus "
            f"{s.gpus * s.replicas} alone",
        ),
        (
            s.activation_offload != "none" and s.device == "cpu",
            "activation_offload moves saved tensors from a GPU to the host: device cpu has none to move",
        ),
        *optimizer_rules.in_backward(s),
        *optimizer_rules.low_rank(s),
        *after_rules.evaluation(s),
        *after_rules.merging(s),
        *after_rules.serving(s),
        *after_rules.saving(s),
        *task_rules.generation(s),
        *task_rules.beside(s),
        (
            s.packed_documents > s.sequence_length,
            f"packed_documents {s.packed_documents} is more than the {s.sequence_length} tokens of a row",
        ),
        (
            s.packed_documents > 1 and s.padded,
            "packed_documents contradicts padded: a packed row has no padding",
        ),
        *task_rules.contradictions(s),
    ]
