"""Facts about adapters, the Trainer and model loading, read by running PEFT, transformers and accelerate on
tiny CPU models.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from memplan.planner.run.renamed import renamed
from memplan.profiler.facts.models import Finding, Probe, tiny_llama, with_adapter
from memplan.profiler.localized_message import said


def _first_lora(model: Any) -> Any:
    return next(
        module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "scaling")
    )


def _b_starts_at_zero() -> Finding:
    largest = max(
        float(p.detach().abs().max()) for n, p in with_adapter().named_parameters() if "lora_B" in n
    )
    return largest == 0.0, said("largest |B| after get_peft_model: {largest}", largest=largest)


def _a_distribution(init: bool | str) -> Finding:
    """A uniform distribution ends at sqrt(3) = 1.73 standard deviations; among 512 Gaussian values some lie
    far beyond.
    """
    weight = _first_lora(with_adapter(init_lora_weights=init)).lora_A["default"].weight.detach()
    reach = float(weight.abs().max() / weight.std())
    name = "uniform" if reach < 2 else "gaussian"
    reaches = "init_lora_weights={init}: A reaches {reach:.2f} standard deviations, so it is {name}"
    return name, said(reaches, init=repr(init), reach=reach, name=said(name))


def _starts_equal() -> Finding:
    import torch

    torch.manual_seed(0)
    base = tiny_llama().eval()
    tokens = torch.arange(16).reshape(1, 16)
    with torch.no_grad():
        before = base(input_ids=tokens).logits
        after = with_adapter(base).eval()(input_ids=tokens).logits
    gap = float((before - after).abs().max())
    return gap == 0.0, said("largest difference of logits before and after adding adapters: {gap}", gap=gap)


def _scaling() -> Finding:
    pairs = [
        (r, a, _first_lora(with_adapter(r=r, lora_alpha=a)).scaling["default"])
        for r, a in ((4, 16), (8, 16), (16, 8))
    ]
    return all(s == a / r for r, a, s in pairs), said(
        "{pairs}", pairs=tuple(said("r {r}, alpha {a}: scaling {s}", r=r, a=a, s=s) for r, a, s in pairs)
    )


def _ranks(**config: Any) -> Finding:
    """How many different ranks the adapted layers have."""
    model = with_adapter(r=8, **config)
    ranks = [module.r["default"] for module in model.modules() if hasattr(module, "lora_A")]
    told = said(
        "{layers} adapted layers have the ranks {ranks}", layers=len(ranks), ranks=str(sorted(set(ranks)))
    )
    return len(set(ranks)), told


def _product_order() -> Finding:
    layer = _first_lora(with_adapter(target_modules=["up_proj"]))
    a, b, w = (
        tuple(m.weight.shape) for m in (layer.lora_A["default"], layer.lora_B["default"], layer.base_layer)
    )
    fits = {"BA": b[1] == a[0] and (b[0], a[1]) == w, "AB^T": a[1] == b[1] and (a[0], b[0]) == w}
    return "+".join(name for name, ok in fits.items() if ok), said(
        "A {a}, B {b}, W {w}", a=str(a), b=str(b), w=str(w)
    )


def _transposed_product() -> Finding:
    """Whether PEFT's update is alpha / r times P Q^T with P (d x r) its B and Q (k x r) its A transposed."""
    import torch

    layer = _first_lora(with_adapter(target_modules=["up_proj"], init_lora_weights=False))
    p, q = layer.lora_B["default"].weight, layer.lora_A["default"].weight.T
    update = layer.get_delta_weight("default")
    same = torch.allclose(update, layer.scaling["default"] * p @ q.T) and bool(update.abs().max() > 0)
    shapes = (tuple(p.shape), tuple(q.shape), tuple(update.shape))
    return same, said("P {p}, Q {q}, the update {w}", **dict(zip("pqw", map(str, shapes), strict=True)))


