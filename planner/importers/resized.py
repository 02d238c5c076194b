"""A script's call of resize_token_embeddings, and what is said where the number of rows is not in the text."""

from __future__ import annotations

import ast
from typing import Protocol

from memplan.planner.importers.rules import Facts, KeyReport
from memplan.planner.importers.values import Values


class Code(Protocol):
    """What a reader of calls has: the code's values, and what they say so far."""

    facts: Facts
    keys: list[KeyReport]
    values: Values


NEW_ROWS = (
    "embeddings and head grow by new tokens, and exist twice while they do: --set vocabulary=N counts them, "
    "N as many as there are then"
)


def resized(call: ast.Call, code: Code, called: str) -> bool:
    """Note the fact `_vocabulary`, the rows after the call, where they are literal (transformers 5.24
    modeling_utils.py resize_token_embeddings).
    """
    names, values = ("new_num_tokens", "pad_to_multiple_of"), code.values
    given = dict(zip(names, map(values.of, call.args), strict=False))
    given |= {str(keyword.arg): values.of(keyword.value) for keyword in call.keywords}
    rows, multiple = given.get(names[0]), given.get(names[1]) or 1
    if isinstance(rows, int) and isinstance(multiple, int) and min(rows, multiple) > 0:
        code.facts["_vocabulary"] = -(-rows // multiple) * multiple
        code.keys.append(KeyReport(f"{called}()", "used"))
    else:
        code.keys.append(KeyReport(f"{called}()", "not_modelled", NEW_ROWS))
    return True
