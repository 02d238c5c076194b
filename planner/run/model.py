"""A config.json becomes the real transformers class on the meta device: names, shapes and dtypes, no
bytes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from memplan.planner.inputs.names import LINEAR_EXPERTS
from memplan.planner.inputs.picture_sizes import has_tower
from memplan.planner.run.extras import require
from memplan.planner.tables.errors import UsageError, nearest, shorten, shown
from memplan.planner.tables.heads import NEW_HEADS
from memplan.planner.tables.sdp import refuses_flash2

require()

import torch  # noqa: E402
from torch import nn  # noqa: E402

from memplan.planner.run.linear_experts import linearize  # noqa: E402

# Keys that say how a checkpoint was stored or which foreign code to run, not what the model is. `auto_map`
# would run a repository's code.
NOT_ARCHITECTURE = (
    "auto_map",
    "quantization_config",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "architectures",
    "_name_or_path",
    "_attn_implementation",
)

# torchao, where it is installed: transformers imports it, and it tells of kernels that it cannot load.
_LOGGERS = ("transformers", "bitsandbytes", "peft", "accelerate", "torchao", "torch.utils._pytree")


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries' warnings are about training quality and kernels; none is about memory."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def reason(error: BaseException) -> str:
    """A library's exception as one readable line."""
    if isinstance(error, NotImplementedError) and "data-independent" in str(
        error
    ):  # torch 2.13 _meta_registrations.py
        return "its shapes depend on the values of tensors, which meta tensors do not have (nonzero)"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or isinstance(error, KeyError):  # whose text is the key alone
        lines = [type(error).__name__, *lines]
    return shorten(" ".join(lines), 300)


def place(error: BaseException, model: nn.Module) -> str:
    """ " in PATH (its class)" of the innermost module whose code raised, "" where none did."""
    paths = {id(module): path for path, module in model.named_modules() if path}
    innermost = ""
    step = error.__traceback__
    while step is not None:
        module = step.tb_frame.f_locals.get("self")
        if id(module) in paths:
            innermost = (
                f" in {paths[id(module)]} ({type(module).__module__.partition('.')[0]}'s "
                f"{type(module).__name__})"
            )
        step = step.tb_next
    return innermost


def read_config(config: Mapping[str, Any]) -> Any:
    """The transformers configuration object. UsageError for a model_type it does not know or values it
    rejects.
    """
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        close = nearest(str(model_type), list(CONFIG_MAPPING.keys()))
        hint = f"did you mean {' or '.join(close)}?" if close else "a repository's own code is never run"
        raise UsageError(f"transformers knows no model_type {shorten(repr(model_type))}: {hint}")
    fields = {
        key: value for key, value in config.items() if key not in NOT_ARCHITECTURE and key != "model_type"
    }
    try:
        with quiet():
            made = CONFIG_MAPPING[model_type](**fields)
    except Exception as error:
        found = reason(error) + odd_values(config)
        raise UsageError(f"transformers rejects this {model_type} config: {found}") from None
    made.use_cache = False
    for part in sub_configs(made):
        part.use_cache = False
    return made


def odd_values(config: Mapping[str, Any]) -> str:
    """What of a config that a library failed on is of another kind than the class's own default: " (KEY is
    VALUE, by default OTHER)" of the first such key, "" where there is none.
    """
    from transformers import CONFIG_MAPPING

    with quiet():
        usual = CONFIG_MAPPING[config["model_type"]]().to_dict()
    for key, value in config.items():
        known = [part[key] for part in (usual, *usual.values()) if isinstance(part, dict) and key in part]
        if key not in NOT_ARCHITECTURE and any(_kind(value) != _kind(other) for other in known if other):
            return f" ({shorten(key)} is {shown(value)}, by default {shown(known[0])})"
    return ""


def _kind(value: Any) -> type:
    """What a key takes: any number, of any sign, is as good as another."""
    return float if type(value) is int else type(value)


def sub_configs(config: Any) -> list[Any]:
    """The configurations nested in one (a vision-language model's text part)."""
    return [
        part
        for name in getattr(config, "sub_configs", {})
        if (part := getattr(config, name, None)) is not None
    ]


_CAUSAL = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
)
_WITH_TOWER = ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "MODEL_FOR_MULTIMODAL_LM_MAPPING")
_MASKED = ("MODEL_FOR_MASKED_LM_MAPPING",)
_SPEECH = ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",)
_SEQ2SEQ = ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", *_SPEECH)


def model_class(config: Any) -> Any:
    """The transformers class that trains on text: of a config with a vision or audio part the class that has
    it, used without where the batch has none; else the causal language model; an encoder-decoder's own (T5),
    an encoder's masked language model (BERT).
    """
    for tables in (
        _SEQ2SEQ if getattr(config, "is_encoder_decoder", False) else (),
        _MASKED if is_encoder(config) else (),
        _WITH_TOWER if has_tower(config.to_dict()) else (),
        _CAUSAL,
    ):
        found = listed(tables, config)
        if found is not None:
            return found
    raise UsageError(
        f"transformers has no causal language model for model_type '{config.model_type}': memplan trains on "
        "next-token loss"
    )


