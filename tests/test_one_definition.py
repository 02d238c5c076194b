"""What has a row in a table has it nowhere else: no code asks for a recipe by its name, and a copied row
under a new name predicts the same.
"""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.components import COMPONENTS, MOMENTS
from memplan.planner.tables.recipes import RECIPES
from memplan.planner.tables.sdp import ATTENTIONS
from memplan.planner.tables.units import SIZES

ROOT = Path(__file__).parent.parent
PACKAGES = ("planner", "profiler", "validate", "memplan")
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "tie_word_embeddings": False,
}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def strings(node: ast.AST) -> set[object]:
    """The text that an operand is, or the texts of a display of several."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return {value for item in node.elts for value in strings(item)}
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def compared(tree: ast.AST) -> list[tuple[int, set[object]]]:
    """(line, texts) of every comparison and every `match` case with texts."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            found.append(
                (node.lineno, {text for each in (node.left, *node.comparators) for text in strings(each)})
            )
        elif isinstance(node, ast.MatchValue):
            found.append((node.value.lineno, strings(node.value)))
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_code_compares_with_a_recipe_name(path: Path):
    names = set(RECIPES)
    lines = [line for line, texts in compared(ast.parse(path.read_text(encoding="utf-8"))) if texts & names]
    assert not lines, (
        f"{path.relative_to(ROOT)}:{lines} asks which recipe it is: that is a field of the recipe's row"
    )


def test_the_search_for_comparisons_finds_them():
    for code in ('a == "raw"', '"hf" != a', 'a in ("hf", "trl")', 'match a:\n    case "raw":\n        pass'):
        assert any(texts & set(RECIPES) for _, texts in compared(ast.parse(code))), code


ROWS = ("raw", "hf", "trl", "llamafactory")
SETUPS = (
    {"method": "full", "gradient_accumulation": 2, "micro_batch": 2},
    {"method": "lora", "retain_outputs": True, "weight_dtype": "bfloat16"},
    {"method": "full", "optimizer": "adamw_bnb_8bit", "checkpointing": "non_reentrant"},
    {"method": "full", "optimizer": "adafactor", "weight_dtype": "bfloat16"},
)
SHARDED = (
    {"method": "full", "gpus": 2, "parallel": "fsdp", "gradient_accumulation": 2},
    {"method": "full", "gpus": 1, "parallel": "ddp"},
    {"method": "full", "gpus": 4, "parallel": "zero2"},
    {"method": "full", "gpus": 4, "parallel": "zero3"},
    {"method": "lora", "gpus": 2, "parallel": "ddp"},
)


@pytest.fixture(params=ROWS)
def copied(request, monkeypatch) -> str:
    """A recipe whose row stands in the table a second time, under another name."""
    monkeypatch.setitem(RECIPES, "copied", replace(RECIPES[request.param], name="copied"))
    return request.param


@pytest.mark.parametrize(
    "fields", [*SETUPS, *SHARDED], ids=lambda fields: "-".join(map(str, fields.values()))
)
def test_a_copied_recipe_predicts_the_same_in_the_formula(copied: str, fields):
    spec = find(LLAMA).spec()
    known, other = (
        plan(spec, resolve({**fields, "recipe": name, "sequence_length": 256})) for name in (copied, "copied")
    )
    assert known.moments == other.moments
    assert known.peak == other.peak and known.host_bytes == other.host_bytes
    assert known.warnings == other.warnings


@pytest.mark.parametrize("fields", SETUPS[:3], ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_copied_recipe_predicts_the_same_in_the_trace(copied: str, fields):
    pytest.importorskip("torch")
    from memplan.planner.trace.engine import trace

    known, other = (
        trace(LLAMA, resolve({**fields, "recipe": name, "sequence_length": 256}))
        for name in (copied, "copied")
    )
    assert known.moments == other.moments
    assert known.peak == other.peak and known.host_bytes == other.host_bytes


def test_a_recipe_s_loop_reaches_the_prediction(monkeypatch):
    """The check above can fail: the plain loop's row with the Trainer's loop is another prediction."""
    monkeypatch.setitem(RECIPES, "copied", replace(RECIPES["raw"], loop=RECIPES["hf"].loop))
    spec = find(LLAMA).spec()
    fields = {"method": "full", "micro_batch": 4, "gradient_accumulation": 2, "sequence_length": 512}
    known, other = (plan(spec, resolve({**fields, "recipe": name})) for name in ("raw", "copied"))
    assert known.peak.allocated_bytes != other.peak.allocated_bytes


def displays(tree: ast.AST, keys: bool) -> list[tuple[int, set[object]]]:
    """(line, texts) of every tuple, list and set of texts, of every Literal[...], and of a dictionary's
    `keys`.
    """
    found = []
    for node in ast.walk(tree):
        inside: list[ast.expr] = []
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            inside = node.elts
        elif keys and isinstance(node, ast.Dict):
            inside = [key for key in node.keys if key is not None]
        texts = {each.value for each in inside if isinstance(each, ast.Constant)}
        found.append((getattr(node, "lineno", 0), {text for text in texts if isinstance(text, str)}))
    return found


ONCE = {
    "planner/tables/sdp.py": (set(ATTENTIONS), 4, True),  # an importer's own words name three
    "planner/tables/components.py": ({*COMPONENTS, *MOMENTS}, 3, False),
    "planner/tables/units.py": ({unit.lower() for unit in SIZES}, 3, True),
}
"""The table that lists these names -> the names, from how many on a list elsewhere is a second table, and
whether a mapping from them is one too.
"""


@pytest.mark.parametrize("home", ONCE)
def test_names_are_listed_in_one_table(home: str):
    names, most, keys = ONCE[home]
    lists = {
        path.relative_to(ROOT).as_posix(): [
            line
            for line, texts in displays(ast.parse(path.read_text(encoding="utf-8")), keys)
            if len({str(text).lower() for text in texts} & names) >= most
        ]
        for path in sources()
    }
    assert [path for path, lines in lists.items() if lines] == [home], lists[home]


NUMBERS = {
    "planner/tables/cublas.py": (
        r"8[_,]?519[_,]?680|4096 \* 1024|32 \* (MIB|2 ?\*\* ?20)",
        "cuBLAS workspaces",
    ),
}


@pytest.mark.parametrize("home", NUMBERS)
def test_sizes_stand_in_one_table(home: str):
    pattern, what = NUMBERS[home]
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if re.search(pattern, path.read_text(encoding="utf-8"))
    ]
    assert found == [home], what
