"""The peft configuration that a setup means: of its adapter_config.json, or of its method."""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.model import layers_of, reason, task_type
from memplan.planner.run.towers import frozen_modules
from memplan.planner.tables.errors import UsageError, shown, unknown
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.peft_targets import IA3_FEEDFORWARD, IA3_TARGETS, LINEAR_MODULES

_PROMPTS = {
    "PREFIX_TUNING": "PrefixTuningConfig",
    "PROMPT_TUNING": "PromptTuningConfig",
    "P_TUNING": "PromptEncoderConfig",
}
_ATTENTION_PART = re.compile(r"(^|\.)(self_attn|self_attention|attention|attn|cross_attn)(\.|$)")


def peft_config(model: nn.Module, setup: Setup) -> Any:
    """The peft configuration of a setup: of its adapter_config.json where there is one, else of its
    method.
    """
    import peft

    if setup.adapter is not None:
        return _read_adapter(setup.adapter, task_type(model))
    common: dict[str, Any] = {"task_type": task_type(model)}
    peft_type = METHODS[setup.method].peft_type
    if peft_type in _PROMPTS:
        return getattr(peft, _PROMPTS[peft_type])(num_virtual_tokens=setup.virtual_tokens, **common)
    common.update(
        target_modules=_targets(model, setup.targets),
        modules_to_save=list(setup.modules_to_save) or None,
    )
    if setup.layers_to_transform:
        common["layers_to_transform"] = _layers(model, setup.layers_to_transform)
        if common["target_modules"] == "all-linear":  # PEFT has no numbers of layers beside that word
            common["target_modules"] = _linear_names(model)
    if peft_type == "VERA":
        return peft.VeraConfig(r=setup.rank, vera_dropout=float(setup.dropout), **common)
    common["exclude_modules"] = frozen_modules(model, setup)
    if peft_type == "OFT":
        return peft.OFTConfig(**common)
    if peft_type == "IA3":
        return peft.IA3Config(feedforward_modules=_feedforward(model, common["target_modules"]), **common)
    common.update(
        lora_alpha=setup.alpha,
        lora_dropout=float(setup.dropout),
    )
    if peft_type == "ADALORA":
        return peft.AdaLoraConfig(
            init_r=setup.init_rank,
            target_r=setup.target_rank,
            total_step=1000,
            tinit=1,
            tfinal=500,
            deltaT=1,
            **common,
        )
    return peft.LoraConfig(
        r=setup.rank,
        use_dora=setup.method == "dora",
        use_rslora=setup.method == "rslora",
        inference_mode=bool(setup.adapters),
        target_parameters=_parameters(model, setup.target_parameters),
        **common,
    )


def _parameters(model: nn.Module, chosen: tuple[str, ...]) -> list[str] | None:
    """The parameters that are adapted as they are. UsageError for a name that no parameter ends with: PEFT
    adapts the others and warns. A quantized one is known to PEFT by its whole name alone, to which axolotl
    completes it (peft 0.21 tuners/tuners_utils.py _inject_parameters, axolotl 0.19 monkeypatch/moe_quant.py).
    """
    plain = [name for name, _ in model.named_parameters()]
    held = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name in getattr(module, "parametrizations", ())
    ]
    found: list[str] = []
    for wanted in chosen:
        whole = [name for name in held if f".{name}".endswith(f".{wanted}")]
        if not whole and not any(f".{name}".endswith(f".{wanted}") for name in plain):
            known = f"no parameter of {type(model).__name__} is called {shown(wanted)}"
            raise UsageError(f"target_parameters: {known}")
        found += whole or [wanted]
    return found or None


def _read_adapter(document: dict[str, Any], kind_of_task: str | None) -> Any:
    """A parsed adapter_config.json as its peft configuration class; keys that the class does not know are
    dropped. A classifier's model needs its own task type.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = str(document.get("peft_type", "")).upper()
    known = {getattr(key, "value", str(key)): cls for key, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        raise unknown("peft_type in adapter_config.json", kind.lower(), [name.lower() for name in known])
    accepted = inspect.signature(known[kind].__init__).parameters
    aside = ("peft_type", "inference_mode", "base_model_name_or_path")
    fields = {key: value for key, value in document.items() if key in accepted and key not in aside}
    fields.setdefault("task_type", "CAUSAL_LM")
    if kind_of_task in ("SEQ_CLS", "TOKEN_CLS"):
        fields["task_type"] = kind_of_task
    try:
        return known[kind](**fields)
    except Exception as error:
        raise UsageError(f"peft rejects this {kind} adapter_config.json: {reason(error)}") from None


def _linear_names(model: Any) -> list[str]:
    """The last names of all linear layers but the output projection."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if module is not head and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        }
    )


def _layers(model: nn.Module, chosen: tuple[int, ...]) -> list[int]:
    """The layers that have an adapter. UsageError for one that the model has not."""
    count = len(layers_of(model))
    if count and max(chosen) >= count:
        raise UsageError(
            f"layers_to_transform {max(chosen)}: {type(model).__name__} has layers 0 to {count - 1}"
        )
    return list(chosen)


def _targets(model: nn.Module, targets: tuple[str, ...]) -> str | list[str] | None:
    if targets == ("all-linear",):
        return "all-linear"
    if targets == (LINEAR_MODULES,):
        return _linear_names(model)
    if targets == ("peft-default",):
        return None
    if targets == ("attention",):
        names = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if _ATTENTION_PART.search(name)
            and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        }
        if not names:
            raise UsageError(
                f"targets 'attention' matches no linear layer of {type(model).__name__}: name the modules"
            )
        return sorted(names)
    return list(targets)


def _feedforward(model: Any, targets: str | list[str] | None) -> list[str] | None:
    """IA3's feed-forward layers: None where PEFT has its own for the model type, whose targets or others are
    asked for; it fails without any.
    """
    if targets is None or model.config.model_type in IA3_TARGETS:
        return None
    return [name for name in IA3_FEEDFORWARD if targets == "all-linear" or name in targets]
