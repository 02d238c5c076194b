"""Compiled traces against direct ones: `python benchmarks/compiled_traces.py [--out FILE] [MODEL_TYPE ...]`,
`--table > docs/compiled.md`.

One model of each architecture of transformers that the formula has no family for: its class's own default
configuration, cut to the first layers of each kind, under a setup drawn from its name (method,
checkpointing, attention, padding, optimizer, remainder of the lengths). Its programs are solved at their own
sizes and asked for five others: every moment's allocated bytes, what is reserved and the smallest capacity
are held against a direct trace of that size.

FILE keeps one JSON document a line; a run goes on where it ends. `--table` traces nothing: it prints
docs/compiled.md from FILE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from memplan.planner.compiled.engine import Compiled
from memplan.planner.compiled.nodes import Point
from memplan.planner.compiled.regime import regimes
from memplan.planner.inputs.families.table import FAMILIES
from memplan.planner.inputs.models import find, index
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.trace.engine import predicted
from memplan.planner.trace.engine import recorded as recorded_log
from memplan.planner.trace.events.log import Log

RECORDS = Path(__file__).parents[1] / "measurements" / "compiled.jsonl"
TARGET = 0.005  # the worst peak
SIZES: tuple[Point, ...] = ((2, 1280), (3, 768), (4, 1536), (6, 896), (7, 640), (5, 1152), (8, 704))
SHORT: tuple[Point, ...] = ((2, 384), (3, 192), (4, 320), (6, 256), (7, 128), (4, 384), (8, 192))
"""For models of at most 1,600 positions. Half of the others are asked at a micro-batch of 1, which is a
structure of its own. The first five count that are none of the sizes that were traced.
"""
BATCHES = (4, 6, 7, 9, 12)
OTHERS = 5
"""Micro-batches of one sequence length, where the number of events depends on it."""
SHORTEST = 128
PATIENCE = 12.0  # seconds of a core for one trace of a few tokens
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
)
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
TOTALS = ("peak", "moment", "reserved", "capacity")
Document = dict[str, Any]


def model_types() -> list[str]:
    """Every causal language model that the formula has no family for, those of the catalog first."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    ours = {find(name).config["model_type"] for name in index()}
    every = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in FAMILIES]
    return sorted(every, key=lambda name: (name not in ours, name))


def config_of(model_type: str) -> Document:
    """The class's default configuration with the first layer of each kind."""
    from transformers import CONFIG_MAPPING

    return {**cut(CONFIG_MAPPING[model_type]().to_dict()), "model_type": model_type}


def cut(config: Document) -> Document:
    """A configuration of fewer layers: lists that have a value for each layer are cut with them."""
    depth = next((config[key] for key in DEPTHS if isinstance(config.get(key), int)), 0)
    lists = {key: value for key, value in config.items() if isinstance(value, list) and len(value) == depth}
    kinds = [tuple(repr(values[layer]) for values in lists.values()) for layer in range(depth)]
    kept = sorted({0, *(kinds.index(kind) for kind in dict.fromkeys(kinds))})
    if any("expert" in key for key in config):  # the first layers may have none
        kept = sorted({*kept, 1})
    kept = kept[:4]
    return {
        **config,
        **{key: len(kept) for key in DEPTHS if isinstance(config.get(key), int)},
        **{key: [values[layer] for layer in kept] for key, values in lists.items()},
    }


def drawn(model_type: str) -> Document:
    """Setup fields of one architecture's case."""
    rng = random.Random(model_type)
    return {
        "method": rng.choice(("lora", "qlora", "full", "dora")),
        "checkpointing": rng.choice(("non_reentrant", "reentrant", "none")),
        "attention": rng.choice(("sdpa", "eager")),
        "padded": rng.random() < 0.4,
        "optimizer": rng.choice(("adamw_torch", "adamw_torch_fused", "adamw_8bit", "adafactor")),
    }


def plainer(fields: Document) -> list[Document]:
    """The drawn fields, then others for an architecture that has no path for some of them."""
    linear = {"targets": ("all-linear",)}
    adapted = [{}] if fields["method"] == "full" else [{}, linear]
    return [
        *({**fields, **change} for change in adapted),
        *({**fields, **change, "attention": "eager"} for change in adapted),
        {**fields, "method": "full"},
        {**fields, "method": "full", "attention": "eager", "checkpointing": "none"},
    ]


