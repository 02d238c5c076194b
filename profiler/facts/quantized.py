"""Facts about 4-bit training, read by running bitsandbytes and PEFT on the CPU: defaults, gradients, reads,
preparation, merging.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from memplan.planner.run.renamed import renamed
from memplan.profiler.facts.models import Finding, Probe, Value, quantized_llama, tiny_llama, with_adapter
from memplan.profiler.localized_message import said


def _config_default(field: str) -> Probe:
    def probe() -> Finding:
        from transformers import BitsAndBytesConfig

        value = getattr(BitsAndBytesConfig(load_in_4bit=True), field)
        text: Value = value if isinstance(value, bool) else str(value).removeprefix("torch.")
        return text, said(
            "BitsAndBytesConfig(load_in_4bit=True).{field} is {text}", field=field, text=str(text)
        )

    return probe


@cache
def _gradients() -> tuple[bool, bool, bool]:
    """(input has a gradient, 4-bit base has one, adapter has one) after a backward pass through a 4-bit layer
    with LoRA.
    """
    import torch

    model = with_adapter(quantized_llama(), target_modules=["q_proj"])
    seen: list[Any] = []
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    with _hooked(layer, seen):
        model(
            input_ids=torch.arange(16).reshape(1, 16), labels=torch.arange(16).reshape(1, 16)
        ).loss.backward()
        flowed = bool(seen) and seen[0] is not None
    base = [p for n, p in model.named_parameters() if type(p).__name__ == "Params4bit"]
    adapters = [p for n, p in model.named_parameters() if "lora_" in n]
    return flowed, any(p.grad is not None for p in base), all(p.grad is not None for p in adapters)


@contextlib.contextmanager
def _hooked(layer: Any, seen: list[Any]) -> Iterator[None]:
    handle = layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append(inputs[0]))
    try:
        yield
    finally:
        handle.remove()


def _gradient(which: int, what: str) -> Probe:
    def probe() -> Finding:
        value = _gradients()[which]
        template = "after backward through 4-bit layers, {what} has a gradient: {value}"
        return value, said(template, what=said(what), value=value)

    return probe


def _dequantizations(checkpointing: bool) -> Probe:
    """Times one 4-bit weight is turned to 16 or 32 bits in one training step, counted at the library's two
    operators that read it.
    """

    def probe() -> Finding:
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode

        reads: Counter[int] = Counter()

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func.namespace == "bitsandbytes" and func._schema.name.split("::")[1] in (
                    "gemm_4bit",
                    "dequantize_4bit",
                    "gemv_4bit",
                ):
                    packed = max(
                        (a for a in args if isinstance(a, torch.Tensor) and a.dtype == torch.uint8),
                        key=lambda a: a.numel(),
                    )
                    reads[packed.data_ptr()] += 1
                return func(*args, **(kwargs or {}))

        model = with_adapter(quantized_llama()).train()
        if checkpointing:
            model.enable_input_require_grads()
            renamed(model, "activation_checkpointing_enable")({"use_reentrant": False})
        tokens = torch.arange(16).reshape(1, 16)
        with Count():
            model(input_ids=tokens, labels=tokens).loss.backward()
        most = max(reads.values())
        how = said("with checkpointing" if checkpointing else "without checkpointing")
        template = "a 4-bit weight is read up to {most} times in one step {how} ({watched} weights watched)"
        return most, said(template, most=most, how=how, watched=len(reads))

    return probe


@cache
def _prepared() -> dict[str, Any]:
    from peft import prepare_model_for_kbit_training

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = prepare_model_for_kbit_training(quantized_llama())
    name = {"norms": "model.norm.weight", "head": "lm_head.weight", "embeddings": "model.embed_tokens.weight"}
    found: dict[str, Any] = {
        key: str(model.get_parameter(path).dtype).removeprefix("torch.") for key, path in name.items()
    }
    found["checkpointing"] = bool(renamed(model, "is_activation_checkpointing"))
    return found


def _prepare(what: str) -> Probe:
    def probe() -> Finding:
        value = _prepared()[what]
        return value, said(
            "after prepare_model_for_kbit_training: {what} {value}", what=said(what), value=value
        )

    return probe


def _counts_logical() -> Finding:

    logical = sum(p.numel() for p in tiny_llama().parameters())
    trainable, total = with_adapter(quantized_llama()).get_nb_trainable_parameters()
    template = "PEFT counts {counted} base parameters of a 4-bit model whose logical count is {logical}"
    return total - trainable == logical, said(template, counted=total - trainable, logical=logical)


def _merge_warns() -> Finding:

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with_adapter(quantized_llama()).merge_adapter()
    rounding = [str(w.message) for w in caught if "rounding" in str(w.message)]
    template = (
        "merging into 4-bit weights dequantizes, adds and quantizes again; the library warns of rounding "
        "errors {times} times"
    )
    return bool(rounding), said(template, times=len(rounding))


def _paged_minimum() -> Finding:
    """The size from which a paged optimizer pages a state tensor, found by asking the library's own buffer
    function on meta tensors.
    """
    import torch
    from bitsandbytes.optim import PagedAdamW32bit

    optimizer = PagedAdamW32bit([torch.nn.Parameter(torch.zeros(1))])
    low, high = 1, 2**24
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _pages(optimizer, middle) else (middle, high)
    return high, said(
        "state tensors of at least {high:,} elements are paged, smaller ones stay on the GPU", high=high
    )


def _pages(optimizer: Any, elements: int) -> bool:
    import bitsandbytes.functional as functional
    import torch

    asked: list[int] = []
    kept = functional.get_paged, functional.fill
    try:
        functional.get_paged = lambda *shape, **kwargs: asked.append(elements) or torch.empty(0)  # type: ignore[func-returns-value]
        functional.fill = lambda *args, **kwargs: None
        optimizer.get_state_buffer(torch.empty(elements, device="meta"))
    finally:
        functional.get_paged, functional.fill = kept
    return bool(asked)


def _works_without_cuda() -> Finding:
    adapters = _gradients()[2]
    return adapters, said("a QLoRA backward pass (NF4 base, LoRA adapters) ran on the CPU just now")


def _refuses_cpu_split() -> Finding:
    """Whether transformers refuses to load a 4-bit model whose device map puts some modules in host
    memory.
    """
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(load_in_4bit=True))
    try:
        quantizer.validate_environment(device_map={"model.layers.0": 0, "model.layers.1": "cpu"})
    except ValueError as error:
        return True, said("ValueError: {message}", message=str(error).strip().split(".")[0][:100])
    return False, said("validate_environment accepts such a device map")


@cache
def _product_dtypes(autocast: bool) -> tuple[str, ...]:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    dtypes: set[str] = set()

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._schema.name.split("::")[1] in ("mm", "addmm", "bmm", "linear", "gemm_4bit"):
                dtypes.add(
                    str(next(a for a in args if isinstance(a, torch.Tensor)).dtype).removeprefix("torch.")
                )
            return func(*args, **(kwargs or {}))

    from peft import prepare_model_for_kbit_training

    model = quantized_llama()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.compute_dtype = torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = with_adapter(prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)).train()
    tokens = torch.arange(16).reshape(1, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Look():
        model(input_ids=tokens, labels=tokens)
    return tuple(sorted(dtypes))


def _products(autocast: bool) -> Finding:
    dtypes = "+".join(_product_dtypes(autocast))
    how = said("under autocast" if autocast else "without autocast")
    return dtypes, said(
        "matrix products of a QLoRA forward after k-bit preparation {how} run in {dtypes}",
        how=how,
        dtypes=dtypes,
    )


QUANTIZED: dict[str, tuple[Probe, str]] = {
    "bnb_default_quant_type": (_config_default("bnb_4bit_quant_type"), "transformers"),
    "bnb_default_compute_dtype": (_config_default("bnb_4bit_compute_dtype"), "transformers"),
    "bnb_default_double_quant": (_config_default("bnb_4bit_use_double_quant"), "transformers"),
    "qlora_input_gets_gradient": (_gradient(0, "the input of a 4-bit layer"), "bitsandbytes"),
    "qlora_base_gets_gradient": (_gradient(1, "the 4-bit base"), "bitsandbytes"),
    "qlora_adapters_get_gradient": (_gradient(2, "every adapter"), "bitsandbytes"),
    "dequantizations_per_step": (_dequantizations(False), "bitsandbytes"),
    "dequantizations_per_checkpointed_step": (_dequantizations(True), "bitsandbytes"),
    "kbit_preparation_norms": (_prepare("norms"), "peft"),
    "kbit_preparation_head": (_prepare("head"), "peft"),
    "kbit_preparation_embeddings": (_prepare("embeddings"), "peft"),
    "kbit_preparation_checkpointing": (_prepare("checkpointing"), "peft"),
    "peft_counts_logical_4bit_parameters": (_counts_logical, "peft"),
    "merge_into_4bit_requantizes": (_merge_warns, "peft"),
    "paged_minimum_elements": (_paged_minimum, "bitsandbytes"),
    "qlora_runs_without_cuda": (_works_without_cuda, "bitsandbytes"),
    "quantized_cpu_split_refused": (_refuses_cpu_split, "transformers"),
    "qlora_products_under_autocast": (partial(_products, True), "peft"),
    "qlora_products_without_autocast": (partial(_products, False), "peft"),
}
