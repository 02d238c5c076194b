"""The formula's reserved bytes of one rank against dry runs of ranks: `python benchmarks/ranks.py N --python
CUDA_PYTHON --out FILE`.

Each case is a random small model under DDP or FSDP2, in a plain loop (tests/dryrun_scripts/rank_loop.py)
or transformers' Trainer (rank_trainer.py), which `memplan dry-run` runs unmodified for three steps. FILE
keeps one JSON document a line, and a run goes on where the file ends. `--page FILE` predicts the recorded
runs and prints docs/ranks.md; `--show FILE` lists them, worst first. A dry run is no GPU measurement.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests" / "dryrun_scripts"
sys.path.insert(0, str(ROOT / "tests"))

from dryrun_hub import layout  # noqa: E402

from memplan.planner.formula.engine import replay_of  # noqa: E402
from memplan.planner.formula.replay.engine import Replayed  # noqa: E402
from memplan.planner.inputs.models import find  # noqa: E402
from memplan.planner.inputs.setup import resolve  # noqa: E402
from memplan.planner.tables.torch_versions import nearest  # noqa: E402

STEPS = 3  # DDP makes its buckets again in the second
GPU = "a100-80gb"
LOOPS = {"raw": "rank_loop.py", "hf": "rank_trainer.py"}
LIBRARIES = ("transformers", "peft", "bitsandbytes", "accelerate")
FSDP1_FROM = 48  # the number of the first case of FSDP1
Document = dict[str, Any]


def config(rng: random.Random) -> Document:
    """A small llama."""
    heads = rng.choice((8, 16))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": heads * 64,
        "intermediate_size": rng.choice((1376, 2048, 2816)),
        "max_position_embeddings": 4096,
        "num_attention_heads": heads,
        "num_hidden_layers": rng.choice((6, 8, 12)),
        "num_key_value_heads": rng.choice((2, 4, 8)),
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": rng.random() < 0.25,
        "vocab_size": rng.choice((8000, 16000, 32000)),
        "dtype": "bfloat16",
        "pad_token_id": 0,
    }


def case(seed: int, number: int) -> tuple[Document, Document]:
    """Case `number` of a seed: (the model's config, the setup's fields)."""
    rng = random.Random(f"{seed}-{number}-ranks")
    version = 1 if number >= FSDP1_FROM else 2
    kinds = (("fsdp", "hf"), ("fsdp", "raw"), ("ddp", "hf"), ("ddp", "raw"))
    parallel, recipe = kinds[number % (4 if version == 2 else 2)]
    method = rng.choice(("full", "lora", "qlora"))
    fields: Document = {
        "parallel": parallel,
        "recipe": recipe,
        "method": method,
        "gpus": 2 if (parallel, recipe) != ("fsdp", "raw") else rng.choice((2, 4, 8)),
        "micro_batch": rng.choice((1, 2, 4)),
        "sequence_length": rng.choice((256, 512, 777)),
        "checkpointing": rng.choice(("none", "non_reentrant")),
        "padded": False,
        "load": "pretrained",
        "gpu": GPU,
    }
    if method != "full":
        fields["rank"] = rng.choice((8, 16, 64))
    if parallel == "fsdp":
        fields["reshard_after_forward"] = rng.random() < 0.75
        if version == 1:
            fields["fsdp_version"] = 1
            fields["use_orig_params"] = rng.random() < 0.5
            fields["backward_prefetch"] = rng.choice(("none", "pre", "post"))
        if method != "full" and (recipe == "raw" or (method == "qlora" and version == 2)):
            fields["adapter_dtype"] = "bfloat16"  # the parameters that a unit gathers have one dtype
        if method == "qlora":
            fields |= {"quant_storage": "bfloat16", "kbit_prepare": False}
    elif recipe == "raw":
        fields["gradient_as_bucket_view"] = rng.random() < 0.5
    if recipe == "raw":
        fields |= {"retain_outputs": True, "gradient_accumulation": rng.choice((1, 1, 2))}
    return config(rng), fields


def dry_run(python: str, model: Mapping[str, Any], fields: Mapping[str, Any]) -> Document:
    """The bytes that the rank that needs most reserves at most, or why there are none."""
    with tempfile.TemporaryDirectory() as place:
        folder = layout(Path(place) / "hub", dict(model)) / "model"
        alone = (fields["parallel"], fields["recipe"]) == ("fsdp", "raw")
        launch = [] if alone else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        script = [str(SCRIPTS / LOOPS[fields["recipe"]]), str(folder), json.dumps(fields)]
        gpus = ["--gpu", GPU, "--gpus", "1" if alone else "2"]
        options = ["--python", python, "--random-weights", "--steps", str(STEPS), "--json"]
        words = ["-m", "memplan", "dry-run", *gpus, *options, "--", python, *launch, *script]
        done = subprocess.run(
            [sys.executable, *words], cwd=place, capture_output=True, text=True, check=False
        )
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1][:300]}
    found = json.loads(done.stdout)
    names = {"allocated": "allocated_bytes", "reserved": "reserved_bytes"}
    peaks = {name: max(m[key] for m in found["moments"]) for name, key in names.items()}
    return {"torch": found["torch"], "dry_run": peaks}


def predicted(record: Mapping[str, Any]) -> Replayed:
    """The formula's replay of a recorded run."""
    setup = resolve({**record["fields"], "torch": nearest(record["torch"])})
    found = replay_of(find(record["config"]).spec(), setup)
    assert found is not None, "its strategy is replayed"
    return found


