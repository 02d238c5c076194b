"""The page: under 400 kB, loads nothing, escapes everything, and computes in JavaScript exactly what Python
computes.
"""

import html
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

import memplan
from memplan.cli.report import cards_of, command, on_a_card, page_of
from memplan.cli.subject import read_subject
from memplan.cli.ui import form, make_server, respond
from memplan.planner.answers.fit.changes import single_changes
from memplan.planner.answers.fit.frontier import Room
from memplan.planner.answers.report_data import packed, script, structures
from memplan.planner.formula.engine import plan, rank_of, symbolic
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.gpus import common_gpus, find_gpu
from memplan.render.html import LARGEST_PAGE, page

PAGE = Path(memplan.__file__).parent / "render" / "report_formula.js"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4000,
    "architectures": ["LlamaForCausalLM"],
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
WINDOWED = {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 300}

HARNESS = """
const fs = require("fs");
const [page, structuresFile, pointsFile] = process.argv.slice(2);
const source = fs.readFileSync(page, "utf8");
const own = source.slice(source.indexOf("function guardOf("), source.indexOf("function peak("));
const structures = eval(fs.readFileSync(structuresFile, "utf8"));
const all = "(...point) => { const found = moments(...point); "
  + "for (const name in found) componentsOf(found[name]); return found; }";
const made = new Function("structures", "data", own + "; return " + all);
const moments = made(structures, { components: WIDTH });
const points = JSON.parse(fs.readFileSync(pointsFile, "utf8"));
console.log(JSON.stringify(points.map((point) => moments(...point))));
"""
"""What the page's own script computes for a list of slider positions."""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("config", [LLAMA, WINDOWED], ids=["llama", "sliding window"])
def test_javascript_equals_python_on_a_grid(tmp_path, config):
    spec, setup = find(config).spec(), resolve({"method": "lora"})
    found = structures(spec, setup)
    assert len(found) >= 6
    points = [
        (entry, batch, seq, rank)
        for entry in found
        for batch in (1, 2, 7, 64)
        for seq in (1, 128, 299, 300, 4096, 131072)
        for rank in (1, 16)
    ]
    (tmp_path / "structures.js").write_text(script(spec, found, {}))
    (tmp_path / "points.json").write_text(json.dumps([(entry.key, *rest) for entry, *rest in points]))
    (tmp_path / "harness.js").write_text(HARNESS.replace("WIDTH", json.dumps(COMPONENTS)))
    files = [tmp_path / "harness.js", PAGE, tmp_path / "structures.js", tmp_path / "points.json"]
    output = subprocess.run(["node", *files], capture_output=True, text=True, timeout=120, check=True)
    for (entry, *values), answer in zip(points, json.loads(output.stdout), strict=True):
        totals = symbolic(spec, entry.setup).totals(*values)
        assert {name: moment["total"] for name, moment in answer.items()} == totals.moments
        for name, moment in answer.items():
            assert sum(moment["components"]) == totals.moments[name]


def make(config=None, name="tiny", **fields):
    model = find(config or LLAMA)
    spec, setup = model.spec(), resolve({"gpu": "t4", "sequence_length": 512, **fields})
    from dataclasses import replace

    spec = replace(spec, name=name)
    return page(spec, setup, plan(spec, setup), find_gpu("t4"), common_gpus())


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gpt2"])
def test_the_page_is_small_and_loads_nothing(model):
    spec, setup = find(model).spec(), resolve({"method": "qlora", "gpu": "rtx-4090", "sequence_length": 1024})
    text = page(spec, setup, plan(spec, setup), find_gpu("rtx-4090"), common_gpus())
    assert len(text.encode()) < LARGEST_PAGE
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", text)
    assert "@@" not in text


def test_the_same_input_gives_the_same_page():
    assert make() == make() and packed("x" * 100) == packed("x" * 100)


HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u2028"


def test_every_string_that_came_from_a_file_is_escaped():
    text = make({**LLAMA, "_name_or_path": HOSTILE}, name=HOSTILE)
    assert "<img" not in text and "onerror=alert(1)>" not in text.replace("onerror=alert(1)&gt;", "")
    assert text.count("</script>") == text.count("<script")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert data["model"] == HOSTILE


def test_the_page_says_what_would_help_and_what_to_know():
    text = make(micro_batch=4)
    assert "Each of these changes alone would save" in text and "<code>--checkpointing</code>" in text
    assert "Know before you run" in text and "no bfloat16 units" in text  # a T4
    assert "Know before you run" not in make(weight_dtype="float16", autocast="float16")


def run(*args):
    return CliRunner().invoke(command, list(args), standalone_mode=False)


def test_the_command_writes_the_page_and_the_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    shown = run(
        "gpt2",
        "--seq",
        "256",
        "-o",
        str(tmp_path / "a.html"),
        "--png",
        str(tmp_path / "a.png"),
        "--svg",
        str(tmp_path / "a.svg"),
    )
    assert shown.exception is None, shown.exception
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG") and b"<svg" in (
        tmp_path / "a.svg"
    ).read_bytes()


@pytest.mark.parametrize(("args", "code"), [(("--gpu", "t4"), 1), (("--gpu", "h200"), 0), ((), 0)])
def test_the_page_is_written_and_the_exit_code_says_whether_it_fits(tmp_path, args, code):
    shown = run("llama-7b", "--seq", "256", *args, "-o", str(tmp_path / "a.html"))
    assert shown.return_value == code and (tmp_path / "a.html").exists()