def _merged_parameters() -> Finding:
    before = sum(p.numel() for p in tiny_llama().parameters())
    merged = with_adapter().merge_and_unload()
    after = sum(p.numel() for p in merged.parameters())
    return after - before, said(
        "{after} parameters after merge_and_unload, {before} in the base", after=after, before=before
    )


def _merged_modules() -> Finding:
    plain = [type(m).__name__ for m in tiny_llama().modules()]
    merged = [type(m).__name__ for m in with_adapter().merge_and_unload().modules()]
    compared = (
        "{merged} modules after merging, {plain} in the base, of the same classes in the same order: {same}"
    )
    return plain == merged, said(compared, merged=len(merged), plain=len(plain), same=plain == merged)


def _adapter_dtype() -> Finding:
    import torch

    model = with_adapter(tiny_llama().to(torch.bfloat16))
    dtype = str(_first_lora(model).lora_A["default"].weight.dtype).removeprefix("torch.")
    return dtype, said(
        "adapters on a bfloat16 base are {dtype} by default (autocast_adapter_dtype)", dtype=dtype
    )


def _default_targets() -> Finding:
    model = with_adapter(target_modules=None)
    names = sorted(model.peft_config["default"].target_modules)
    return "+".join(names), said(
        "LoraConfig without target_modules on Llama adapts {names}", names=", ".join(names)
    )


def _snippet_runs() -> Finding:
    """The attention wrapper reads `in_features` of the module it wraps, which a linear layer has and an
    attention module has not.
    """
    import torch

    attention = tiny_llama().model.layers[0].self_attn
    others = {"LlamaAttention": attention, "torch.nn.MultiheadAttention": torch.nn.MultiheadAttention(64, 4)}
    having = [name for name, module in others.items() if hasattr(module, "in_features")]
    return bool(having), said(
        "of {others}, these have in_features: {having}",
        having=", ".join(having) or said("none"),
        others=", ".join(others),
    )


def _adalora_ranks(field: str) -> Probe:
    def probe() -> Finding:
        from peft import AdaLoraConfig

        config = AdaLoraConfig(total_step=100, peft_type="ADALORA")
        return getattr(config, field), said(
            "AdaLoraConfig: init_r {init}, target_r {target}", init=config.init_r, target=config.target_r
        )

    return probe


