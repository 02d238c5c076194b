"""docs/adapters.md: every peft type, and what its trace does or assumes, from planner/tables/peft_types.py.

Write it again with `python -m memplan.render.adapter_docs > docs/adapters.md`; a test fails when it is stale.
"""

from __future__ import annotations

from memplan.planner.tables.peft_types import PEFT_TYPES, PeftType

INTRO = """# Adapters

`memplan MODEL --adapter adapter_config.json` accepts a file of any `peft_type`. Its values become part of the setup; an option that
contradicts them is an error. The formula predicts plain LoRA, rsLoRA, DoRA, AdaLoRA, IA3, prompt-tuning and prefix-tuning. Every other type
is traced (extra `trace`): PEFT itself builds the adapter, and no type is rejected.

The table lists what is special about each type's trace. It is generated from `planner/tables/peft_types.py` for PEFT 0.21, whose files it
cites. Every type was compared with a real step on the CPU (`tests/test_trace_peft.py`): weights, gradients, optimizer states and tensors saved
for backward are equal to the byte, except small tensors that PEFT leaves on the host and copies to a GPU, which the test lists.

| peft_type | special in the trace |
|---|---|
"""


def page() -> str:
    """The whole of docs/adapters.md as Markdown."""
    return INTRO + "".join(f"| `{row.name}` | {special(row)} |\n" for row in PEFT_TYPES.values())


def special(row: PeftType) -> str:
    """One row's remarks in a sentence; empty where there is nothing to say."""
    said = [
        f"a shape follows from the values of constants, which are kept: {row.values}" if row.values else "",
        "sparse tensors: what their CUDA kernels allocate inside counts as unknown" if row.sparse else "",
        "every row of the batch belongs to task 0" if row.per_task else "",
        row.note,
    ]
    return "; ".join(part for part in said if part)


if __name__ == "__main__":
    print(page(), end="")