def case(model_type: str) -> Document:
    """The outcome of one architecture: errors at each size, or why it was not compared."""
    found: Document = {"model_type": model_type, "fields": drawn(model_type), "sizes": [], "notes": []}
    try:
        config = config_of(model_type)
    except Exception as error:  # the class's own defaults may be none of a model
        return found | {"refused": f"{type(error).__name__}: {error}"}
    rng = random.Random(f"sizes of {model_type}")
    rest = rng.choice((0, 0, 13, 40))
    positions = [config[key] for key in POSITIONS if isinstance(config.get(key), int)]
    usual = SHORT if min(positions, default=9999) <= 1600 else SIZES
    alone = usual is SIZES and rng.random() < 0.5
    sizes = [(1 if alone else batch, length + rest) for batch, length in usual]
    reasons = []
    for fields in plainer(found["fields"]):
        setup = resolve(fields)
        began = time.process_time()
        try:
            recorded_log(config, setup.replaced(micro_batch=2, sequence_length=SHORTEST))
        except UsageError as error:
            reasons.append(str(error).replace("\n", " "))
            continue
        found |= {"fields": fields, "parameters": 0}
        if time.process_time() - began > PATIENCE:
            return found | {"refused": f"a trace of {SHORTEST} tokens takes more than {PATIENCE:.0f} s"}
        return compare(found, config, setup, sizes)
    return found | {"refused": reasons[0]}


def compare(found: Document, config: Document, setup: Setup, sizes: list[Point]) -> Document:
    """Hold the programs against direct traces, at `sizes` or, where their structure is another at each
    length, at other micro-batches of one.
    """
    notes: list[str] = []
    compiled = Compiled(config, setup, progress=notes.append)
    kinds = {point: answered(compiled, point) for point in sizes}
    if "regime" not in kinds.values():
        sizes = [(batch, SHORTEST) for batch in BATCHES]
        kinds = {point: answered(compiled, point) for point in sizes}
    for point in [each for each in sizes if kinds[each] in ("regime", "length")][:OTHERS]:
        log, facts = compiled.log(point)
        this = setup.replaced(micro_batch=point[0], sequence_length=point[1])
        direct, counts = recorded_log(config, this)
        found["parameters"] = counts.parameters
        errors = dict.fromkeys(TOTALS, 0.0)  # equal events and tensors are replayed to equal predictions
        if not (equal := same(log, direct) and facts == counts):
            ours, theirs = (
                predicted(config, this, *each, "model") for each in ((log, facts), (direct, counts))
            )
            errors = errors_of(ours, theirs)
        found["sizes"].append({"point": point, "from": kinds[point], "equal": equal, **errors})
    found["notes"] = [note for note in notes if not note.startswith("tracing")]
    if not found["sizes"]:
        found["refused"] = found["notes"][-1]
    return found


def answered(compiled: Compiled, point: Point) -> str:
    """Which kind of program answers for a point: of a regime, of one length, or its own trace (a node of the
    program's, or the point's).
    """
    setup = compiled.setup.replaced(micro_batch=point[0], sequence_length=point[1])
    for wanted in regimes(compiled.config, setup):
        if wanted.batch is not None and wanted.fixed:
            return "point"
        if compiled.program(wanted) is not None:
            if point in (*wanted.grid().points, wanted.check()):
                return "node"
            return "length" if wanted.fixed else "regime"
    raise AssertionError("the last regime is the point")


def same(log: Log, direct: Log) -> bool:
    """Whether two runs are one: every allocation and release, in order, each tensor, the moments."""
    return (
        log.events == direct.events
        and log.marks == direct.marks
        and all(
            replace(mine, via=theirs.via) == theirs
            for mine, theirs in zip(log.storages, direct.storages, strict=True)
        )
    )


def errors_of(ours: Prediction, theirs: Prediction) -> Document:
    """Relative errors of the peak, the worst moment, what is reserved and the smallest capacity."""

    def share(mine: int | None, other: int | None) -> float:
        return abs((mine or 0) / (other or 1) - 1)

    return {
        "peak": share(ours.peak.allocated_bytes, theirs.peak.allocated_bytes),
        "moment": max(
            share(ours.moment(each.moment).allocated_bytes, each.allocated_bytes) for each in theirs.moments
        ),
        "reserved": share(ours.peak.reserved_bytes, theirs.peak.reserved_bytes),
        "capacity": share(ours.smallest_capacity_bytes, theirs.smallest_capacity_bytes),
    }


def recorded(path: Path) -> list[Document]:
    """What a file holds: the last document of each architecture."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list({found["model_type"]: found for found in map(json.loads, lines)}.values())


# ---- the table ---------------------------------------------------------------------------------------------

HEAD = """# Compiled traces against direct ones

