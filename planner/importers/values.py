"""What the names and settings of a piece of Python mean, as far as its syntax tree says: constants, fields of
dataclasses, argparse options, parameters with defaults. Nothing is run.

An expression is UNKNOWN unless its value is written in the code; `args.rank` is the default of the one field
or option named `rank`, and never the word `rank`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

UNKNOWN = object()
MOST_NUMBER = 10**12
ASKED_OF_THE_GPU = ("is_bf16_supported", "is_bfloat16_supported")
"""What code asks of the GPU: true on what is assumed, Ampere and later."""
CASTS: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "str": str, "bool": bool}
_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Mult: lambda a, b: a * b,
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.FloorDiv: lambda a, b: a // b if b else UNKNOWN,
}


@dataclass(slots=True)
class Values:
    """The values of a module: `names` are variables, `fields` what a settings object has, `given` the words
    of a launch line, which go before defaults.
    """

    names: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    loaded: dict[str, ast.expr] = field(default_factory=dict)  # variable -> what from_pretrained was given
    given: Mapping[str, Any] = field(default_factory=dict)
    bfloat16: bool = True  # what the GPU answers that code asks for it
    made: dict[str, ast.expr] = field(default_factory=dict)  # what a variable is assigned, where once alone
    functions: set[str] = field(default_factory=set)
    imported: set[str] = field(default_factory=set)  # names from other modules

    def of(self, node: ast.expr | None) -> Any:
        """The value of an expression, UNKNOWN where the code does not say it."""
        if node is None:
            return UNKNOWN
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            pass
        reader = _READERS.get(type(node))
        try:
            return UNKNOWN if reader is None else reader(self, node)
        except (RecursionError, OverflowError, ValueError, TypeError):
            return UNKNOWN

    def name(self, name: str) -> Any:
        """The value that a plain name has at this place of the script; UNKNOWN where it is not literal."""
        if name in self.names:
            return self.names[name]
        return self.given.get(name, self.parameters.get(name, UNKNOWN))

    def model(self, node: ast.expr | None) -> Any:
        """The model that an expression names, or that the variable it is was loaded of; UNKNOWN else."""
        node = self.loaded.get(node.id, node) if isinstance(node, ast.Name) else node
        return self.of(node)

    def setting(self, name: str) -> Any:
        """The field or option of that name: as a launch line gives it, else its default."""
        return self.given.get(name, self.fields.get(name, UNKNOWN))


def collect(tree: ast.Module, given: Mapping[str, Any] | None = None, bfloat16: bool = True) -> Values:
    """The values of a module. A name that is assigned twice is UNKNOWN, as is a field with two defaults."""
    values = Values(given=dict(given or {}), bfloat16=bfloat16)
    inside = {
        id(statement) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for statement in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for statement in node.body:
                _class_field(values, node.name, statement)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            values.functions.add(node.name)
            _parameters(values, node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            values.imported |= {(each.asname or each.name).partition(".")[0] for each in node.names}
        elif isinstance(node, ast.Call) and _called(node) == "add_argument":
            _option(values, node)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and id(node) not in inside:
            _assigned(values, node)
    return values


def _assigned(values: Values, node: ast.Assign | ast.AnnAssign) -> None:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if isinstance(node, ast.AnnAssign) and node.value is None:
        return
    pairs: list[tuple[ast.expr, ast.expr | None]] = [(target, node.value) for target in targets]
    for target, value in pairs:  # which grows where several names are assigned at once: a, b = 1, 2
        if isinstance(target, ast.Name):
            known = target.id in values.names
            values.names[target.id] = UNKNOWN if known else values.of(value)
            if known or value is None:
                values.made.pop(target.id, None)
            else:
                values.made[target.id] = value
            _object(values, value)
            if isinstance(value, ast.Call) and _called(value) == "from_pretrained" and value.args:
                values.loaded[target.id] = value.args[0]
        elif isinstance(target, ast.Attribute):  # args.rank = 8
            _settle(values.fields, target.attr, values.of(value))
        elif isinstance(target, ast.Tuple):
            each = value.elts if isinstance(value, ast.Tuple) else [None] * len(target.elts)
            pairs += zip(target.elts, each, strict=False)


def _object(values: Values, node: ast.expr | None) -> None:
    """Keywords of what makes a settings object: Namespace(rank=8), SimpleNamespace, a class of the file."""
    if not isinstance(node, ast.Call):
        return
    plain = _called(node) in ("Namespace", "SimpleNamespace", "DictConfig", "EasyDict", "dict")
    for keyword in node.keywords:
        if keyword.arg is not None and (plain or f"{_called(node)}.{keyword.arg}" in values.fields):
            values.fields[keyword.arg] = values.of(keyword.value)


def _class_field(values: Values, owner: str, statement: ast.stmt) -> None:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        name, value = statement.target.id, _default(values, statement.value)
    elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        name, value = statement.targets[0].id, _default(values, statement.value)
    else:
        return
    _settle(values.fields, name, value)
    values.fields[f"{owner}.{name}"] = value


def _default(values: Values, node: ast.expr | None) -> Any:
    """A field's default: field(default=8), Field(8), Option(8), or the value itself."""
    if isinstance(node, ast.Call) and _called(node) in ("field", "Field", "Option", "Argument"):
        said = next((keyword.value for keyword in node.keywords if keyword.arg == "default"), None)
        return values.of(said if said is not None else next(iter(node.args), None))
    return values.of(node)


