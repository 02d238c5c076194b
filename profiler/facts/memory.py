"""Facts about what training holds: optimizer states, dequantized copies, the Trainer's paged optimizers. Read
by running the libraries.
"""

from __future__ import annotations

import weakref
from typing import Any

from memplan.planner.run.renamed import renamed
from memplan.profiler.facts.models import Finding, Probe, quantized_llama, with_adapter
from memplan.profiler.localized_message import said


def _copy_among_states() -> Finding:
    """Whether AdamW's states hold the parameter again (a master copy): compared by value after one step on a
    bfloat16 parameter.
    """
    import torch

    parameter = torch.nn.Parameter(torch.randn(64, 64, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    states = {
        name: tensor
        for name, tensor in optimizer.state[parameter].items()
        if tensor.numel() == parameter.numel()
    }
    copies = [
        name
        for name, tensor in states.items()
        if torch.allclose(tensor.float(), parameter.detach().float(), atol=1e-2)
    ]
    told = tuple(f"{name} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in states.items())
    return bool(copies), said(
        "torch.optim.AdamW keeps for a bfloat16 parameter of this size: {states}", states=", ".join(told)
    )


def _paged_names() -> Finding:
    from transformers.training_args import OptimizerNames

    names = [name.value for name in OptimizerNames if "paged" in name.value]
    return bool(names), said("TrainingArguments.optim accepts {names}", names=", ".join(names))


def _copies_alive() -> Finding:
    """The most 16-bit copies of 4-bit weights alive at once in a step with checkpointing, each watched until
    its storage is freed.
    """
    import torch
    from bitsandbytes.nn import Linear4bit
    from torch.utils._python_dispatch import TorchDispatchMode

    alive: set[int] = set()
    most = made = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal most, made
            out = func(*args, **(kwargs or {}))
            if func.namespace == "bitsandbytes" and func._schema.name.endswith("::dequantize_4bit"):
                made += 1
                number = made
                alive.add(number)
                most = max(most, len(alive))
                weakref.finalize(out.untyped_storage(), alive.discard, number)
            return out

    model = with_adapter(quantized_llama()).train()
    layers = sum(isinstance(module, Linear4bit) for module in model.modules())
    model.enable_input_require_grads()
    renamed(model, "activation_checkpointing_enable")({"use_reentrant": False})
    tokens = torch.arange(16).reshape(1, 16)
    with Watch():
        model(input_ids=tokens, labels=tokens).loss.backward()
    template = (
        "of {layers} 4-bit layers, at most {most} had a 16-bit copy alive at once in a checkpointed step "
        "({made} copies made)"
    )
    return most, said(template, layers=layers, most=most, made=made)


def _other_backends() -> Finding:
    """4-bit formats that PEFT's LoRA has a layer for, bitsandbytes apart, by the modules of its lora
    package.
    """
    from pathlib import Path

    import peft.tuners.lora as lora

    modules = {path.stem for path in Path(str(lora.__file__)).parent.glob("*.py")}
    names = sorted(modules & {"aqlm", "awq", "gptq", "hqq", "torchao", "inc", "eetq"})
    return len(names), said("PEFT's LoRA has layers for {names}", names=", ".join(names))


MEMORY: dict[str, tuple[Probe, str]] = {
    "adamw_keeps_a_copy_of_the_parameters": (_copy_among_states, "torch"),
    "trainer_accepts_paged_optimizers": (_paged_names, "transformers"),
    "peft_other_quantized_backends": (_other_backends, "peft"),
    "dequantized_copies_alive_at_once": (_copies_alive, "bitsandbytes"),
}