Written by `python benchmarks/compiled_traces.py --table > docs/compiled.md` from
`measurements/compiled.jsonl` (digest {digest}); a test fails when it is another's. No GPU took part.

Where the formula has no family for an architecture, `memplan` traces it and, where more than one size is
asked, compiles the trace: the events of a few sizes are matched, each tensor's dimensions are solved as
polynomials in micro-batch and sequence length, and the workspaces of kernels are asked of the kernels' own
rules at every new size. Each row is a model class of transformers {transformers} with its default
configuration cut to a few layers, compiled once and compared with a direct trace at sizes that were not
among those it was solved from. Errors are of the worst size.
"""
COLUMNS = """| architecture | parameters | setup | compared at | peak | reserved | capacity |
|---|---|---|---|---|---|---|"""


def table(results: list[Document], digest: str) -> str:
    """docs/compiled.md."""
    ran = sorted((each for each in results if each["sizes"]), key=lambda each: each["model_type"])
    left = sorted((each for each in results if not each["sizes"]), key=lambda each: each["model_type"])
    sizes = [size for each in ran for size in each["sizes"]]
    lines = [HEAD.format(digest=digest, transformers=ran[0]["versions"]["transformers"]), COLUMNS]
    lines += [row(each) for each in ran]
    lines += ["", *summary(ran, sizes)]
    by_length = [f"`{each['model_type']}`" for each in ran if each["sizes"][0]["from"] == "length"]
    if by_length:
        lines += [
            "",
            "Where the events themselves depend on the length (layers that walk the sequence in chunks, an "
            "indexer that chooses as many keys as there are) a program holds for one length and every "
            "micro-batch beyond 1; another length, and a micro-batch of 1, are traced: "
            f"{', '.join(by_length)}.",
        ]
    lines += ["", "## Not compared", "", "| architecture | reason |", "|---|---|"]
    lines += [f"| {each['model_type']} | {reason(each['refused'])} |" for each in left]
    return "\n".join(lines) + "\n"


def row(each: Document) -> str:
    """One architecture's line."""
    fields = each["fields"]
    setup = [fields["method"], fields["attention"], fields["optimizer"]]
    setup += [f"checkpointing {fields['checkpointing']}"] if fields["checkpointing"] != "none" else []
    setup += ["padded"] if fields["padded"] else []
    points = ", ".join(f"{batch} x {length}" for batch, length in (size["point"] for size in each["sizes"]))
    worst = (max(size[name] for size in each["sizes"]) for name in ("peak", "reserved", "capacity"))
    return (
        f"| {each['model_type']} | {each['parameters'] / 1e9:.2f} B | {', '.join(setup)} | {points} | "
        f"{' | '.join(share(value) for value in worst)} |"
    )


def share(value: float) -> str:
    """An error in percent; nothing at all is told from little."""
    return "0" if value == 0 else f"{value:.4%}"


def summary(ran: list[Document], sizes: list[Document]) -> list[str]:
    """What all of them show."""
    peaks = [size["peak"] for size in sizes]
    equal = sum(size.get("equal", False) for size in sizes)
    return [
        f"**{len(ran)} architectures, {len(sizes)} sizes: peak allocated median "
        f"{share(statistics.median(peaks))}, worst {share(max(peaks))}.** At {equal} of the sizes every "
        "allocation and release was compared, and is the direct trace's, in its order; at the others every "
        "moment's bytes, what is reserved and the smallest capacity.",
    ]


def reason(text: str) -> str:
    """A refusal as a table's cell."""
    return text.replace("|", "/").replace("<", "&lt;")[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_types", nargs="*", metavar="MODEL_TYPE")
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--again", action="store_true", help="architectures that the file has, too")
    chosen = parser.parse_args()
    if chosen.table:
        print(table(recorded(chosen.out), digest_of(chosen.out)), end="")
        return
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    known = set() if chosen.again else {each["model_type"] for each in recorded(chosen.out)}
    for model_type in chosen.model_types or model_types():
        if model_type in known:
            continue
        began = time.perf_counter()
        found = case(model_type) | {"versions": versions}
        found["seconds"] = round(time.perf_counter() - began, 1)
        with chosen.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        worst = max((max(size[n] for n in ("peak", "reserved")) for size in found["sizes"]), default=None)
        said = found.get("refused") if worst is None else f"{worst:.4%} {found['notes']}"
        print(f"{model_type}: {found['seconds']} s, {said}", flush=True)


def digest_of(path: Path) -> str:
    """The file's hash, shortened."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    main()
