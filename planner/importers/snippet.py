"""Python that somebody wrote or pasted: the calls that move memory, read from its syntax tree. Nothing is
imported and nothing runs.

Understands BitsAndBytesConfig, LoraConfig and its kin, from_pretrained and get_peft_model, prepare_model_for_
kbit_training, TrainingArguments, SFTConfig and the trainers, gradient_checkpointing_enable and torch or
bitsandbytes optimizers. What an argument's value is, `values.py` says; texts and notebooks are taken apart by
`pieces.py`, and the piece with the most such calls is the one that counts.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from memplan.planner.importers import hf, unsloth
from memplan.planner.importers.pieces import take_apart
from memplan.planner.importers.resized import resized
from memplan.planner.importers.rules import Facts, Imported, KeyReport, Rule, find_rule, walk
from memplan.planner.importers.snippet_models import RANKING, companions, ranking, settle_embedding
from memplan.planner.importers.snippet_rules import (
    ADAPTER,
    ARGUMENTS,
    OPTIMIZERS,
    PREFERENCES,
    PRETRAINED,
    QUANTIZATION,
    TRAINERS,
)
from memplan.planner.importers.snippet_stacks import OWN_LOOP, TRAINER, TRL, Stack, method_fields
from memplan.planner.importers.tasks import CLASSES, rules_of, settle_head, trainer_task
from memplan.planner.importers.values import ASKED_OF_THE_GPU, UNKNOWN, Values, collect
from memplan.planner.tables.errors import UsageError, shorten


@dataclass(slots=True)
class Code:
    """What one piece of code says: facts so far, reports, and whose trainer it uses."""

    stack: Stack = OWN_LOOP
    facts: Facts = field(default_factory=dict)
    keys: list[KeyReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    values: Values = field(default_factory=Values)
    calls: int = 0
    model_from: str = ""  # the expression that names the model, where its value is not in the code


def read_snippet(source: str, name: str, given: Mapping[str, Any] | None = None) -> Imported:
    """The setup that a piece of Python (or text with fenced Python) describes; `given` are the words of the
    launch line that starts it. UsageError where no call in it says anything.
    """
    pieces = take_apart(source, name)
    best = _best(pieces.trees, given)
    if best is None or not best.calls:
        raise UsageError(
            f"'{shorten(name)}' has no call that memplan knows: expected from_pretrained, "
            "BitsAndBytesConfig, LoraConfig, "
            "TrainingArguments, SFTConfig, ..."
        )
    best.warnings += pieces.skipped
    imported = _finish(best, name)
    asks = best.facts.get("_unsloth") or any(word in source for word in ASKED_OF_THE_GPU)
    if asks and (other := _best(pieces.trees, given, bfloat16=False)) is not None:
        imported.before_ampere = _finish(other, name).fields
    return imported


def _best(trees: list[ast.Module], given: Mapping[str, Any] | None, bfloat16: bool = True) -> Code | None:
    """The piece with the most calls, on a GPU with bfloat16 or without."""
    return max((_read(tree, given, bfloat16) for tree in trees), key=lambda code: code.calls, default=None)


def _read(tree: ast.Module, given: Mapping[str, Any] | None, bfloat16: bool) -> Code:
    code = Code(values=collect(tree, given, bfloat16))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if called.endswith("Loss") and called not in RANKING:
            code.facts["_other_loss"] = True
        reader = READERS.get(called)
        if reader is not None and reader(call, code, called):
            code.calls += 1
    return code


def _arguments(
    call: ast.Call, code: Code, called: str, rules: Mapping[str, Rule] | None = None
) -> dict[str, Any]:
    """Keyword arguments that can be read; the others get a warning, unless `rules` know that they move no
    memory.
    """
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        value = code.values.of(keyword.value)
        if keyword.arg is None and isinstance(value, dict):
            found |= {str(key): item for key, item in value.items()}
            continue
        value = UNKNOWN if keyword.arg is None else value
        rule = find_rule(rules or {}, str(keyword.arg))
        if value is UNKNOWN and rule is not None and rule.status == "ignored":
            code.keys.append(KeyReport(f"{called}.{keyword.arg}", "ignored", rule.why))
        elif value is UNKNOWN:
            code.keys.append(KeyReport(f"{called}({keyword.arg or '**'})", "unknown", "not a literal"))
            code.warnings.append(
                f"{called}({keyword.arg or '**'}) is {_shown(keyword.value)}, not a literal: its default is "
                "assumed"
            )
        else:
            found[str(keyword.arg)] = value
    return found


def _shown(node: ast.expr) -> str:
    try:
        return shorten(ast.unparse(node), 40)
    except (RecursionError, ValueError):
        return "an expression"


def _take(rules: dict[str, Rule], call: ast.Call, code: Code, called: str) -> bool:
    return _walk(rules, _arguments(call, code, called, rules), code, f"{called}.")


def _walk(rules: dict[str, Rule], arguments: dict[str, Any], code: Code, prefix: str) -> bool:
    facts, keys, warnings = walk(rules, arguments, prefix)
    code.facts |= facts
    code.keys += keys
    code.warnings += warnings
    return True


def _from_pretrained(call: ast.Call, code: Code, called: str) -> bool:
    owner_name = _owner(call)
    if "Model" not in owner_name or "Peft" in owner_name:
        return False
    if owner_name in unsloth.MODELS:
        code.facts["_unsloth"] = True
    named = [
        keyword.value
        for keyword in call.keywords
        if keyword.arg in ("pretrained_model_name_or_path", "model_name")
    ]
    _model(next(iter([*call.args, *named]), None), code, "from_pretrained(model)")
    task = next((task for word, task in CLASSES.items() if word in owner_name), None)
    if task is not None:
        code.facts.setdefault("task", task)
    elif "Classification" in owner_name:
        code.warnings.append(
            f"{owner_name}: a head for each token is not modeled: the logits of the whole vocabulary are "
            "counted, so the prediction is on the high side"
        )
    return _take(PRETRAINED, call, code, "from_pretrained")


def _model(node: ast.expr | None, code: Code, key: str) -> None:
    """The model that an argument names; where only a launch line would say it, which expression it is."""
    model = code.values.of(node)
    if isinstance(model, str):
        code.facts.setdefault("_model", model)
        code.keys.append(KeyReport(key, "used", "the model"))
    elif node is not None and not code.model_from:
        code.model_from = _shown(node)


def _get_peft_model(call: ast.Call, code: Code, called: str) -> bool:
    """Unsloth's FastLanguageModel.get_peft_model takes the words of a LoraConfig; PEFT's own takes one."""
    own = _owner(call) in unsloth.MODELS
    if not (own or call.keywords and isinstance(call.func, ast.Attribute) and _owner(call) != "peft"):
        return False
    facts = _arguments(call, code, called, ADAPTER)
    checkpointing = facts.pop("use_gradient_checkpointing", None)
    if checkpointing is not None:
        code.facts["_checkpointing"] = bool(checkpointing)
    code.facts["_peft"] = True
    return _walk(ADAPTER, facts, code, f"{called}.")


def _owner(call: ast.Call) -> str:
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return str(getattr(owner, "id", getattr(owner, "attr", "")))


def _adapter(call: ast.Call, code: Code, called: str) -> bool:
    if called == "AdaLoraConfig":
        code.facts["_type"] = "ADALORA"
    code.facts["_peft"] = True
    return _take(ADAPTER, call, code, called)


def _sentences(call: ast.Call, code: Code, called: str) -> bool:
    code.facts["task"] = "embed"
    _model(next(iter(call.args), None), code, f"{called}(model)")
    loaded = _arguments(call, code, called, PRETRAINED).get("model_kwargs") or {}
    return _walk(PRETRAINED, loaded, code, f"{called}(model_kwargs).")


def _ranking(call: ast.Call, code: Code, called: str) -> bool:
    code.facts |= ranking(called, _arguments(call, code, called))
    return True


def _sets(**facts: Any) -> Callable[[ast.Call, Code, str], bool]:
    def reader(call: ast.Call, code: Code, called: str) -> bool:
        code.facts |= facts
        code.keys.append(KeyReport(f"{called}()", "used"))
        return True

    return reader


def _kbit(call: ast.Call, code: Code, called: str) -> bool:
    arguments = _arguments(call, code, called)
    code.facts["_kbit"] = True
    if arguments.get("use_gradient_checkpointing", True):
        key = "gradient_checkpointing_kwargs"
        kwargs = hf.keyword_arguments(f"{called}({key})", arguments.get(key) or {})
        code.facts.setdefault(
            "_kbit_checkpointing", "reentrant" if kwargs.get("use_reentrant", True) else "non_reentrant"
        )
    code.keys.append(KeyReport(f"{called}()", "used", "fp32 norms, embeddings and head; checkpointing"))
    return True


def _enable(call: ast.Call, code: Code, called: str) -> bool:
    code.facts["_checkpointing"] = True
    key = f"{called.removesuffix('_enable')}_kwargs"
    kwargs = _arguments(call, code, called).get(key)
    if kwargs:
        code.facts["_checkpointing_kwargs"] = hf.keyword_arguments(f"{called}({key})", kwargs)
    code.keys.append(KeyReport(f"{called}()", "used"))
    return True


def _stack(code: Code, is_trl: bool) -> None:
    """TRL trains where one of its classes is called, else transformers' Trainer where one of its is."""
    if is_trl:
        code.stack = TRL
    elif code.stack is OWN_LOOP:
        code.stack = TRAINER


