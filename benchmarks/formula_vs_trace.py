"""The formula against the trace over random setups: `python benchmarks/formula_vs_trace.py N --seed S [--out
FILE]`, worst first.

Each case is a model (from the catalog, or one of its families shrunk to a few small layers) and a setup in
which some fields differ from their recipe's defaults. `tensors` compares bytes of tensors, which the
formula's rules owe; `allocated` compares with the allocator's blocks, whose rounding the formula leaves out.
FILE keeps one JSON document a line; a run goes on where the file ends.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.planner.formula.engine import plan, rank_of, symbolic
from memplan.planner.formula.program import SYMBOLS
from memplan.planner.formula.tape.peaks import component_of
from memplan.planner.inputs.families.table import FAMILIES
from memplan.planner.inputs.models import find, index
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Breakdown, Prediction
from memplan.planner.tables.components import COMPONENTS, STEP_MOMENTS
from memplan.planner.tables.errors import UsageError

LARGEST = 40 * 10**9  # parameters of a catalog model in the sweep
Config = dict[str, Any]
if TYPE_CHECKING:
    from memplan.planner.trace.events.log import Log


# ---- cases -------------------------------------------------------------------------------------------------

_HIDDEN = ("hidden_size", "n_embd", "word_embed_proj_dim")
_HEADS = ("num_attention_heads", "n_head")
_INNER = ("intermediate_size", "ffn_dim", "n_inner", "shared_expert_intermediate_size")
_KV = ("num_key_value_heads", "num_kv_heads")
_DEPTH = ("num_hidden_layers", "n_layer")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def shrunk(config: Mapping[str, Any], rng: random.Random) -> Config:
    """The config of a small model of the same family: few layers, few heads, every switch as it was."""
    heads, size = rng.choice((2, 4, 8)), rng.choice((16, 32, 64, 80))
    groups = (
        1
        if config.get("num_key_value_heads") == 1
        else rng.choice((1, 2, heads))
        if rng.random() < 0.6
        else heads
    )
    wide = any(config.get(key) != config.get("num_attention_heads") for key in _KV if key in config)
    changed: Config = dict.fromkeys(_HEADS, heads) | dict.fromkeys(_KV, groups if wide else heads)
    changed |= dict.fromkeys(_HIDDEN, heads * size) | dict.fromkeys(
        _INNER, heads * size * rng.choice((2, 3, 4))
    )
    changed |= dict.fromkeys(_DEPTH, rng.choice((2, 3, 4, 7, 9))) | dict.fromkeys(_EXPERTS, 8)
    changed |= {
        "moe_intermediate_size": 96,
        "head_dim": size,
        "vocab_size": rng.choice((1003, 8192, 32000, 50257)),
    }
    changed |= {
        "sliding_window": rng.choice((64, 4096)),
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "rotary_dim": 16,
    }
    changed |= {
        "q_lora_rank": 48,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
    }
    small = {
        key: changed[key] if key in changed and value is not None else value for key, value in config.items()
    }
    small["pad_token_id"] = 0  # a class's own default may lie beyond the small vocabulary (Phi-3)
    depth = next(small[key] for key in _DEPTH if key in small)
    return {
        key: value[:depth] if key in ("layer_types", "no_rope_layers") and value else value
        for key, value in small.items()
    }


@cache
def families() -> dict[str, list[str]]:
    """The catalog's entries by model_type, of the families that the formula knows."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(index()):
        model_type = find(name).config["model_type"]
        if model_type in FAMILIES:
            found[model_type].append(name)
    return dict(found)


