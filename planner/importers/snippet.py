"""Python that somebody wrote or pasted: the calls that move memory, read from its syntax tree. Nothing is
imported and nothing runs.

Understands BitsAndBytesConfig, LoraConfig and its kin, from_pretrained, prepare_model_for_kbit_training,
TrainingArguments and SFTConfig, gradient_checkpointing_enable and torch or bitsandbytes optimizers. Arguments
must be literals, torch dtypes or names assigned once to such. Markdown, notebooks and prose are read through
their fenced or cell code; the snippet with the most such calls is the one that counts.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from memplan.planner.importers import hf, trl
from memplan.planner.importers.rules import (
    Facts,
    Imported,
    KeyReport,
    Rule,
    find_rule,
    integer,
    setup_fields,
    walk,
)
from memplan.planner.importers.snippet_rules import ADAPTER, PRETRAINED, QUANTISATION
from memplan.planner.tables.errors import UsageError, shorten

FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python|py|python3|\{\.python\})[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL
)
UNKNOWN = object()  # an argument that is neither a literal nor a name assigned once to one
MOST_SOURCE = 10**6


@dataclass(frozen=True, slots=True)
class Stack:
    """Who trains: the table of its arguments, and what turns facts into Setup fields."""

    rules: dict[str, Rule]
    finish: Callable[[Facts, list[str]], dict[str, Any]]


def _trl(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    facts["_peft"] = facts.get("_peft", False)
    return trl.finish(facts, warnings)


def _trainers(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    hf.settle(facts, warnings, checkpointing=None if facts.get("_kbit", False) else False)
    return {**setup_fields(facts), "recipe": "hf"}


def _plain(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    hf.settle_checkpointing(facts, warnings, None, reentrant=False)
    fields = {**setup_fields(facts), "recipe": "raw"}
    return fields if "_checkpointing" in facts else {**fields, "checkpointing": "none"}


TRL, TRAINER, PLAIN = Stack(trl.RULES, _trl), Stack(hf.RULES, _trainers), Stack(hf.RULES, _plain)


@dataclass(slots=True)
class Code:
    """What one piece of code says: facts so far, reports, and whose trainer it uses."""

    stack: Stack = PLAIN
    facts: Facts = field(default_factory=dict)
    keys: list[KeyReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    quantisation: dict[str, Any] = field(default_factory=dict)
    calls: int = 0


def read_snippet(source: str, name: str) -> Imported:
    """The setup that a piece of Python (or text with fenced Python) describes. UsageError where no call in it
    says anything.
    """
    if len(source) > MOST_SOURCE:
        raise UsageError(f"'{shorten(name)}' has more than {MOST_SOURCE:,} characters of code")
    found = [_read(tree, name) for tree in _trees(source, name)]
    best = max(found, key=lambda code: code.calls, default=None)
    if best is None or not best.calls:
        raise UsageError(
            f"'{shorten(name)}' has no call that memplan knows: expected from_pretrained, "
            "BitsAndBytesConfig, LoraConfig, "
            "TrainingArguments, SFTConfig, ..."
        )
    return _finish(best, name)


def _trees(source: str, name: str) -> Iterator[ast.Module]:
    pieces = [match.group(1) for match in FENCE.finditer(source)]
    if not pieces:
        pieces = _cells(source) if name.endswith(".ipynb") else [source]
    failed = None
    for piece in pieces:
        try:
            yield ast.parse(
                "\n".join(line for line in piece.splitlines() if not line.lstrip().startswith(("%", "!")))
            )
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            failed = getattr(error, "lineno", None)
            if len(pieces) == 1:
                raise UsageError(
                    f"'{shorten(name)}' is not Python that can be read"
                    + (f": line {failed}" if failed else "")
                ) from None


def _cells(source: str) -> list[str]:
    try:
        cells = json.loads(source).get("cells", [])
        code = ["".join(cell.get("source", [])) for cell in cells if cell.get("cell_type") == "code"]
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise UsageError("the notebook is not valid JSON with cells") from None
    return ["\n".join(code)]


def _read(tree: ast.Module, name: str) -> Code:
    code = Code()
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    for node in assigned:
        for target in node.targets:
            if isinstance(target, ast.Name):
                known = target.id in code.names
                code.names[target.id] = UNKNOWN if known else _literal(node.value, code)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        reader = READERS.get(called)
        if reader is not None and reader(call, code, called):
            code.calls += 1
    return code


def _literal(node: ast.expr, code: Code) -> Any:
    """The value of a literal, of a torch dtype, of an enum member (its name) or of a name assigned once to
    such; UNKNOWN otherwise.
    """
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"torch.{node.attr}" if node.value.id == "torch" else node.attr
    if isinstance(node, ast.Name):
        return code.names.get(node.id, UNKNOWN)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Add, ast.Sub)):
        left, right = _literal(node.left, code), _literal(node.right, code)
        if all(isinstance(side, (int, float)) and abs(side) < 10**9 for side in (left, right)):
            return {ast.Mult: left * right, ast.Add: left + right, ast.Sub: left - right}[type(node.op)]
    return UNKNOWN


def _arguments(
    call: ast.Call, code: Code, called: str, rules: Mapping[str, Rule] | None = None
) -> dict[str, Any]:
    """Keyword arguments that can be read; the others get a warning, unless `rules` know that they move no
    memory.
    """
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        value = UNKNOWN if keyword.arg is None else _literal(keyword.value, code)
        rule = find_rule(rules or {}, str(keyword.arg))
        if value is UNKNOWN and rule is not None and rule.status == "ignored":
            code.keys.append(KeyReport(f"{called}.{keyword.arg}", "ignored", rule.why))
        elif value is UNKNOWN:
            code.keys.append(KeyReport(f"{called}({keyword.arg or '**'})", "unknown", "not a literal"))
            code.warnings.append(f"{called}({keyword.arg or '**'}) is not a literal: its default is assumed")
        else:
            found[str(keyword.arg)] = value
    return found


def _take(rules: dict[str, Rule], call: ast.Call, code: Code, called: str) -> bool:
    facts, keys, warnings = walk(rules, _arguments(call, code, called, rules), f"{called}.")
    code.facts |= facts
    code.keys += keys
    code.warnings += warnings
    return True


def _from_pretrained(call: ast.Call, code: Code, called: str) -> bool:
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    owner_name = getattr(owner, "id", getattr(owner, "attr", ""))
    if "Model" not in owner_name or "Peft" in owner_name:
        return False
    named = [
        keyword.value
        for keyword in call.keywords
        if keyword.arg in ("pretrained_model_name_or_path", "model_name")
    ]
    first = next(iter([*call.args, *named]), None)
    model = UNKNOWN if first is None else _literal(first, code)
    if isinstance(model, str):
        code.facts.setdefault("_model", model)
        code.keys.append(KeyReport("from_pretrained(model)", "used", "the model"))
    return _take(PRETRAINED, call, code, "from_pretrained")


def _adapter(call: ast.Call, code: Code, called: str) -> bool:
    if called == "AdaLoraConfig":
        code.facts["_type"] = "ADALORA"
    code.facts["_peft"] = True
    return _take(ADAPTER, call, code, called)


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
        kwargs = arguments.get("gradient_checkpointing_kwargs") or {}
        code.facts.setdefault(
            "_kbit_checkpointing", "reentrant" if kwargs.get("use_reentrant", True) else "non_reentrant"
        )
    code.keys.append(KeyReport(f"{called}()", "used", "fp32 norms, embeddings and head; checkpointing"))
    return True


def _enable(call: ast.Call, code: Code, called: str) -> bool:
    code.facts["_checkpointing"] = True
    kwargs = _arguments(call, code, called).get(f"{called.removesuffix('_enable')}_kwargs")
    if kwargs:
        code.facts["_checkpointing_kwargs"] = kwargs
    code.keys.append(KeyReport(f"{called}()", "used"))
    return True


def _training(call: ast.Call, code: Code, called: str) -> bool:
    if called.startswith(("SFT", "DPO", "KTO", "GRPO", "ORPO")):
        code.stack = TRL
    elif code.stack is PLAIN:
        code.stack = TRAINER
    if called not in ("SFTConfig", "TrainingArguments", "Seq2SeqTrainingArguments"):
        code.warnings.append(f"{called}: the models and the loss beside the trained one are not modelled")
    return _take(code.stack.rules, call, code, called)


def _trainer(call: ast.Call, code: Code, called: str) -> bool:
    if called.startswith("SFT"):
        code.stack = TRL
    elif code.stack is PLAIN:
        code.stack = TRAINER
    return False  # its arguments are made elsewhere: by itself it says only which stack trains


_OPTIMIZERS = {
    "AdamW": "adamw_torch",
    "Adam": "adamw_torch",
    "SGD": "sgd",
    "RMSprop": "rmsprop",
    "Adagrad": "adagrad",
    "Adafactor": "adafactor",
    "AdamW8bit": "adamw_bnb_8bit",
    "Adam8bit": "adamw_bnb_8bit",
    "PagedAdamW8bit": "paged_adamw_8bit",
    "PagedAdamW32bit": "paged_adamw_32bit",
    "PagedAdamW": "paged_adamw_32bit",
    "Lion8bit": "lion_8bit",
}


def _optimizer(call: ast.Call, code: Code, called: str) -> bool:
    name = _OPTIMIZERS[called]
    fused = any(k.arg == "fused" and _literal(k.value, code) is True for k in call.keywords)
    code.facts["optimizer"] = "adamw_torch_fused" if fused and name == "adamw_torch" else name
    code.keys.append(KeyReport(f"{called}()", "used"))
    return True


READERS: dict[str, Callable[[ast.Call, Code, str], bool]] = {
    "from_pretrained": _from_pretrained,
    "BitsAndBytesConfig": lambda call, code, called: _take(QUANTISATION, call, code, called),
    **dict.fromkeys(("LoraConfig", "AdaLoraConfig"), _adapter),
    "prepare_model_for_kbit_training": _kbit,
    **dict.fromkeys(("gradient_checkpointing_enable", "activation_checkpointing_enable"), _enable),
    **dict.fromkeys(
        (
            "TrainingArguments",
            "Seq2SeqTrainingArguments",
            "SFTConfig",
            "DPOConfig",
            "KTOConfig",
            "GRPOConfig",
        ),
        _training,
    ),
    **dict.fromkeys(("Trainer", "SFTTrainer", "Seq2SeqTrainer"), _trainer),
    **dict.fromkeys(_OPTIMIZERS, _optimizer),
    "half": _sets(weight_dtype="float16"),
}


def _finish(code: Code, name: str) -> Imported:
    facts = code.facts
    four_bit, kbit = facts.get("_four_bit"), facts.get("_kbit", False)
    fields = code.stack.finish(facts, code.warnings)
    fields.update(_method(facts, bool(four_bit)))
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
    if "max_seq_length" in facts:
        fields["sequence_length"] = integer("max_seq_length", facts["max_seq_length"])
    return Imported("python", name, facts.get("_model"), fields, code.keys, code.warnings)


def _method(facts: Facts, four_bit: bool) -> dict[str, Any]:
    if not facts.get("_peft"):
        return {"method": "qlora"} if four_bit else {"method": "full"}
    if facts.get("_type") == "ADALORA":
        method: dict[str, Any] = {
            "method": "adalora",
            **({"quant_type": facts.get("quant_type", "fp4")} if four_bit else {}),
        }
    else:
        method = {"method": trl.adapter_method(facts, True, four_bit)}
    if facts.get("_type") != "ADALORA":  # LoraConfig's own defaults, peft 0.21 tuners/lora/config.py
        method |= {
            "rank": facts.get("rank", 8),
            "alpha": facts.get("alpha", 8),
            "dropout": facts.get("dropout", 0.0),
        }
    return method | ({"quant_type": "int8"} if facts.get("_eight_bit") else {})
