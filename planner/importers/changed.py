"""What a training file changes of the model that it names: fields of its config.json, rows of its vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from memplan.planner.importers.resized import NEW_ROWS
from memplan.planner.importers.rules import SIDE, Facts, Imported, bad
from memplan.planner.importers.tasks import lacking
from memplan.planner.inputs.models import Model
from memplan.planner.inputs.names import LINEAR_EXPERTS
from memplan.planner.tables.peft_targets import ALL_LINEAR, LINEAR_MODULES

READ = frozenset(
    [
        "output_router_logits",
        "router_aux_loss_coef",
        "num_experts_per_tok",
        "num_hidden_layers",
        "sliding_window",
        "layer_types",
        "rope_scaling",
        "rope_theta",
        "rope_parameters",
        "max_position_embeddings",
        "tie_word_embeddings",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "initializer_range",
        "rms_norm_eps",
        "layer_norm_eps",
        "norm_eps",
    ]
)
"""Fields of a config.json that both engines follow, or that move no memory: with these the changed config is
planned. Others are named and not counted.
"""


def overrides(key: str, value: Any) -> dict[str, Any]:
    """Fields of a config.json. Raises UsageError for what is no mapping."""
    if not isinstance(value, Mapping):
        raise bad(key, value, "a mapping of the model's configuration fields")
    return {str(name): each for name, each in value.items()}


def new_tokens(key: str, value: Any) -> tuple[str, ...]:
    """Tokens that a tokenizer may lack. A mapping is what `special_tokens` is called today: none of them is
    new to its own tokenizer.
    """
    if isinstance(value, Mapping):
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise bad(key, value, "a list of tokens")
    return tuple(value)


def special_tokens(key: str, value: Any) -> tuple[str, ...]:
    """The tokens that a file gives a part to (end of text, padding, ...)."""
    named = value.values() if isinstance(value, Mapping) else ()
    each = (one for item in named for one in (item if isinstance(item, list) else [item]))
    return tuple(one for one in each if isinstance(one, str))


def settle_rows(facts: Facts) -> None:
    """How many tokens a tokenizer may lack: those of `tokens`, and then the special ones beside them. Special
    tokens alone are taken for the tokenizer's own.
    """
    if facts.get("_tokens"):
        facts["_new_tokens"] = len({*facts["_tokens"], *facts.get("_special_tokens", ())})
    if facts.get("_rows_32x"):
        facts["_row_multiple"] = 32


def settle_overrides(facts: Facts) -> None:
    """Leave of the changed fields those that are followed, and name the others."""
    said = facts.get("_config") or {}
    if others := sorted(set(said) - READ):
        why = f"a changed model: {', '.join(others)}"
        facts["_lacks"] = {**facts.get("_lacks", {}), **dict.fromkeys(OVERRIDES, why)}
    facts["_config"] = {name: each for name, each in said.items() if name in READ}
    if facts.get("_linear_experts"):
        facts["_config"][LINEAR_EXPERTS] = True


OVERRIDES = ("model_config", "overrides_of_model_config")
ROWS = ("tokens", "resize_token_embeddings_to_32x")


def applied(imported: Imported, model: Model, said: Collection[str] = ()) -> Model:
    """The model as the file changes it; `imported` gets the rows of its vocabulary, and says what was assumed
    of them. `said`: fields that somebody sets beside the file.
    """
    if imported.config:
        model = replace(model, config={**model.config, **imported.config}, _spec=[])
    everywhere = imported.linear_modules and imported.fields.get("targets") == (ALL_LINEAR,)
    if everywhere and _is_mixture(model.config):
        imported.fields["targets"] = (LINEAR_MODULES,)
    if (imported.new_tokens or imported.row_multiple > 1) and "vocabulary" not in {*imported.fields, *said}:
        _resize(imported, _vocabulary(model.config))
    return model


def _is_mixture(config: Mapping[str, Any]) -> bool:
    parts = (config, config.get("text_config"))
    return any(isinstance(part, Mapping) and any(part.get(key) for key in EXPERTS) for part in parts)


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    found = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, Mapping) else None)
    return found if type(found) is int and found > 0 else None


def _resize(imported: Imported, rows: int | None) -> None:
    """As axolotl 0.19 does (loaders/model.py _resize_token_embeddings): to as many rows as the tokenizer has
    tokens, in steps of the multiple, and never to fewer than there are. A tokenizer has at most as many
    tokens as its model has rows, so that with no new token and rows in such steps nothing is resized.
    """
    if rows is not None:
        grown = imported.row_multiple * -(-(rows + imported.new_tokens) // imported.row_multiple)
        if grown == rows:
            return
        if imported.fields.get("parallel") not in ("fsdp", "zero3"):
            imported.fields["vocabulary"] = grown
            imported.warnings.append(
                f"{grown - rows:,} rows are added to the vocabulary's {rows:,}, which is as many as new tokens "
                f"can need: --set vocabulary=N counts N{SIDE['high']}"
            )
            return
    imported.keys[:] = lacking(imported.keys, dict.fromkeys(ROWS, NEW_ROWS))