def _training(call: ast.Call, code: Code, called: str) -> bool:
    _stack(code, called.startswith(PREFERENCES))
    _task(code, called)
    return _take(rules_of(code.facts.get("task"), code.stack.rules), call, code, called)


def _trainer(call: ast.Call, code: Code, called: str) -> bool:
    """Which stack trains, and the model where a trainer is given its name: SFTTrainer(model="...")."""
    _stack(code, called not in TRAINERS)
    _task(code, called)
    facts, keys, warnings = companions(call, called, code.facts.get("task"), code.values)
    code.facts |= facts
    code.keys += keys
    code.warnings += warnings
    named = [keyword.value for keyword in call.keywords if keyword.arg == "model"]
    first = next(iter([*named, *call.args]), None)
    if isinstance(code.values.of(first), str):
        _model(first, code, f"{called}(model)")
        return True
    return False  # its other arguments are made elsewhere


def _task(code: Code, called: str) -> None:
    """Which task a class of TRL's trains; what is none of the table's needs at least a supervised step."""
    task = trainer_task(called)
    if task is not None:
        code.facts["task"] = task
    elif called not in (*TRAINERS, *ARGUMENTS):
        _beside(code, called)


def _beside(code: Code, called: str) -> None:
    said = (
        f"{called}: the models, the rows and the loss beside the trained one's are not modeled: it needs at "
        "least this"
    )
    if not any("models, the rows and the loss beside" in warning for warning in code.warnings):
        code.warnings.append(said)