# Field -> how often it differs from the recipe's default, and to what.
SWITCHES: dict[str, tuple[float, tuple[Any, ...]]] = {
    "weight_dtype": (0.3, ("bfloat16", "float16", "float32")),
    "autocast": (0.2, ("none", "bfloat16", "float16")),
    "checkpointing": (0.5, ("none", "non_reentrant", "reentrant")),
    "checkpoint_every": (0.08, (2, 3)),
    "attention": (0.5, ("eager", "sdpa", "sdpa-math", "sdpa-efficient", "sdpa-flash", "flash_attention_2")),
    "optimizer": (
        0.4,
        (
            "adamw_torch",
            "adamw_torch_fused",
            "sgd",
            "rmsprop",
            "adagrad",
            "adafactor",
            "adamw_bnb_8bit",
            "paged_adamw_8bit",
            "paged_adamw_32bit",
            "lion_32bit",
            "lion_8bit",
        ),
    ),
    "padded": (0.3, (True,)),
    "packed_documents": (0.1, (3,)),
    "gradient_accumulation": (0.25, (2, 4)),
    "loss": (0.25, ("full", "chunked", "fused")),
    "retain_outputs": (0.12, (True,)),
    "zero_grad": (0.15, ("after_step",)),
    "load": (0.3, ("random",)),
    "gpu": (0.7, ("t4", "a100-80gb", "h100-80gb", "rtx-4090")),
    "allocator": (0.2, ("native", "expandable")),
}
ADAPTER_SWITCHES: dict[str, tuple[float, tuple[Any, ...]]] = {
    "rank": (0.8, (1, 4, 8, 64)),
    "dropout": (0.4, (0.0, 0.05)),
    "targets": (0.5, ("all-linear", "attention", "peft-default")),
    "adapter_dtype": (0.2, ("float32", "bfloat16")),
    "quant_type": (0.15, ("nf4", "int8")),
    "modules_to_save": (0.06, ("lm_head",)),
}
QUANT_SWITCHES: dict[str, tuple[float, tuple[Any, ...]]] = {
    "quant_type": (0.3, ("nf4", "fp4", "int8")),
    "double_quant": (0.3, (True, False)),
    "quant_block": (0.1, (128,)),
    "kbit_prepare": (0.3, (True, False)),
    "quant_storage": (0.1, ("bfloat16",)),
    "compute_dtype": (0.15, ("bfloat16", "float16", "float32")),
}
METHODS = (
    "full",
    "full",
    "freeze",
    "lora",
    "lora",
    "lora",
    "qlora",
    "qlora",
    "qlora",
    "adalora",
    "dora",
    "lora-fa",
    "ia3",
    "inference",
    "prefix-tuning",
    "prompt-tuning",
    "adapter",
)
RECIPES = ("raw", "raw", "hf", "hf", "hf", "trl", "axolotl", "llamafactory", "paper")


def case(seed: int, number: int, small: bool | None = None) -> tuple[str, Config, dict[str, Any]]:
    """Case `number` of a seed: (the model's name, its config, the setup's fields as given). `small`: of this
    kind only.
    """
    rng = random.Random(f"{seed}-{number}")
    family = rng.choice(sorted(families()))
    tiny = rng.random() < 0.5
    names = [name for name in families()[family] if index()[name]["parameters"] < LARGEST]
    name = rng.choice(names or families()[family])
    config = dict(find(name).config)
    if (tiny if small is None else small) or not names:
        name, config = f"small {family} {number}", shrunk(config, rng)
    recipe = rng.choice(RECIPES)
    method = "qlora" if recipe == "paper" else rng.choice(METHODS)
    fields: dict[str, Any] = {"method": method, "recipe": recipe}
    fields["micro_batch"] = rng.choice((1, 1, 2, 3, 4, 8))
    fields["sequence_length"] = rng.choice((64, 128, 256, 512, 1024, 2048)) - rng.choice((0, 0, 0, 1, 12))
    tables = [SWITCHES]
    if method not in ("full", "freeze", "inference"):
        tables += [ADAPTER_SWITCHES, *([QUANT_SWITCHES] if method == "qlora" else [])]
    for table in tables:
        for key, (share, values) in table.items():
            own = random.Random(f"{seed}-{number}-{key}")  # a new switch leaves the others' cases as they are
            if own.random() < share:
                fields[key] = own.choice(values)
    return name, config, fields


def legal(config: Config, fields: Mapping[str, Any]) -> Setup | None:
    """The setup, None where the fields contradict each other."""
    try:
        return resolve(fields, max_positions=find(config).spec().max_positions)
    except UsageError:
        return None


# ---- comparing ---------------------------------------------------------------------------------------------


def compare(config: Config, setup: Setup) -> dict[str, Any]:
    """Both engines on one case: errors by moment and component, and the rows that differ at the moment that
    is furthest off.
    """
    from memplan.planner.trace.engine import traced

    spec = find(config).spec()
    try:
        ours = plan(spec, setup)
    except UsageError as error:
        return {"refused": "formula", "reason": str(error)}
    try:
        theirs, log = traced(config, setup)
    except UsageError as error:
        return {"refused": "trace", "reason": str(error)}
    moments = [m.moment for m in ours.moments]
    planned, observed = planned_places(spec, setup), traced_places(log)
    found = {
        name: _moment(ours.moment(name), theirs.moment(name))
        | {"apart": apart(planned[name], observed[name])}
        for name in moments
    }
    steps = [name for name in STEP_MOMENTS if name in found]
    largest = max(steps, key=lambda name: found[name]["traced"])
    worst = max(steps, key=lambda name: abs(found[name]["error"]))
    return {
        "tensors": max(found[n]["planned"] for n in steps) / found[largest]["traced"] - 1,
        "allocated": ours.step_peak.allocated_bytes / theirs.step_peak.allocated_bytes - 1,
        "traced": theirs.step_peak.allocated_bytes,
        "parameters": _parameters(ours, theirs),
        "moments": found,
        "worst": worst,
        "rows": differing(ours.moment(worst), theirs.moment(worst)),
        "load_rows": differing(ours.moment("load"), theirs.moment("load"), 2),
    }