def error(record: Mapping[str, Any]) -> float:
    """Reserved: the formula less the dry run, as a share of the dry run; of the two courses that DDP's race
    leaves open the nearer one, of FSDP1's the one without the host's lead, which stubs have not.
    """
    seen, found = record["dry_run"]["reserved"], predicted(record).reserved_of
    if record["fields"]["parallel"] != "ddp":
        return min(found) / seen - 1
    return min((each / seen - 1 for each in found), key=abs)


def kind(record: Mapping[str, Any]) -> tuple[str, str]:
    """What a row of the table has in common."""
    fields = record["fields"]
    return f"{fields['parallel']}{fields.get('fsdp_version', '')}", fields["recipe"]


NAMES = {
    "ddp": "DDP",
    "fsdp": "FSDP2",
    "fsdp1": "FSDP1",
    "raw": "a plain loop",
    "hf": "transformers' Trainer",
}


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Errors of reserved by strategy and loop, as a Markdown table."""
    ran = [record for record in records if "dry_run" in record]
    errors = [abs(error(record)) for record in ran]
    lines = ["| ranks | in | dry runs | equal | median | worst |", "|---|---|---|---|---|---|"]
    for key in sorted({kind(record) for record in ran}):
        found = [size for size, record in zip(errors, ran, strict=True) if kind(record) == key]
        lines.append(_row(" | ".join(NAMES[each] for each in key), found))
    return "\n".join([*lines, _row("all | ", errors)])


def _row(name: str, errors: Sequence[float]) -> str:
    equal, median, worst = sum(not size for size in errors), statistics.median(errors), max(errors)
    return f"| {name} | {len(errors)} | {equal} | {median:.2%} | {worst:.2%} |"


PAGE = """# What a rank reserves, against dry runs

Written by `python benchmarks/ranks.py --page measurements/dryrun_ranks.jsonl > docs/ranks.md` (records
{digest}); a test fails when it is of others. No GPU took part.

Random small llamas (full, LoRA, QLoRA; with and without checkpointing, accumulation in plain loops) on two
ranks, FSDP's plain loops on two to eight, torch {torch}: scripts that `memplan dry-run` ran unmodified for
{steps} steps, and what the formula's replay of the rank reserves at most.

{table}

What is written out as events, each read in the libraries' source and seen in these runs:

* **DDP**: as it is wrapped, the model goes to all ranks in flat copies of 250 MiB, two at once; then one
  bucket of each dtype for all gradients. Before the second step's forward the buckets are made anew, 1 MiB
  and then 25 MiB each, in the order in which gradients came. Where unused parameters are looked for (the
  Trainer without checkpointing or with an adapter) buckets have that size from the start and stay.
* **DDP's race**: the work that reduced the first buckets holds them until NCCL's watchdog, which looks every
  100 ms, has seen that it is done, and until the next collective begins. The new buckets then find the old
  ones gone or not. Both courses are replayed: the larger is what must be there for a FITS, the smaller
  decides what survives. The table has the error of the nearer one. In {races} of these runs the two reserve
  different amounts; {least} of them are nearer to the course without the old buckets, and the larger one is
  up to {above:.0%} too high.
