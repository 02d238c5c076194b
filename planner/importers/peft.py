"""PEFT's adapter_config.json (0.21): what it says becomes settings; where the formula has no rule, the file
goes to the trace whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memplan.planner.importers.rules import (
    Facts,
    KeyReport,
    Rule,
    bad,
    ignored,
    integer,
    names,
    not_modelled,
    number,
    setup_fields,
    text,
    use,
    walk,
    whole_numbers,
)
from memplan.planner.inputs.spec import ModelSpec, prefix_sizes
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.peft_targets import IA3_FEEDFORWARD, IA3_TARGETS


def _targets(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and value != "all-linear":
        return ("(pattern)", value)  # a regular expression: only the trace can match it
    found = names(key, value)
    if len(found) < len(value if isinstance(value, list) else [value]):
        raise bad(key, value, "names of modules, or all-linear")
    return found


VARIANTS = (
    "velora_config",
    "use_qalora",
    "monteclora_config",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "megatron_config",
    "alora_invocation_tokens",
)

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
    "layers_to_transform": use("layers_to_transform", whole_numbers),
    "exclude_modules": not_modelled("modules left out", ([],)),
    "target_parameters": use("target_parameters", names),
    "trainable_token_indices": not_modelled("trainable rows of the embedding", ([],)),
    "layer_replication": not_modelled("repeated layers", ([],)),
    "lora_bias": not_modelled("adapters with a bias"),
    **{name: not_modelled("a variant of LoRA with tensors of its own", ({},)) for name in VARIANTS},
    **ignored(
        "how A and B start, or how the update is scaled",
        """
        init_lora_weights alpha_pattern loftq_config eva_config corda_config lora_ga_config runtime_config fan_in_fan_out
        megatron_core qalora_group_size ensure_weight_tying
    """,
    ),
    **ignored("when and how AdaLoRA prunes", "tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step"),
    **ignored(
        "PEFT's own bookkeeping", "task_type auto_mapping peft_version revision inference_mode layers_pattern"
    ),
}

OTHER: dict[str, str] = {"r": "rank", "num_virtual_tokens": "virtual_tokens"}
"""Numbers that files of other types give and Setup has a name for."""

DEFAULTS: dict[str, Facts] = {
    "LORA": {"rank": 8, "alpha": 8, "dropout": 0.0, "targets": ("peft-default",)},
    "ADALORA": {"init_rank": 12, "target_rank": 8, "alpha": 8, "dropout": 0.0, "targets": ("peft-default",)},
}
"""What PEFT takes where a file is silent: peft 0.21 tuners/lora/config.py LoraConfig,
tuners/adalora/config.py AdaLoraConfig.
"""

METHOD_OF = {
    "ADALORA": "adalora",
    "PREFIX_TUNING": "prefix-tuning",
    "PROMPT_TUNING": "prompt-tuning",
    "IA3": "ia3",
}
QUANTIZED = ("qlora",)  # a 4-bit base under any adapter
ALSO = {"lora": (*QUANTIZED, "lora+", "lora-fa"), "rslora": (*QUANTIZED, "lora+", "lora-fa")}
"""The methods that a person may name beside a file of one method: they change what stands around the same
adapter.
"""

SAID_BY_FILE = (
    "rank",
    "alpha",
    "dropout",
    "targets",
    "modules_to_save",
    "init_rank",
    "target_rank",
    "virtual_tokens",
    "bottleneck",
    "layers_to_transform",
    "target_parameters",
)


def read(document: Mapping[str, Any], walk: Any) -> tuple[Facts, list[Any], list[str]]:
    """Facts of an adapter_config.json. What the formula has no rule for is kept whole beside them, as
    `adapter`, for the trace engine.
    """
    kind = str(document.get("peft_type", "")).upper()
    if not kind:
        raise UsageError("the adapter file names no peft_type: expected a name such as LORA")
    if kind in DEFAULTS:
        facts, reports, warnings = walk(LORA, document)
        if document.get("target_modules") == [] and not document.get("target_parameters"):
            raise bad("target_modules", [], "names of modules (PEFT finds none to adapt)")
        if kind == "ADALORA":
            facts.pop("rank", None)  # AdaLoRA reads init_r; r stays at its default in the file
        facts = {**DEFAULTS[kind], **facts, "_type": kind}
        pattern = facts["targets"][:1] == ("(pattern)",)
        if pattern:
            facts["targets"] = facts["targets"][1:]
        beyond = any(
            report.status == "not_modelled" or (report.status == "unknown" and document.get(report.key))
            for report in reports
        )
        if beyond or pattern:
            warnings = ["this adapter needs PEFT itself: the trace runs it, the formula refuses it"]
            facts["adapter"] = dict(document)
        return facts, reports, warnings
    reports = [KeyReport(shorten(str(key)), "used", "handed to PEFT itself") for key in document]
    model, saved, found = (
        document.get("base_model_name_or_path"),
        document.get("modules_to_save"),
        document.get("target_modules"),
    )
    facts = {"adapter": dict(document), "_type": kind, "_model": model if isinstance(model, str) else None}
    facts |= {
        OTHER[key]: value
        for key, value in document.items()
        if key in OTHER and type(value) is int and value > 0
    }
    if isinstance(saved, list) and saved:
        facts["modules_to_save"] = names("modules_to_save", saved)
    if isinstance(found, (list, str)) and found:
        facts["targets"] = names("target_modules", [found] if isinstance(found, str) else found)
    return facts, reports, []


def finish(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """Setup fields of an adapter file: the method and what is adapted. It says nothing of precision, batch or
    sequence.
    """
    variant = "dora" if facts.get("_dora") else "rslora" if facts.get("_rslora") else "lora"
    facts["method"] = METHOD_OF.get(str(facts.get("_type", "")), variant)
    return setup_fields(facts)


def settings(
    document: Mapping[str, Any], said: Mapping[str, Any], under: Mapping[str, Any], spec: ModelSpec | None
) -> dict[str, Any]:
    """Setup fields of an adapter file for one model; `adapter`, the file itself, is among them where only the
    trace has a rule.

    `said` is what a person chose beside the file, `under` what another file did; `spec` is None for a model
    that only the trace knows. Raises UsageError where the file makes no sense, or where `said` contradicts
    it.
    """
    facts, _, warnings = read(document, walk)
    fields = finish(facts, warnings)
    own = fields["method"]
    wanted = said.get("method")
    also = ALSO.get(own, QUANTIZED)
    if wanted not in (None, own, *also):
        words = ", ".join((own, *also))
        raise UsageError(
            f"method '{wanted}' contradicts the adapter file, a {facts['_type']}: leave --method "
            f"out, or choose among {words}"
        )
    _refuse_contradictions(fields, said)
    chosen = wanted or under.get("method")
    fields["method"] = chosen if chosen in also else own
    plain = PLAIN.get(own)
    if spec is not None and plain is not None and plain(document, spec):
        fields.pop("adapter")
    if spec is None or (fields["method"] != own and own not in ALSO):
        fields["adapter"] = dict(document)
    return fields


def _refuse_contradictions(fields: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    for name in SAID_BY_FILE:
        if said.get(name) is None:
            continue
        if name not in fields:
            raise UsageError(
                f"{name} stands beside an adapter file, which says what is adapted: leave {name} out, or "
                "--adapter"
            )
        if _comparable(said[name]) != _comparable(fields[name]):
            found = fields[name] if not isinstance(fields[name], tuple) else ",".join(fields[name])
            raise UsageError(
                f"{name} {shorten(str(said[name]))} contradicts the adapter file, which says "
                f"{shorten(str(found))}: leave one out"
            )


def _comparable(value: Any) -> Any:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    return frozenset(value) if isinstance(value, (list, tuple)) else value


def _plain_ia3(document: Mapping[str, Any], spec: ModelSpec) -> bool:
    """Whether an IA3 file names what PEFT targets by itself for the model, which is what the formula has a
    rule for.
    """
    targets = IA3_TARGETS.get(spec.model_type)
    if targets is None or document.get("exclude_modules") or document.get("modules_to_save"):
        return False

    def named(value: Any) -> set[str] | None:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            return None
        return {name if name in targets else name.rpartition(".")[2] for name in value}

    forward = {name for name in targets if name.rpartition(".")[2] in IA3_FEEDFORWARD}
    if document.get("target_modules") is None:
        return document.get("feedforward_modules") is None
    return (
        named(document["target_modules"]) == set(targets)
        and named(document.get("feedforward_modules")) == forward
    )


def _plain_prompts(document: Mapping[str, Any], spec: ModelSpec) -> bool:
    """Whether a prompt-tuning file is about one decoder and starts from no text, whose tokens a tokenizer
    would have to count.
    """
    return (
        type(document.get("num_virtual_tokens")) is int
        and document.get("num_transformer_submodules") in (None, 1)
        and str(document.get("prompt_tuning_init", "RANDOM")).upper() != "TEXT"
        and not document.get("modules_to_save")
    )


def _plain_prefix(document: Mapping[str, Any], spec: ModelSpec) -> bool:
    """Whether a prefix-tuning file has no projection, and the sizes that PEFT takes from the model itself and
    then writes down.
    """
    depth, heads, width = prefix_sizes(spec)
    sizes = {
        "num_layers": depth,
        "num_attention_heads": heads,
        "token_dim": width,
        "num_transformer_submodules": 1,
    }
    return (
        type(document.get("num_virtual_tokens")) is int
        and not document.get("prefix_projection")
        and not document.get("modules_to_save")
        and all(document.get(key) in (None, size) for key, size in sizes.items())
    )


PLAIN: dict[str, Callable[[Mapping[str, Any], ModelSpec], bool]] = {
    "ia3": _plain_ia3,
    "prompt-tuning": _plain_prompts,
    "prefix-tuning": _plain_prefix,
}
"""Methods whose files the formula has a rule for as long as they are plain."""