def _parameters(ours: Prediction, theirs: Prediction) -> list[str]:
    """The counts in which the engines differ."""
    names = ("trainable_parameters", "total_parameters", "checkpoint_bytes", "host_bytes")
    return [
        f"{n} {getattr(ours, n):,} / {getattr(theirs, n):,}"
        for n in names
        if getattr(ours, n) != getattr(theirs, n)
    ]


def _moment(ours: Breakdown, theirs: Breakdown) -> dict[str, Any]:
    planned, traced = sum(r.bytes for r in ours.rows), sum(r.bytes for r in theirs.rows)
    parts = {
        c: sum(r.bytes for r in ours.rows if r.component == c)
        - sum(r.bytes for r in theirs.rows if r.component == c)
        for c in COMPONENTS
    }
    return {
        "planned": planned,
        "traced": traced,
        "error": planned / traced - 1,
        "components": {c: n for c, n in parts.items() if n},
    }


# ---- components --------------------------------------------------------------------------------------------

TIE = 1e-3
"""Places of a moment whose bytes are within this share of the largest are as good as its peak: which of them
is the largest, rounding to blocks decides.
"""
Place = tuple[int, ...]  # bytes by component, in the order of COMPONENTS


def planned_places(spec: ModelSpec, setup: Setup) -> dict[str, set[Place]]:
    """The formula's places within TIE of the largest, by moment."""
    structure = symbolic(spec, setup)
    values = (setup.micro_batch, setup.sequence_length, rank_of(setup))
    named = dict(zip(SYMBOLS, values, strict=True))
    program = structure.program(structure.guard(*values[:2]))
    found = {
        name: [tuple(size.evaluate(named) for size in state.components) for state in states]
        for name, states in program.loading.items()
    }
    tape = program.tape
    sizes = [info.size.evaluate(named) for info in tape.infos]
    columns = [COMPONENTS.index(component_of(info)) for info in tape.infos]
    now = [
        sum(row.size.evaluate(named) for row in program.resident if row.component == component)
        for component in COMPONENTS
    ]
    places = [tuple(now)]
    for number, change in tape.log:
        for each, count in change.items() if number < 0 else ((number, change),):
            now[columns[each]] += sizes[each] * count
        places.append(tuple(now))
    ends = [position for position, _ in tape.marks[1:]]
    for (begin, moment), end in zip(tape.marks, [*ends, len(tape.log)], strict=True):
        if moment in program.walked:
            found.setdefault(moment, []).extend(places[begin : end + 1])
    return {name: _largest(each) for name, each in found.items()}


def traced_places(log: Log) -> dict[str, set[Place]]:
    """The trace's places within TIE of the largest, by moment: bytes of tensors, as the formula counts
    them.
    """
    now, places = [0] * len(COMPONENTS), [(0,) * len(COMPONENTS)]
    for kind, number, _ in log.events:
        if kind != "empty_cache":
            storage = log.storages[number]
            column = COMPONENTS.index(storage.component)  # type: ignore[arg-type]
            now[column] += storage.nbytes if kind == "alloc" else -storage.nbytes
        places.append(tuple(now))
    last = max(mark.step for mark in log.marks)
    first = min(mark.begin for mark in log.marks if mark.step >= 0)
    found = {"load_peak": places[: first + 1], "load": [places[first]]}
    for mark in log.marks:
        if mark.step == last:
            found.setdefault(mark.moment, []).extend(places[mark.begin : mark.end + 1])
    return {name: _largest(each) for name, each in found.items()}


def _largest(places: Sequence[Place]) -> set[Place]:
    most = max(map(sum, places))
    return {place for place in places if sum(place) >= (1 - TIE) * most}


def apart(planned: set[Place], observed: set[Place]) -> dict[str, float]:
    """How far the components are apart at the two most similar places, as shares of the moment's peak.

    total: of the sums; worst: of the component that is furthest apart; misplaced: bytes that one engine
    counts in one component and the other in another.
    """
    whole = max(map(sum, observed))
    _, differences = min(
        (max(map(abs, each)), each)
        for each in ([a - b for a, b in zip(x, y, strict=True)] for x in planned for y in observed)
    )
    total, moved = sum(differences), sum(map(abs, differences))
    return {
        "total": total / whole,
        "worst": max(map(abs, differences)) / whole,
        "misplaced": (moved - abs(total)) / 2 / whole,
    }


