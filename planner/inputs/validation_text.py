"""What a Setup field takes, in words: read from the field's own JSON schema where that says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.tables.fused_kernels import FUSED_KERNELS
from memplan.planner.tables.mixer_kernels import MIXER_KERNELS

OPTION = {"micro_batch": "--batch", "sequence_length": "--seq", "weight_dtype": "--dtype"}
"""Fields whose option has another name: an error names both, since the person typed the option."""

WORDS = {
    "targets": "module names such as q_proj,v_proj, or all-linear or attention",
    "images": "pictures of one example as N@WxH, such as 1@1024x768, videos as N@WxHxFRAMES, usual or none",
    "video_fps": "a number above 0, at most 1,000",
    "fused_kernels": f"names of kernels, of {', '.join(FUSED_KERNELS)}",
    "mixer_kernels": f"names of packages, of {', '.join(MIXER_KERNELS)}",
    "modules_to_save": "module names such as lm_head",
    "optim_targets": "parts of layers' names such as attn,mlp, or all-linear",
    "target_parameters": "parameter names such as mlp.experts.gate_up_proj",
    "trained_parameters": "patterns of parameter names, such as layers.1[0-9].mlp",
    "layers_to_transform": "numbers of layers from 0, such as 0,1,2 or 8-15",
    "alpha": "a number above 0",
    "dropout": "a number from 0 to less than 1",
}
"""Fields of which the schema says too little: names, and unions whose bounds pydantic leaves outside."""

KINDS = {"boolean": "true or false", "string": "a name", "object": "a mapping of keys and values"}


def refusal(field: str, schema: Mapping[str, Any], shown: str, key: str = "") -> str:
    """'micro_batch (--batch) is 0: expected a whole number from 1 to 10,000,000'; `schema` is the field's
    JSON schema, `key` what a file calls the field.
    """
    option = f" ({OPTION[field]})" if field in OPTION else ""
    return f"{key or field + option} is {shown}: expected {WORDS.get(field) or in_words(schema)}"


def in_words(schema: Mapping[str, Any]) -> str:
    """A JSON schema's legal values."""
    entry = next(entry for entry in schema.get("anyOf", (schema,)) if entry.get("type") != "null")
    if "enum" in entry:
        *most, last = (str(value) for value in entry["enum"])
        return f"{', '.join(most)} or {last}"
    if entry["type"] == "integer":
        return f"a whole number from {entry['minimum']:,} to {entry['maximum']:,}"
    return KINDS[entry["type"]]