def _optimizer(call: ast.Call, code: Code, called: str) -> bool:
    name = OPTIMIZERS[called]
    fused = any(k.arg == "fused" and code.values.of(k.value) is True for k in call.keywords)
    code.facts["optimizer"] = "adamw_torch_fused" if fused and name == "adamw_torch" else name
    code.keys.append(KeyReport(f"{called}()", "used"))
    return True


READERS: dict[str, Callable[[ast.Call, Code, str], bool]] = {
    "from_pretrained": _from_pretrained,
    "BitsAndBytesConfig": lambda call, code, called: _take(QUANTIZATION, call, code, called),
    **dict.fromkeys(("LoraConfig", "AdaLoraConfig"), _adapter),
    "prepare_model_for_kbit_training": _kbit,
    **dict.fromkeys(("gradient_checkpointing_enable", "activation_checkpointing_enable"), _enable),
    **dict.fromkeys(
        (
            *ARGUMENTS,
            *(f"{word}Config" for word in PREFERENCES),
        ),
        _training,
    ),
    **dict.fromkeys((*TRAINERS, *(f"{word}Trainer" for word in PREFERENCES)), _trainer),
    "get_peft_model": _get_peft_model,
    "SentenceTransformer": _sentences,
    **dict.fromkeys(RANKING, _ranking),
    **dict.fromkeys(OPTIMIZERS, _optimizer),
    "resize_token_embeddings": resized,
    "half": _sets(weight_dtype="float16"),
}


def _finish(code: Code, name: str) -> Imported:
    facts = code.facts
    settle_head(facts)
    settle_embedding(facts, code.keys, code.warnings, code.values)
    own = facts.get("_unsloth", False)
    if own:
        whole = any(report.key.endswith("full_finetuning") for report in code.keys)
        unsloth.script_facts(facts, whole)
    four_bit, kbit = facts.get("_four_bit"), facts.get("_kbit", False)
    fields = code.stack.finish(facts, code.warnings)
    fields.update(method_fields(facts, bool(four_bit)))
    if fields["method"] != "full" and "targets" not in fields:
        fields["targets"] = ("peft-default",)
    if four_bit:  # what the snippet leaves out is the library's bare default, not the recipe's
        bare = {
            "quant_type": "fp4",
            "double_quant": False,
            "compute_dtype": "float32",
            "quant_storage": "uint8",
        }
        fields = {**bare, **fields, "kbit_prepare": kbit}
    if kbit and "checkpointing" not in facts:
        fields["checkpointing"] = facts.get("_kbit_checkpointing", "none")
    elif "_checkpointing" not in facts and code.stack is OWN_LOOP:
        fields["checkpointing"] = "none"
    said = {"_length": "sequence_length", "_vocabulary": "vocabulary"}
    fields |= {name: facts[fact] for fact, name in said.items() if fact in facts}
    if own:
        fields = unsloth.script_fields(facts, fields, code.values.bfloat16, code.warnings)
    known, kernel = facts.get("_model"), facts.get("_named_attention", "")
    unsaid = code.model_from and not known
    notes = [f"the model is {code.model_from}, which only its caller says"] if unsaid else []
    return Imported("python", name, known, fields, code.keys, code.warnings, notes, [], kernel)