def differing(ours: Breakdown, theirs: Breakdown, most: int = 8) -> list[str]:
    """Tensors of one size of which the engines count different numbers, largest difference first."""
    sizes: dict[int, list[dict[str, int]]] = defaultdict(lambda: [defaultdict(int), defaultdict(int)])
    for side, moment in enumerate((ours, theirs)):
        for row in moment.rows:
            sizes[row.bytes // row.count][side][f"{row.name} {list(row.shape)} {row.dtype}"] += row.count
    total = sum(row.bytes for row in theirs.rows)
    lines = []
    for size, (planned, traced) in sizes.items():
        off = (sum(planned.values()) - sum(traced.values())) * size
        if abs(off) > 1e-4 * total:
            lines.append((abs(off), f"{off / total:+.2%} formula {_named(planned)} | trace {_named(traced)}"))
    return [text for _, text in sorted(lines, reverse=True)[:most]]


def _named(rows: Mapping[str, int]) -> str:
    shown = sorted(rows.items(), key=lambda item: -item[1])
    return (
        ", ".join(f"{count} x {name}" for name, count in shown[:4])
        + (f", {len(shown) - 4} more" if len(shown) > 4 else "")
        or "none"
    )


# ---- running -----------------------------------------------------------------------------------------------


def sweep(numbers: Iterable[int], seed: int, small: bool | None = None) -> Iterator[dict[str, Any]]:
    """One document for each case of those numbers whose fields do not contradict each other."""
    for number in numbers:
        name, config, fields = case(seed, number, small)
        setup = legal(config, fields)
        if setup is not None:
            began = time.perf_counter()
            document = {
                "case": number,
                "seed": seed,
                "model": name,
                "fields": fields,
                **compare(config, setup),
            }
            yield document | {"seconds": round(time.perf_counter() - began, 2)}


def done(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not pass."""
    return sorted(values)[max(0, -(-int(len(values) * share * 1000) // 1000) - 1)]


def show(results: Sequence[dict[str, Any]], most: int) -> None:
    """The worst cases with their rows, then the summary."""
    compared = sorted(
        (r for r in results if "tensors" in r), key=lambda r: -abs(r["moments"][r["worst"]]["error"])
    )
    for r in compared[:most]:
        moments = "  ".join(f"{name} {m['error']:+.2%}" for name, m in r["moments"].items())
        print(
            f"\n#{r['case']} {r['model']}: tensors {r['tensors']:+.2%}, allocated {r['allocated']:+.2%} of "
            f"{r['traced'] >> 20:,} MiB"
        )
        print(f"  {r['fields']}\n  {moments}\n  {r['worst']}: {r['moments'][r['worst']]['components']}")
        print(
            *(f"    {line}" for line in (*r["parameters"], *r["rows"])),
            *(f"    load: {line}" for line in r["load_rows"]),
            sep="\n",
        )
    refused: dict[str, int] = defaultdict(int)
    for r in results:
        if "refused" in r:
            refused[f"{r['refused']}: {r['reason'][:140]}"] += 1
    print(f"\n{len(results)} cases, {len(compared)} compared")
    for reason, count in sorted(refused.items(), key=lambda item: -item[1]):
        print(f"  refused {count} x {reason}")
    for kind in ("tensors", "allocated"):
        found = [abs(r[kind]) for r in compared]
        if found:
            print(
                f"{kind:10} median {statistics.median(found):.3%}  P95 {percentile(found, 0.95):.2%}  worst "
                f"{max(found):.2%}"
            )
    for name in ("load_peak", "load", *STEP_MOMENTS):
        found = [abs(r["moments"][name]["error"]) for r in compared if name in r["moments"]]
        if found:
            print(
                f"{name:15} median {statistics.median(found):.3%}  P95 {percentile(found, 0.95):.2%}  worst "
                f"{max(found):.2%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int, nargs="?", default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, action="append", help="these case numbers alone")
    parser.add_argument(
        "--small", action=argparse.BooleanOptionalAction, default=None, help="shrunk models alone, or none"
    )
    parser.add_argument("--out", type=Path, help="JSON lines, one a case")
    parser.add_argument("--show", type=int, default=10, help="how many of the worst cases to print")
    arguments = parser.parse_args()
    results = done(arguments.out)
    first = max((r["case"] + 1 for r in results), default=0)
    numbers = arguments.only or range(first, arguments.count)
    for document in sweep(numbers, arguments.seed, arguments.small):
        results.append(document)
        if arguments.out is not None:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(document) + "\n")
    show(results, arguments.show)


if __name__ == "__main__":
    main()
