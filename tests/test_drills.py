"""What a newcomer adds, each on a copy of the sources: a family, an optimizer, a GPU, a claim, a recipe, an
option of a training file, a kernel's rule. A drill names the only files that it touches (one; the family two)
and is judged by what memplan then answers; before the edit it must not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("memplan", "planner", "profiler", "validate")

SMALL = """
config = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1003, "tie_word_embeddings": False,
}


def both(config, **fields):
    \"\"\"Bytes of tensors at the peak, equal in both engines within 0.1 %.\"\"\"
    import memplan

    predictions = [memplan.plan(config, engine=engine, **fields) for engine in ("formula", "trace")]
    formula, trace = (sum(r.bytes for r in p.moment(p.step_peak.moment).rows) for p in predictions)
    assert abs(formula / trace - 1) <= 1e-3, (formula, trace)
    return formula


def answered(*line):
    \"\"\"The JSON document of a command.\"\"\"
    import json, subprocess, sys

    done = subprocess.run([sys.executable, "-m", "memplan", *line, "--json"], capture_output=True, text=True)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)
"""


@dataclass(frozen=True)
class Drill:
    """`edits`: (file, the line before which a text is put, the text). `check` is Python that passes only
    afterwards.
    """

    name: str
    edits: tuple[tuple[str, str, str], ...]
    check: str
    without: tuple[str, str, str] | None = None  # (file, first, last line) that the copy does not have yet

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        """Those that run the libraries take some ten seconds each."""
        runs = "torch" in self.check or "both(" in self.check.replace("def both(", "")
        return [pytest.mark.slow, pytest.mark.trace] if runs else []


MUON = """    Optimizer(
        name="muon",
        cls="torch.optim.Muon",
        states=(("momentum_buffer", "like"),),
        step={"loop": _MUON},
        source="torch 2.13 optim/_muon.py",
        others="adamw_torch",
    ),
"""

SANDWICH = """
import transformers
from transformers.models.llama import modeling_llama


class SandwichConfig(transformers.LlamaConfig):
    model_type = "sandwich"


class SandwichLayer(modeling_llama.LlamaDecoderLayer):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.post_mlp_layernorm = modeling_llama.LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, **kwargs):
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states=hidden_states, **kwargs)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.post_mlp_layernorm(hidden_states)
        return residual + hidden_states


class SandwichForCausalLM(modeling_llama.LlamaForCausalLM):
    config_class = SandwichConfig

    def __init__(self, config):
        super().__init__(config)
        layers = (SandwichLayer(config, i) for i in range(config.num_hidden_layers))
        self.model.layers = torch.nn.ModuleList(layers)


transformers.AutoConfig.register("sandwich", SandwichConfig)
transformers.AutoModelForCausalLM.register(SandwichConfig, SandwichForCausalLM)
"""

DRILLS = (
    Drill(
        "a family: Llama with one more norm",
        (
            (
                "planner/inputs/families/llama.py",
                "def mistral(c: Fields) -> ModelSpec:\n",
                '''def sandwich(c: Fields) -> ModelSpec:
    """Llama with a norm on what the MLP gives."""
    layer = Layer(gqa(c), gated_mlp(c), (*pre_norm(c), *norms(c, ("post_mlp_layernorm", "post_mlp"))))
    return assemble(c, "SandwichForCausalLM", [layer] * c.layers())


''',
            ),
            (
                "planner/inputs/families/table.py",
                '    "smollm3": llama.smollm3,\n',
                '    "sandwich": llama.sandwich,\n',
            ),
        ),
        f"import torch\n{SANDWICH}\n{SMALL}\n"
        "import memplan\n"
        "mine = config | {'model_type': 'sandwich'}\n"
        "llama, found = (memplan.plan(c, method='lora').total_parameters for c in (config, mine))\n"
        "assert found == llama + 3 * 256\n"
        "both(mine, method='full', micro_batch=2, sequence_length=256)\n"
        "both(mine, method='qlora', micro_batch=2, sequence_length=256)\n",
    ),
    Drill(
        "an optimizer: Muon",
        (("planner/tables/optimizers.py", '    Optimizer(\n        name="schedule_free_adamw",\n', MUON),),
        f"{SMALL}\n"
        "fields = {'method': 'full', 'sequence_length': 64}\n"
        "muon, adam = (both(config, optimizer=name, **fields) for name in ('muon', 'adamw_torch'))\n"
        "assert muon < adam\n",
        (
            "planner/tables/optimizers.py",
            "    Optimizer(\n        # embeddings, the output projection",
            '    Optimizer(\n        name="schedule_free_adamw"',
        ),
    ),
    Drill(
        "a GPU",
        (
            (
                "planner/tables/gpus.json",
                '      "rtx-5090": {',
                '      "rtx-6090": {"marketing_gb": 48, "usable_bytes": 50000000000, "source": "derived-gddr"'
                ', "capability": [12, 0], "sms": 200, "bandwidth_gbs": 2000, "bf16_tflops": 300},\n',
            ),
        ),
        "import memplan\n"
        "found = memplan.plan('llama-7b', method='qlora', gpu='rtx-6090')\n"
        "assert found.setup.gpu == 'rtx-6090'\n"
        "verdict = found.gpus[0]\n"
        "assert (verdict.name, verdict.verdict, verdict.usable_bytes) == ('rtx-6090', 'fits', 50000000000)\n",
    ),
    Drill(
        "a claim",
        (
            (
                "validate/claims.toml",
                '[[claim]]\nid = "1"\n',
                """[[claim]]
