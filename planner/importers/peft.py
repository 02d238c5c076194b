"""PEFT's adapter_config.json (0.21): LoRA and AdaLoRA become settings; every other type is handed to the trace whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import UsageError, shorten
from planner.importers.rules import Facts, Rule, ignored, integer, names, not_modelled, number, setup_fields, text, use


def _targets(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and value != "all-linear":
        return ("(pattern)", value)  # a regular expression: only the trace can match it
    return names(key, value) or ("peft-default",)


VARIANTS = ("velora_config", "use_qalora", "monteclora_config", "use_bdlora", "arrow_config", "kasa_config", "megatron_config",
            "alora_invocation_tokens")  # fmt: skip

LORA: dict[str, Rule] = {
    "peft_type": use("_type", text),
    "base_model_name_or_path": use("_model", text),
    "r": use("rank", integer),
    "lora_alpha": use("alpha", number),
    "lora_dropout": use("dropout", number),
    "target_modules": use("targets", _targets),
    "modules_to_save": use("modules_to_save", names),
    "use_rslora": use("_rslora", lambda key, value: bool(value)),
    "use_dora": use("_dora", lambda key, value: bool(value)),
    "init_r": use("init_rank", integer),
    "target_r": use("target_rank", integer),
    "bias": not_modelled("biases train too", ("none",)),
    "rank_pattern": not_modelled("ranks that differ by module", ({},)),
    "layers_to_transform": not_modelled("adapters on some layers only", ([],)),
    "exclude_modules": not_modelled("modules left out", ([],)),
    "target_parameters": not_modelled("adapters on expert parameters", ([],)),
    "trainable_token_indices": not_modelled("trainable rows of the embedding", ([],)),
    "layer_replication": not_modelled("repeated layers", ([],)),
    "lora_bias": not_modelled("adapters with a bias"),
    **{name: not_modelled("a variant of LoRA with tensors of its own", ({},)) for name in VARIANTS},
    **ignored("how A and B start, or how the update is scaled", """
        init_lora_weights alpha_pattern loftq_config eva_config corda_config lora_ga_config runtime_config fan_in_fan_out
        megatron_core qalora_group_size ensure_weight_tying
    """),
    **ignored("when and how AdaLoRA prunes", "tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step"),
    **ignored("PEFT's own bookkeeping", "task_type auto_mapping peft_version revision inference_mode layers_pattern"),
}  # fmt: skip

KNOWN_TYPES = ("LORA", "ADALORA")


def read(document: Mapping[str, Any], walk: Any) -> tuple[Facts, list[Any], list[str]]:
    """Facts of an adapter_config.json. A type without a rule is kept whole, as `adapter`, for the trace engine."""
    kind = str(document.get("peft_type", "")).upper()
    if not kind:
        raise UsageError("peft_type is missing: expected a name such as LORA")
    if kind in KNOWN_TYPES:
        facts, reports, warnings = walk(LORA, document)
        if kind == "ADALORA":
            facts.pop("rank", None)  # AdaLoRA reads init_r; r stays at its default in the file
        if any(report.status == "not_modelled" for report in reports) or facts.get("targets", ("",))[0] == "(pattern)":
            warnings = ["this adapter needs PEFT itself: use --engine trace (the formula refuses it)"]
            facts = {"adapter": dict(document), "_model": facts.get("_model")}
        return facts, reports, warnings
    from planner.importers.rules import KeyReport

    reports = [KeyReport(shorten(str(key)), "used", "handed to PEFT itself") for key in document]
    model = document.get("base_model_name_or_path")
    return {"adapter": dict(document), "_model": model if isinstance(model, str) else None}, reports, []


def finish(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """Setup fields of an adapter file: the method and what is adapted. It says nothing of precision, batch or sequence."""
    kind = str(facts.get("_type", "")).upper()
    if kind == "ADALORA":
        facts["method"] = "adalora"
    elif "adapter" in facts:
        facts["method"] = METHOD_OF.get(str(facts["adapter"].get("peft_type", "")).upper(), "lora")
    else:
        facts["method"] = "dora" if facts.get("_dora") else "rslora" if facts.get("_rslora") else "lora"
    return setup_fields(facts)


METHOD_OF = {"ADALORA": "adalora", "PREFIX_TUNING": "prefix-tuning", "PROMPT_TUNING": "prompt-tuning", "IA3": "ia3"}
