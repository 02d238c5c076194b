"""What a script gives a trainer as `reward_funcs` (trl 1.16 trainer/grpo_trainer.py, rloo_trainer.py): functions
on the host, and reward models by name or as objects. What cannot be told is no function, so that it counts as
not modeled.
"""

from __future__ import annotations

import ast
from typing import NamedTuple

from memplan.planner.importers.rules import Facts, KeyReport
from memplan.planner.importers.values import Values
from memplan.planner.tables.errors import shown

KEY = "reward_funcs"
REWARD = "a reward model beside the trained one, in its weights' dtype"
HARMLESS = ("num_labels", "trust_remote_code", "revision", "token", "cache_dir", "device_map")
"""Keywords of from_pretrained that leave a reward model as TRL itself loads one."""


class Rewards(NamedTuple):
    """What `reward_funcs` holds: models by name, functions that another module has, and what is neither."""

    models: list[str]
    elsewhere: list[str]
    unknown: list[str]


def rewards_of(node: ast.expr, values: Values) -> Rewards:
    """Each of the rewards; a variable is followed to the one place where it is assigned."""
    found = Rewards([], [], [])
    _read(node, values, found, 0)
    return found


def reported(node: ast.expr, values: Values) -> tuple[Facts, list[KeyReport], list[str]]:
    """The fact, the report and the warnings of a trainer's `reward_funcs`."""
    found = rewards_of(node, values)
    warnings = [
        f"{KEY}: {name} comes from another module and is taken to be a function on the host: "
        "--set reward_model=MODEL says a model"
        for name in found.elsewhere
    ]
    if found.unknown:
        what = f"{', '.join(found.unknown)}, of which the script does not say whether it is a model"
        return {}, [KeyReport(KEY, "not_modelled", what)], warnings
    if len(found.models) > 1:
        return {}, [KeyReport(KEY, "not_modelled", f"{len(found.models)} reward models")], warnings
    if found.models:
        return {"reward_model": found.models[0]}, [KeyReport(KEY, "used", REWARD)], warnings
    return {}, [KeyReport(KEY, "ignored", "functions on the host")], warnings


def _read(node: ast.expr, values: Values, found: Rewards, depth: int) -> None:
    if isinstance(node, ast.Name) and node.id in values.made and depth < 8:
        return _read(values.made[node.id], values, found, depth + 1)
    if isinstance(node, (ast.List, ast.Tuple)) and node.elts:
        for each in node.elts:
            _read(each, values, found, depth)
        return None
    value = values.of(node)
    if isinstance(value, str):
        found.models.append(value)
    elif isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        found.models.extend(value)
    elif isinstance(node, ast.Call):
        _made(node, values, found, depth)
    elif isinstance(node, ast.Lambda) or (isinstance(node, ast.Name) and node.id in values.functions):
        pass
    elif _root(node) in values.imported:
        found.elsewhere.append(shown(ast.unparse(node)))
    else:
        found.unknown.append(shown(ast.unparse(node)))
    return None


def _made(call: ast.Call, values: Values, found: Rewards, depth: int) -> None:
    """What a call gives: a model that is loaded by name, or a function with arguments bound."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if called == "partial" and call.args:
        return _read(call.args[0], values, found, depth + 1)
    plain = all(keyword.arg in HARMLESS for keyword in call.keywords)
    name = values.of(call.args[0]) if called == "from_pretrained" and call.args and plain else None
    into = found.models if isinstance(name, str) else found.unknown
    into.append(name if isinstance(name, str) else shown(ast.unparse(call)))
    return None


def _root(node: ast.expr) -> str:
    """The name that an attribute is of."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return getattr(node, "id", "")