* **FSDP2**: units are whole on the device, then cut; of accelerate's, embedding and head stay whole until
  all units are cut, and of a quantized model every tensor. The all-gather's output and the shards cast for
  it come from a stream of their own, the reduce-scatter's output (which the gradients are views of) from
  another; a block serves the stream that first asked for it alone.
* **FSDP1**: units are whole on the device, joined in a flat tensor, then cut, from the inside out; accelerate
  makes trained parts float32, and with use_orig_params the narrow ones stay until the first forward. The flat
  tensor and the joined gradients (the backward of `torch.split`, where the views were made) come from the
  stream that gathers. A frozen layer goes when the one before it has been gathered; the root stays. Adapters
  are units of their own, and with use_orig_params their inputs are copied in float32, the dtype of the part
  that a module has between forwards.
* **FSDP1's lead**: what a unit lets go may be used again when the GPU has come there; stubs are there at
  once. With `limit_all_gathers` the host waits for the unit before the last one: one more flat tensor and one
  more joined gradient are in the larger course, which must be there for a FITS (the table has the smaller
  one). The allocator takes them back before it gives up, so that the smaller course decides what survives.
* Named on the way: accelerate 1.15 sets FSDP1's sharding strategy from `FSDP_SHARDING_STRATEGY` (FULL_SHARD)
  before it looks at `reshard_after_forward` (utils/dataclasses.py), which is all that transformers 5.24
  passes: `fsdp="shard_grad_op"` runs as FULL_SHARD.

Not replayed: ZeRO, offloading; under FSDP gradient accumulation of accelerate (`no_sync` keeps whole
gradients on every rank), Adagrad, an optimizer in the backward, a second model, a base stored quantized;
FSDP1 with other adapters than LoRA, `modules_to_save`, `target_parameters`. Not judged here: models of other
families, more than two real ranks, real GPUs.
"""


def page(path: Path) -> str:
    """docs/ranks.md."""
    records = [record for record in recorded(path) if "dry_run" in record]
    raced = [
        (record["dry_run"]["reserved"], predicted(record).reserved_of)
        for record in records
        if record["fields"]["parallel"] == "ddp"
    ]
    raced = [(seen, found) for seen, found in raced if len(set(found)) > 1]
    return PAGE.format(
        digest=digest(path),
        torch=records[0]["torch"].split("+")[0],
        steps=STEPS,
        table=table(records),
        races=len(raced),
        least=sum(abs(early - seen) <= abs(late - seen) for seen, (late, early) in raced),
        above=max(max(found) / seen - 1 for seen, found in raced),
    ).rstrip()


def digest(path: Path) -> str:
    """What tells a file's records from others."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def recorded(path: Path | None) -> list[Document]:
    """The records of a file."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int, nargs="?", default=40)
    parser.add_argument("--python", help="an interpreter with a CUDA build of torch")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON lines, one a case")
    parser.add_argument("--page", type=Path, help="print docs/ranks.md from a file of records")
    parser.add_argument("--show", type=Path, help="list a file's runs, worst first")
    arguments = parser.parse_args()
    if arguments.page:
        print(page(arguments.page))
        return
    if arguments.show:
        ran = [record for record in recorded(arguments.show) if "dry_run" in record]
        for off, record in sorted(((error(r), r) for r in ran), key=lambda pair: -abs(pair[0])):
            print(f"{off:+.3%} #{record['case']} {json.dumps(record['fields'])}")
        return
    if not arguments.python:
        parser.error("--python names the interpreter with a CUDA build of torch")
    records = recorded(arguments.out)
    versions = {name: version(name) for name in LIBRARIES}
    for number in range(max((r["case"] + 1 for r in records), default=0), arguments.count):
        model, fields = case(arguments.seed, number)
        found = {"case": number, "seed": arguments.seed, "fields": fields, "config": model, **versions}
        found |= dry_run(arguments.python, model, fields)
        print(
            number,
            fields["parallel"],
            fields["recipe"],
            fields["method"],
            found.get("refused", ""),
            flush=True,
        )
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
