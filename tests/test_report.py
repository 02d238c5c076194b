"""The page: under 400 kB, loads nothing, escapes everything, and computes in JavaScript exactly what Python
computes.
"""

import html
import json
import re
import shlex
import threading
import urllib.error
import urllib.request
from random import Random

import pytest
from click.testing import CliRunner
from page_scripts import answers, needs_node, page_data

from memplan.cli.report import command, on_a_card
from memplan.cli.subject import read_subject
from memplan.cli.ui import form, make_server, respond
from memplan.planner.answers.fit.changes import single_changes
from memplan.planner.answers.fit.frontier import Room
from memplan.planner.answers.report_changes import contents
from memplan.planner.answers.report_data import packed
from memplan.planner.answers.report_structures import class_of, kernel_classes
from memplan.planner.formula.engine import plan, rank_of, symbolic
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.gpus import find_gpu, gpus
from memplan.render.html import LARGEST_PAGE, page

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


@needs_node
@pytest.mark.parametrize("config", [LLAMA, WINDOWED], ids=["llama", "sliding window"])
def test_javascript_equals_python_on_a_grid(tmp_path, config, monkeypatch):
    spec, setup = find(config).spec(), resolve({"method": "lora"})
    monkeypatch.undo()
    made = contents(spec, setup, wide=False)
    assert len(made.found) >= 20
    points = [
        (entry, batch, seq, rank)
        for entry in made.found[::2]
        for batch in (1, 2, 64)
        for seq in (1, 299, 300, 131072)
        for rank in (1, 16)
    ]
    body = """
      const found = moments(...point);
      for (const name in found) componentsOf(found[name]);
      return found;
    """
    shown = answers(tmp_path, made, [(entry.key, *rest) for entry, *rest in points], body)
    for (entry, *values), answer in zip(points, shown, strict=True):
        totals = symbolic(spec, entry.setup).totals(*values)
        assert {name: moment["total"] for name, moment in answer.items()} == totals.moments
        for name, moment in answer.items():
            assert sum(moment["components"]) == totals.moments[name]


def make(config=None, name="tiny", **fields):
    model = find(config or LLAMA)
    spec, setup = model.spec(), resolve({"gpu": "t4", "sequence_length": 512, **fields})
    from dataclasses import replace

    spec = replace(spec, name=name)
    return page(spec, setup, plan(spec, setup), find_gpu("t4"), wide=False)


@pytest.mark.parametrize("model", ["gpt2", pytest.param("llama-3.1-8b", marks=pytest.mark.slow)])
def test_the_page_is_small_and_loads_nothing(model, monkeypatch):
    monkeypatch.undo()  # with all that there is room for
    spec, setup = find(model).spec(), resolve({"method": "qlora", "gpu": "rtx-4090", "sequence_length": 1024})
    text = page(spec, setup, plan(spec, setup), find_gpu("rtx-4090"))
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


def test_the_page_says_what_to_know():
    text = make(micro_batch=4)
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


@pytest.mark.parametrize("gpu", [None, pytest.param("h100-80gb", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("model", "fields"), [("gpt2", {}), pytest.param("qwen3-4b", {"seq": 512}, marks=pytest.mark.slow)]
)
def test_every_structure_of_a_page_is_that_of_its_command(model, fields, gpu, monkeypatch):
    """Also on GPUs with other kernels, which the page holds for the setup asked for."""
    monkeypatch.undo()
    subject, chosen = on_a_card(read_subject(model, {**fields, "gpu": gpu}))
    spec, random = subject.model.spec(), Random(20261128)
    made = contents(spec, subject.setup, wide=gpu is not None)
    assert len({entry.kernels for entry in made.found}) == len(kernel_classes())
    for entry in random.sample(made.found, 16):
        batch, sequence = random.choice((1, 2, 8)), random.randrange(8, min(4096, spec.max_positions), 8)
        asked = {"method": entry.method, "gpu": entry.setup.gpu, "checkpointing": entry.checkpointing}
        asked |= {"loss": entry.loss, "attention": entry.attention, "rank": random.choice((1, 8, 64))}
        direct = resolve({**asked, "micro_batch": batch, "sequence_length": sequence})
        shown = symbolic(spec, entry.setup).totals(batch, sequence, rank_of(direct))
        assert shown.peak == plan(spec, direct).peak.allocated_bytes, (asked, batch, sequence)


def test_what_would_save_is_computed_for_the_gpu_that_was_chosen():
    subject, chosen = on_a_card(read_subject("gpt2", {}))
    room = Room(chosen, 0.0)
    named = read_subject("gpt2", {"gpu": chosen.name})
    own, other = (single_changes(s.model.spec(), s.setup, room) for s in (subject, named))
    assert [(e.text, e.saved, e.after) for e in own] == [(e.text, e.saved, e.after) for e in other]


def test_every_gpu_of_the_table_is_offered_and_says_what_it_cannot_run_or_nobody_counts(monkeypatch):
    monkeypatch.undo()
    spec = find("gpt2").spec()
    made = contents(spec, resolve({"gpu": "a10g", "attention": "flash_attention_2"}), wide=False)
    cards = {card["name"]: card for card in page_data(made)["cards"]}
    assert cards.keys() == gpus().keys()
    assert [c["usable"] for c in cards.values()] == sorted(c["usable"] for c in cards.values())
    assert "8.0 or later" in cards["t4"]["cannot"] and cards["a100-80gb"]["cannot"] is None
    assert "no run on this vendor" in cards["mi300x"]["missing"][0] and cards["t4"]["missing"] == []
    refused = [key for key in made.refused if key.endswith(f"|{class_of(find_gpu('t4'))}")]
    assert refused and all("8.0 or later" in made.refused[key] for key in refused)


@pytest.mark.parametrize(
    ("fields", "fixed"),
    [
        ({}, None),
        ({"optimizer": "adamw_bnb_8bit", "rank": 12}, 12),
        ({"parallel": "zero2", "gpus": 2, "rank": 24}, 24),
        ({"optimizer": "adamw_bnb_8bit", "method": "adalora", "init_rank": 14}, 14),
    ],
)
def test_the_rank_is_fixed_where_it_belongs_to_the_structure(fields, fixed):
    setup = resolve({"method": "lora", "gpu": "a10g", **fields})
    made = contents(find(LLAMA).spec(), setup, wide=False)
    own = page_data(made)["fixed"]
    assert own.get(made.found[0].key) == fixed
    assert set(own) == (set() if fixed is None else {entry.key for entry in made.found})


def test_what_a_file_cannot_hold_is_said():
    made = contents(find(LLAMA).spec(), resolve({"gpu": "t4"}))
    assert not made.complete and len(made.found) == 8  # what the setup asked for needs is there anyway
    text = html.unescape(make())
    assert "this page holds 8 combinations" in text and "more would not fit 400 kB" in text


def test_a_command_names_the_file_of_a_model_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my models").mkdir()
    (tmp_path / "my models" / "config.json").write_text(json.dumps(LLAMA))
    for typed in ("./my models", "my models/config.json"):
        run(typed, "--seq", "64", "-o", "a.html")
        text = (tmp_path / "a.html").read_text()
        shown = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
        words = shlex.split(shown["command"])
        assert words[0] == typed