def test_a_measurement_is_drawn_beside(tmp_path):
    record = {
        "schema": "memplan.measurement/1",
        "moments": [
            {"name": "forward", "allocated_bytes": 123456789},
            {"name": "x", "allocated_bytes": None},
        ],
    }
    (tmp_path / "m.json").write_text(json.dumps(record))
    run("gpt2", "--seq", "256", "-o", str(tmp_path / "a.html"), "--measurement", str(tmp_path / "m.json"))
    assert '"measured":{"forward":123456789}' in (tmp_path / "a.html").read_text()


def test_a_record_without_moments_is_refused(tmp_path):
    (tmp_path / "m.json").write_text(
        json.dumps({"schema": "memplan.measurement/1", "outcome": "error", "moments": []})
    )
    shown = run(
        "gpt2", "--seq", "256", "-o", str(tmp_path / "a.html"), "--measurement", str(tmp_path / "m.json")
    )
    assert (
        shown.exception is not None
        and "no moments with sizes" in str(shown.exception)
        and not (tmp_path / "a.html").exists()
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("gpt2",), "needs an output file"),
        (("gpt2", "-o", "."), "it is a folder"),
        (("gpt2", "-o", "/no/such/folder/x.html"), "its folder does not exist"),
        (("gpt2", "--json", "-o", "x.html"), "No such option"),
    ],
)
def test_bad_commands(args, message):
    shown = run(*args)
    assert shown.exception is not None and message in str(shown.exception)


def test_ui_answers_a_model_a_mistake_and_nothing_else():
    assert respond({})[0] == 200 and "<form" in respond({})[1]
    status, text = respond({"model": "gpt2", "method": "lora", "gpu": "t4"})
    assert status == 200 and "tensor" in text
    for model in ("no-such-model", "/etc/passwd", "../secrets.json", "~/x", "<script>alert(1)</script>"):
        status, text = respond({"model": model})
        assert status == 400 and 'class="error"' in text and "<script>alert" not in text
    assert "<b>" not in form("<b>", "<b>")


def test_ui_listens_on_loopback_and_refuses_foreign_names():
    server = make_server(0)
    assert server.server_address[0] == "127.0.0.1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        assert b"<form" in urllib.request.urlopen(address, timeout=10).read()
        for path, headers, code in (
            ("/x", {}, 404),
            ("/", {"Host": "evil.example"}, 403),
            ("/?model=" + "x" * 3000, {}, 404),
            ("/?model=nope", {}, 400),
        ):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=10)
            assert caught.value.code == code
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("gpu", [None, "t4", "h100-80gb"])
@pytest.mark.parametrize(
    ("model", "fields"),
    [("gpt2", {}), ("qwen3-4b", {"seq": 512}), pytest.param("llama-7b", {}, marks=pytest.mark.slow)],
)
def test_every_slider_position_is_what_python_says_of_that_gpu(model, fields, gpu):
    """The GPU named, or chosen because it is the smallest that holds the setup: other kernels, other
    memory.
    """
    subject, chosen = on_a_card(read_subject(model, {**fields, "gpu": gpu}))
    spec, random = subject.model.spec(), Random(20261128)
    found = structures(spec, subject.setup)
    assert {entry.setup.gpu for entry in found} == {chosen.name}
    for _ in range(23):
        entry = random.choice(found)
        batch, sequence = (
            random.choice((1, 2, 8)),
            random.randrange(8, min(4096, spec.max_positions or 4096), 8),
        )
        rank = random.choice((1, 8, 64))
        asked = {"method": entry.method, "gpu": chosen.name, "checkpointing": entry.checkpointing}
        direct = resolve({**asked, "micro_batch": batch, "sequence_length": sequence, "rank": rank})
        page = symbolic(spec, entry.setup).totals(batch, sequence, rank_of(direct))
        assert page.peak == plan(spec, direct).peak.allocated_bytes, (asked, batch, sequence, rank)


def test_what_would_save_is_computed_for_the_gpu_that_was_chosen():
    subject, chosen = on_a_card(read_subject("gpt2", {}))
    room = Room(chosen, 0.0)
    named = read_subject("gpt2", {"gpu": chosen.name})
    own, other = (single_changes(s.model.spec(), s.setup, room) for s in (subject, named))
    assert [(e.text, e.saved, e.after) for e in own] == [(e.text, e.saved, e.after) for e in other]


@pytest.mark.parametrize("gpu", [pytest.param(None, marks=pytest.mark.slow), "t4", "h100-80gb"])
def test_a_page_offers_the_cards_that_its_expressions_hold_for(gpu):
    """Other kernels need other memory: on each GPU offered, the page's peak is the program's."""
    options = {"method": "lora", "gpu": gpu}
    subject = read_subject("llama-7b", options)
    offered = [card.name for card in cards_of(subject)]
    assert len(offered) < len(common_gpus()) and (gpu is None or gpu in offered)
    assert {memplan.plan("llama-7b", method="lora", gpu=name).peak.allocated_bytes for name in offered} == {
        memplan.plan("llama-7b", **options).peak.allocated_bytes
    }
    text = html.unescape(page_of(subject))
    assert (
        "GPUs that use other kernels than" in text
        and next(c.name for c in common_gpus() if c.name not in offered) in text
    )
