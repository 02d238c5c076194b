"""docs/adapters.md: every peft type, and what its trace does or assumes, from planner/tables/peft_types.py.

Write it again with `python -m memplan.render.adapter_docs > docs/adapters.md`; a test fails when it is stale.
"""

from __future__ import annotations

from memplan.planner.tables.peft_types import PEFT_TYPES, PeftType

INTRO = """# Adapters

`memplan MODEL --adapter adapter_config.json` takes a file of any `peft_type`. Its values become the setup; an option that contradicts them
is an error. Plain LoRA, rsLoRA, DoRA, AdaLoRA, IA3, prompt-tuning and prefix-tuning files are answered by the formula; every other file is
traced (extra `trace`): peft itself builds the adapter, and no type is refused. This page says what is special in those traces, made of
`planner/tables/peft_types.py` for peft 0.21, and files named are peft's. Every type was compared with a real step on the CPU
(`tests/test_trace_peft.py`): weights, gradients, optimizer states and what is saved for backward are equal to the byte, apart from small
tensors that peft leaves on the host and copies to a GPU, which the test names one by one.

| peft_type | what is special in its trace |
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