id = "drill"
reading = "A fp32 checkpoint has four bytes for each parameter"
zh = "fp32 权重文件每参数 4 字节"
sources = [{ document = "drill", quote = "four bytes" }]
[[claim.part]]
what = "bytes of the checkpoint per parameter"
zh = "权重文件每参数字节数"
check = "quantity"
model = "llama-7b"
setup = { method = "full", recipe = "raw", weight_dtype = "float32" }
quantity = "checkpoint"
per = [{ quantity = "parameters" }]
unit = "B/parameter"
relation = "="
claimed = 4

""",
            ),
        ),
        f"{SMALL}\nassert answered('claims', '--only', 'drill')['claims'][0]['verdict'] == 'supported'\n",
    ),
    Drill(
        "a recipe",
        (
            (
                "planner/tables/recipes.py",
                '    "paper": Recipe(\n',
                """    "ours": Recipe(
        "ours",
        "our own Trainer script",
        TRAINER,
        {"optimizer": "adamw_torch_fused", "autocast": "bfloat16", "checkpointing": "reentrant"},
        methods={"adapters": {"rank": 4, "targets": ("attention",)}},
        sources={"rank": "ours: train.py", "targets": "ours: train.py", "checkpointing": "ours: train.py"},
    ),
""",
            ),
        ),
        f"{SMALL}\nimport memplan\n"
        "both(config, method='lora', recipe='ours', micro_batch=2, sequence_length=256)\n"
        "setup = memplan.plan(config, method='lora', recipe='ours').setup\n"
        "assert (setup.rank, setup.checkpointing, setup.autocast) == (4, 'reentrant', 'bfloat16')\n",
    ),
    Drill(
        "an option of a training file that moves memory",
        (
            (
                "planner/importers/llamafactory.py",
                '    "upcast_layernorm": use(',
                '    "norms_in": use("upcast_modules", lambda _, x: "norms" if x == "fp32" else "none"),\n',
            ),
        ),
        f"{SMALL}\nimport json, pathlib\n"
        "pathlib.Path('model').mkdir()\n"
        "pathlib.Path('model/config.json').write_text(json.dumps(config))\n"
        "found = []\n"
        "for value in ('fp32', 'bf16'):\n"
        "    pathlib.Path('train.yaml').write_text(\n"
        "        f'model_name_or_path: model\\nstage: sft\\nfinetuning_type: lora\\ncutoff_len: 256\\n'\n"
        "        f'per_device_train_batch_size: 2\\nbf16: true\\nnorms_in: {value}\\n')\n"
        "    found.append(answered('train.yaml')['step_peak']['allocated_bytes'])\n"
        "assert found[0] - found[1] >= 7 * 256 * 2, found\n",
    ),
    Drill(
        "a kernel's rule",
        (
            (
                "planner/trace/device/kernels_table.py",
                "RULES: dict[str, KernelRule] = {\n",
                '''def _renorm(c: OpCall) -> Iterator[Workspace]:
    """renorm_out: the norms of all rows, and the factors that they give."""
    rows = c.args[0].shape[c.args[2]]
    yield Workspace("norms", rows * 4)
    yield Workspace("factors", rows * 4)


''',
            ),
            (
                "planner/trace/device/kernels_table.py",
                '    **{f"aten::{name}": _FACTORY for name in _FACTORIES},\n',
                '    "aten::renorm": KernelRule("native/Normalization.cpp renorm_out", _renorm),\n',
            ),
        ),
        "import torch\n"
        "from memplan.planner.trace.device.target import Target\n"
        "from memplan.planner.trace.kernels import Kernels\n"
        "kernels, x = Kernels(Target('cuda', (8, 0), 108)), torch.empty(6, 8, device='meta')\n"
        "op = torch.ops.aten.renorm.default\n"
        "assert kernels.status(op) == 'source'\n"
        "found = {w.name: w.nbytes for w in kernels(op, (x, 2.0, 0, 1.0), (x,))}\n"
        "assert found == {'norms': 24, 'factors': 24}\n",
    ),
)


def run(folder: Path, check: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    return subprocess.run(
        [sys.executable, "-c", check],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def differing(folder: Path) -> Sequence[str]:
    """The source files that are not those of the repository."""
    return sorted(
        str(path.relative_to(folder))
        for name in SOURCES
        for path in (folder / name).rglob("*")
        if path.is_file() and path.read_bytes() != (ROOT / path.relative_to(folder)).read_bytes()
    )


@pytest.mark.parametrize("drill", [pytest.param(each, marks=each.marks, id=each.name) for each in DRILLS])
def test_a_newcomer_touches_one_file(drill: Drill, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    if drill.without is not None:
        path, first, last = tmp_path / drill.without[0], *drill.without[1:]
        text = path.read_text(encoding="utf-8")
        path.write_text(text[: text.index(first)] + text[text.index(last) :], encoding="utf-8")
    check = textwrap.dedent(drill.check)
    before = run(tmp_path, check)
    assert before.returncode == 1, before.stderr
    for leftover in ("model", "train.yaml"):
        path = tmp_path / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name, anchor, addition in drill.edits:
        path = tmp_path / name
        text = path.read_text(encoding="utf-8")
        assert text.count(anchor) == 1, (name, anchor)
        path.write_text(text.replace(anchor, addition + anchor), encoding="utf-8")
    after = run(tmp_path, check)
    assert after.returncode == 0, after.stderr[-3000:]
    touched = {name for name, _, _ in drill.edits}
    assert set(differing(tmp_path)) <= touched
    assert len(touched) == (2 if "family" in drill.name else 1)