def _parameters(values: Values, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """Parameters with defaults, and click's options of the same name."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = list(zip(reversed(positional), reversed(arguments.defaults), strict=False))
    pairs += [
        (a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None
    ]
    for argument, default in pairs:
        _settle(values.parameters, argument.arg, _default(values, default))
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and _called(decorator) == "option":
            _option(values, decorator, values.parameters)


def _option(values: Values, call: ast.Call, into: dict[str, Any] | None = None) -> None:
    """parser.add_argument("--rank", type=int, default=8), and click.option alike."""
    words = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    long = next((word for word in words if word.startswith("--")), words[0] if words else None)
    name = values.of(keywords.get("dest")) if "dest" in keywords else long
    if not isinstance(name, str):
        return
    value = values.of(keywords.get("default")) if "default" in keywords else UNKNOWN
    if values.of(keywords.get("action")) in ("store_true", "store_false") and "default" not in keywords:
        value = values.of(keywords.get("action")) == "store_false"
    _settle(values.fields if into is None else into, name.lstrip("-").replace("-", "_"), value)


def _settle(table: dict[str, Any], name: str, value: Any) -> None:
    known = name in table and (table[name] is UNKNOWN or table[name] != value)
    table[name] = UNKNOWN if known else value


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _attribute(values: Values, node: ast.Attribute) -> Any:
    base = node.value
    if isinstance(base, ast.Name):
        if base.id == "torch":
            return f"torch.{node.attr}"
        if f"{base.id}.{node.attr}" in values.fields:  # a class's own attribute
            return values.fields[f"{base.id}.{node.attr}"]
        if base.id[:1].isupper() and node.attr.isupper():
            return node.attr  # an enum's member: TaskType.CAUSAL_LM
    return values.setting(node.attr) if isinstance(base, (ast.Name, ast.Attribute)) else UNKNOWN


def _call(values: Values, node: ast.Call) -> Any:
    called = _called(node)
    if called in ASKED_OF_THE_GPU:
        return values.bfloat16
    if called in CASTS and len(node.args) == 1 and not node.keywords:
        value = values.of(node.args[0])
        return (
            UNKNOWN if value is UNKNOWN or not isinstance(value, (str, int, float)) else CASTS[called](value)
        )
    if called in ("get", "getenv") and len(node.args) == 2:  # a dictionary's, or os.environ's, with a default
        held = values.of(node.func.value) if isinstance(node.func, ast.Attribute) else UNKNOWN
        key = values.of(node.args[0])
        if isinstance(held, dict) and isinstance(key, str) and key in held:
            return held[key]
        return values.of(node.args[1])
    if called == "dict" and not node.args:
        found = {str(keyword.arg): values.of(keyword.value) for keyword in node.keywords}
        return UNKNOWN if any(value is UNKNOWN for value in found.values()) else found
    return UNKNOWN


def _binary(values: Values, node: ast.BinOp) -> Any:
    operation = _OPERATIONS.get(type(node.op))
    left, right = values.of(node.left), values.of(node.right)
    numbers = all(
        isinstance(side, (int, float)) and not isinstance(side, bool) and abs(side) < 10**9
        for side in (left, right)
    )
    if isinstance(node.op, ast.Add) and isinstance(left, str) and isinstance(right, str):
        return (left + right)[:1000]
    return operation(left, right) if operation is not None and numbers else UNKNOWN


def _either(values: Values, node: ast.BoolOp) -> Any:
    for part in node.values:
        value = values.of(part)
        if value is UNKNOWN:
            return UNKNOWN
        if bool(value) == isinstance(node.op, ast.Or):
            return value
    return value


def _choice(values: Values, node: ast.IfExp) -> Any:
    test, yes, no = values.of(node.test), values.of(node.body), values.of(node.orelse)
    if test is UNKNOWN:
        return yes if yes is not UNKNOWN and type(yes) is type(no) and yes == no else UNKNOWN
    return yes if test else no


def _not(values: Values, node: ast.UnaryOp) -> Any:
    value = values.of(node.operand)
    return UNKNOWN if value is UNKNOWN or not isinstance(node.op, ast.Not) else not value


def _text(values: Values, node: ast.JoinedStr) -> Any:
    parts = [values.of(part.value if isinstance(part, ast.FormattedValue) else part) for part in node.values]
    return UNKNOWN if any(part is UNKNOWN for part in parts) else "".join(map(str, parts))[:1000]


def _sequence(values: Values, node: ast.List | ast.Tuple) -> Any:
    items = [values.of(item) for item in node.elts]
    return UNKNOWN if any(item is UNKNOWN for item in items) else items


def _mapping(values: Values, node: ast.Dict) -> Any:
    keys, items = [values.of(key) for key in node.keys], [values.of(item) for item in node.values]
    if any(key is UNKNOWN or not isinstance(key, (str, int)) for key in keys):
        return UNKNOWN
    return {key: item for key, item in zip(keys, items, strict=True) if item is not UNKNOWN}


def _item(values: Values, node: ast.Subscript) -> Any:
    held, key = values.of(node.value), values.of(node.slice)
    if isinstance(held, dict) and isinstance(key, (str, int)) and key in held:
        return held[key]
    if isinstance(held, (list, tuple)) and isinstance(key, int) and -len(held) <= key < len(held):
        return held[key]
    return UNKNOWN if held is not UNKNOWN or not isinstance(key, str) else values.setting(key)


_READERS: dict[type[ast.expr], Callable[[Values, Any], Any]] = {
    ast.Name: lambda values, node: values.name(node.id),
    ast.Attribute: _attribute,
    ast.Call: _call,
    ast.BinOp: _binary,
    ast.BoolOp: _either,
    ast.IfExp: _choice,
    ast.UnaryOp: _not,
    ast.JoinedStr: _text,
    ast.List: _sequence,
    ast.Tuple: _sequence,
    ast.Dict: _mapping,
    ast.Subscript: _item,
}