def lacks_flash(config: Mapping[str, Any]) -> str:
    """Why flash attention runs no model of a config, "" where it does: transformers refuses its class or that
    of a part (5.24 modeling_utils.py _flash_attn_can_dispatch), or flash-attn a head size. UsageError where
    there is no class.
    """
    with quiet():
        made = read_config(config)
        parts = made.sub_configs if has_tower(made.to_dict()) else ()
        inner = (listed(("MODEL_MAPPING",), getattr(made, part, None)) for part in parts)
        classes = (model_class(made), *filter(None, inner))
        text = made.get_text_config().to_dict()
    for cls in classes:
        if not (cls._supports_flash_attn or getattr(cls, "_supports_flash_attn_2", False)):
            return f"transformers has none for {cls.__name__}"
    each = (text, *(text.get("per_layer_config") or {}).values())  # Gemma 4: some layers' heads are wider
    size = max(layer.get("head_dim") or 0 for layer in each)
    return f"heads of size {size}" if refuses_flash2((8, 0), "bfloat16", size) else ""


def is_encoder(config: Any) -> bool:
    """Whether a configuration is of a model that sees both sides of a token (BERT)."""
    return not getattr(config, "is_decoder", False) and listed(_MASKED, config) is not None


def listed(tables: tuple[str, ...], config: Any) -> Any | None:
    """The class for a configuration in the first of transformers' tables that has one."""
    from transformers.models.auto import modeling_auto

    for table in tables:
        mapping = getattr(modeling_auto, table, None)
        if mapping is not None and type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, (list, tuple)) else found
    return None


def headed_class(config: Any, head: str) -> Any:
    """The transformers class with another head than the vocabulary, or with none. UsageError where there is
    none.
    """
    new = NEW_HEADS.get(head)
    found = listed((new.classes if new else "MODEL_MAPPING",), config)
    if found is None:
        raise UsageError(
            f"transformers has no {new.what if new else 'base'} class for model_type '{config.model_type}': "
            "use another model, or --task sft"
        )
    return found


_ENDINGS = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}


def task_type(model: Any) -> str | None:
    """What peft calls the model's task (0.21 utils/peft_types.py TaskType); None for an encoder, whose logits
    have no type of their own, and for a speech model, which is not called with tokens.
    """
    for ending, kind in _ENDINGS.items():
        if type(model).__name__.endswith(ending):
            return kind
    if getattr(model.config, "is_encoder_decoder", False):
        # peft 0.21 peft_model.py PeftModelForSeq2SeqLM passes input_ids, which a speech model does not take
        return "SEQ_2_SEQ_LM" if model.main_input_name == "input_ids" else None
    return "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None


def skeleton(
    config: Mapping[str, Any], dtype: str, attention: str, head: str = "vocabulary", outputs: int = 0
) -> nn.Module:
    """The model of a config, every tensor on meta. UsageError with the library's reason where it cannot be
    built. `head`: what it ends in (planner/tables/tasks.py Head), `outputs`: those of a new one.

    A class without SDPA attention is built with its own eager one, which is what transformers does when
    nobody names one.
    """
    from transformers.initialization import no_init_weights

    made = read_config(config)
    if head in NEW_HEADS:
        _classifies(made, outputs)
    cls = model_class(made) if head == "vocabulary" else headed_class(made, head)
    if cls.config_class is type(made).sub_configs.get(
        "text_config"
    ):  # as transformers 5.23 auto_factory.py from_config does
        made = made.get_text_config()
    if attention == "sdpa" and not getattr(cls, "_supports_sdpa", True):
        attention = "eager"
    try:
        with torch.device("meta"), no_init_weights():
            model = cls._from_config(made, dtype=getattr(torch, dtype), attn_implementation=attention)
            _all_on_meta(model)
            model.tie_weights()
            if config.get(LINEAR_EXPERTS):
                linearize(model)
    except UsageError:
        raise
    except Exception as error:
        found = reason(error) + odd_values(config)
        raise UsageError(f"transformers cannot build {cls.__name__} from this config: {found}") from None
    assert isinstance(model, nn.Module)
    for index, layer in enumerate(layers_of(model)):
        layer.memplan_index = index
    return model


def _classifies(config: Any, outputs: int) -> None:
    """What a script tells a classifier's config: how many labels, and which id is padding, without which it
    takes one row at a time.
    """
    config.num_labels = outputs
    text = config.get_text_config()
    text.num_labels = outputs
    if getattr(text, "pad_token_id", None) is None:
        text.pad_token_id = 0


def _all_on_meta(model: nn.Module) -> None:
    """Some constructors make a tensor where `torch.device` does not reach (DiffLlama's lambdas, by
    torch.normal): loading places it too.
    """
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                module._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
                )
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device="meta")


def layer_list(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The decoder layers: the ModuleList that holds the most parameters, with its path; None where there is
    none. Layers that were numbered before (`skeleton`) stay it when they are cut to fewer than a tower has.
    """
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            if hasattr(module[0], "memplan_index"):
                return name, module
            size = sum(p.numel() for p in module.parameters())
            if best is None or size > best[0]:
                best = (size, name, module)
    return None if best is None else (best[1], best[2])


def layers_of(model: nn.Module) -> list[Any]:
    """The decoder layers, empty where there is no list of them."""
    found = layer_list(model)
    return list(found[1]) if found else []


def layer_place(layer: Any) -> int:
    """A layer's index in the full model, which a model cut to a few layers remembers."""
    return int(layer.memplan_index)


def layer_prefix(model: nn.Module) -> str | None:
    """The dotted path of the decoder layers with its final dot; None where there is no list of them."""
    found = layer_list(model)
    return found[0] + "." if found else None


def layer_number(prefix: str | None, path: str) -> int | None:
    """Which decoder layer a dotted path lies in, given `layer_prefix`; None outside them."""
    if prefix is None or not path.startswith(prefix):
        return None
    return int(path[len(prefix) :].split(".", 1)[0])