def _adalora() -> Any:
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(
        init_r=4,
        target_r=1,
        tinit=1,
        tfinal=1,
        deltaT=1,
        total_step=8,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(tiny_llama(), config)


@cache
def _pruned() -> tuple[int, int, int, int]:
    """(adapter elements before, after pruning; smallest rank of a layer; total rank) over eight real steps of
    AdaLoRA.
    """
    import torch

    torch.manual_seed(0)
    model = _adalora()
    before = sum(p.numel() for p in model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    tokens = torch.arange(32).reshape(2, 16)
    for step in range(7):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    after = sum(
        p.numel() for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n or "lora_E" in n
    )
    ranks = [int((p != 0).sum()) for n, p in model.named_parameters() if "lora_E" in n]
    return before, after, min(ranks), sum(ranks)


def _adalora_kept() -> Finding:
    before, after, least, total = _pruned()
    kept = "{before} adapter elements at the start, {after} held after pruning to a total rank of {total}"
    return after / before, said(kept, before=before, after=after, total=total)


def _adalora_least_rank() -> Finding:
    _, _, least, total = _pruned()
    return least, said(
        "smallest rank of a layer after pruning to a total of {total}: {least}", total=total, least=least
    )


def _adalora_merges() -> Finding:
    merged = _adalora().merge_and_unload()
    left = sum("lora" in name for name, _ in merged.named_parameters())
    return left == 0, said("merge_and_unload leaves {left} adapter tensors", left=left)


def _trainer_optimizer() -> Finding:
    from dataclasses import fields

    from transformers import TrainingArguments

    value = next(f.default for f in fields(TrainingArguments) if f.name == "optim")
    name = str(getattr(value, "value", value))
    return name, said("TrainingArguments.optim is {name}", name=name)


def _trainer_pages() -> Finding:
    name, evidence = _trainer_optimizer()
    return "paged" in str(name), said(
        "{evidence}; paging needs optim='paged_adamw_32bit' or another paged name", evidence=evidence
    )


def _cache_kept() -> Finding:
    import torch

    model = tiny_llama().train()
    renamed(model, "activation_checkpointing_enable")()
    out = model(input_ids=torch.arange(16).reshape(1, 16), use_cache=True)
    kept = renamed(out, "cache")
    length = 0 if kept is None else int(kept.get_seq_length())
    return length, said(
        "a checkpointed training forward with use_cache=True returns a cache of {length} tokens",
        length=length,
    )


def _split_layers(device: str) -> Probe:
    """Layers of a bf16 65B Llama that device_map='auto' places on a GPU with 23.5 GiB, beside 500 GiB of
    host memory.
    """

    def probe() -> Finding:
        import torch
        from accelerate import infer_auto_device_map, init_empty_weights
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=8192,
            intermediate_size=22016,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=64,
        )
        with init_empty_weights():
            model = LlamaForCausalLM(config)
        placed = infer_auto_device_map(
            model,
            {0: int(23.5 * 2**30), "cpu": 500 * 2**30},
            no_split_module_classes=["LlamaDecoderLayer"],
            dtype=torch.bfloat16,
        )
        on_gpu = sum(where == 0 for name, where in placed.items() if ".layers." in f".{name}")
        on_cpu = sum(where == "cpu" for name, where in placed.items() if ".layers." in f".{name}")
        counted = said(
            "{on_gpu} of 80 layers on the 23.5 GiB GPU, {on_cpu} in host memory",
            on_gpu=on_gpu,
            on_cpu=on_cpu,
        )
        return (on_gpu if device == "gpu" else on_cpu), counted

    return probe


def _fp16_bits() -> Finding:
    import torch

    bits, default = torch.finfo(torch.float16).bits, str(torch.get_default_dtype())
    return bits, said("float16 has {bits} bits, torch's default dtype {default}", bits=bits, default=default)


ADAPTERS: dict[str, tuple[Probe, str]] = {
    "lora_b_starts_at_zero": (_b_starts_at_zero, "peft"),
    "lora_a_default_distribution": (lambda: _a_distribution(True), "peft"),
    "lora_a_gaussian_distribution": (lambda: _a_distribution("gaussian"), "peft"),
    "lora_starts_equal": (_starts_equal, "peft"),
    "lora_scaling_is_alpha_over_r": (_scaling, "peft"),
    "lora_ranks_by_default": (_ranks, "peft"),
    "lora_ranks_with_a_pattern": (lambda: _ranks(rank_pattern={"q_proj": 16}), "peft"),
    "lora_product_order": (_product_order, "peft"),
    "lora_transposed_product_is_the_update": (_transposed_product, "peft"),
    "lora_merged_extra_parameters": (_merged_parameters, "peft"),
    "lora_merged_same_modules": (_merged_modules, "peft"),
    "lora_adapter_dtype": (_adapter_dtype, "peft"),
    "lora_default_targets": (_default_targets, "peft"),
    "lora_attention_snippet_runs": (_snippet_runs, "transformers"),
    "adalora_init_rank": (_adalora_ranks("init_r"), "peft"),
    "adalora_target_rank": (_adalora_ranks("target_r"), "peft"),
    "adalora_elements_kept_after_pruning": (_adalora_kept, "peft"),
    "adalora_least_rank_after_pruning": (_adalora_least_rank, "peft"),
    "adalora_merges": (_adalora_merges, "peft"),
    "trainer_default_optimizer": (_trainer_optimizer, "transformers"),
    "trainer_pages_by_default": (_trainer_pages, "transformers"),
    "cache_tokens_kept_under_checkpointing": (_cache_kept, "transformers"),
    "device_map_layers_on_gpu": (_split_layers("gpu"), "accelerate"),
    "device_map_layers_on_cpu": (_split_layers("cpu"), "accelerate"),
    "float16_bits": (_fp16_bits, "torch"),
}
