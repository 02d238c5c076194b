"""The page in a real headless browser: it draws, sliders move, and the numbers are Python's. Skips where
Chromium's driver is absent.
"""

import shlex
import threading

import pytest
from browsing import HERE, headless

from memplan.cli import ui
from memplan.cli.plan import command as plan_command
from memplan.cli.subject import read_subject
from memplan.planner.answers import report_structures
from memplan.planner.answers.fit.changes import single_changes
from memplan.planner.answers.fit.frontier import Room, need
from memplan.planner.answers.fit.suggest import changed
from memplan.planner.answers.report_data import LONGEST
from memplan.planner.formula.engine import plan, replay_of
from memplan.planner.inputs.models import find, names
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.gpus import find_gpu, gpus
from memplan.render.html import page
from memplan.render.text import label
from memplan.render.words import words_of

pytestmark = pytest.mark.skipif(
    not HERE,
    reason="chromium and chromium-driver are not installed: the page is not tested in a browser",
)


@pytest.fixture(scope="module")
def browser():
    with headless() as found:
        yield found


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    spec, setup, gpu = (
        find("qwen2.5-0.5b").spec(),
        resolve({"method": "qlora", "gpu": "rtx-3070"}),
        find_gpu("rtx-3070"),
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_structures, "MOST_EVENTS", 10**9)  # every loss and attention of its method
        patch.setattr(report_structures, "MOST_SERVED", 10**9)
        path.write_text(page(spec, setup, plan(spec, setup), gpu, wide=False), encoding="utf-8")
    return spec, setup, gpu, path


def expected(spec, setup, gpu):
    """Device bytes and moment of a setup, by the formula and the replay of its run."""
    peak = plan(spec, setup).peak
    return str(peak.reserved_bytes + gpu.context_bytes), peak.moment


def shown(browser):
    return browser.run("return [document.body.dataset.device, document.body.dataset.moment]")


def test_the_page_works_from_a_file_without_an_error(browser, subject):
    spec, setup, gpu, path = subject
    browser.open(path.as_uri())
    assert tuple(shown(browser)) == expected(spec, setup, gpu)
    assert shown(browser)[0] == str(plan(spec, setup).peak.reserved_bytes + gpu.context_bytes)
    assert "FITS rtx-3070" in browser.run("return document.getElementById('verdict').textContent")
    assert [entry for entry in browser.log() if entry["level"] == "SEVERE"] == []
    assert browser.run("return performance.getEntriesByType('resource').length") == 0


def test_moved_controls_recompute_what_python_computes(browser, subject):
    spec, setup, gpu, path = subject
    browser.open(path.as_uri())
    browser.move("batch", 7)
    assert tuple(shown(browser)) == expected(spec, setup.replaced(micro_batch=7), gpu)
    assert "DOES NOT FIT" in browser.run("return document.getElementById('verdict').textContent")
    browser.move("rank", 64)
    assert tuple(shown(browser)) == expected(spec, setup.replaced(micro_batch=7, rank=64), gpu)
    browser.move("method", "full")
    browser.move("checkpointing", "none")
    full = changed(setup, {"method": "full", "checkpointing": "none"}).replaced(micro_batch=7)
    assert tuple(shown(browser)) == expected(spec, full, gpu)
    browser.move("seq", 1000)
    assert tuple(shown(browser)) == expected(spec, full.replaced(sequence_length=LONGEST), gpu)
    browser.move("card", "a100-80gb")
    card = find_gpu("a100-80gb")
    assert tuple(shown(browser)) == expected(
        spec, full.replaced(sequence_length=LONGEST, gpu=card.name), card
    )


def test_every_picker_shows_what_python_says(browser, subject):
    """Losses, attentions and GPUs, those with other kernels too: device bytes and the verdict."""
    spec, setup, gpu, path = subject
    for fields in (
        {"loss": "chunked"},
        {"loss": "fused", "attention": "eager"},
        {"attention": "flash_attention_2"},
        {"card": "h100-80gb"},
        {"card": "t4"},
        {"card": "rtx-5090", "batch": 2},
        {"card": "mi300x"},
    ):
        browser.open(path.as_uri())
        for name, value in fields.items():
            browser.move(name, value)
        card = find_gpu(fields.get("card", gpu.name))
        named = {"micro_batch" if n == "batch" else n: v for n, v in fields.items() if n != "card"}
        this = changed(setup, {**named, "gpu": card.name})
        assert tuple(shown(browser)) == expected(spec, this, card), fields
        word = "least" if card.name == "mi300x" else need(spec, this).word(card)
        assert browser.run("return document.body.dataset.verdict") == word


def test_the_verdict_has_the_words_of_every_command(browser, subject):
    spec, setup, gpu, path = subject
    text = "return document.getElementById('verdict').textContent"
    seen = set()
    for batch, card in (
        (1, gpu.name),
        (4, gpu.name),
        (5, gpu.name),
        (6, gpu.name),
        (9, gpu.name),
        (1, "mi300x"),
    ):
        browser.open(path.as_uri() + f"#batch={batch}&card={card}")
        word = browser.run("return document.body.dataset.verdict")
        seen.add(word)
        assert " ".join(words_of(None if word == "least" else word)[:2]) in browser.run(text)
        if word == "least":
            assert "no verdict, not counted: mi300x's kernels" in browser.run(text)
    assert {"fits", "no", "least"} <= seen


def test_what_the_file_does_not_hold_is_a_command_and_what_cannot_run_is_said(browser, subject):
    spec, setup, gpu, path = subject
    browser.open(path.as_uri())
    browser.move("method", "lora")
    browser.move("loss", "fused")
    beyond = "return [document.body.dataset.beyond, document.getElementById('beyond').textContent]"
    kind, text = browser.run(beyond)
    assert kind == "absent" and "--method lora --checkpointing --loss fused --attention sdpa" in text
    assert (
        browser.run("return document.getElementById('rows').offsetParent") is None
    )  # nothing stale is shown
    assert browser.run("return document.body.dataset.device") is None
    browser.move("method", "qlora")
    assert browser.run("return document.body.dataset.beyond") is None
    browser.move("loss", "full")
    labels = "return [...document.getElementById(arguments[0]).options].map(o => o.textContent)"
    browser.open(path.as_uri() + "#loss=fused")
    assert browser.run(labels, "method")[:2] == ["qlora", "full: not in this file"]
    offered = browser.run("return [...document.getElementById('card').options].map(o => o.value)")
    assert set(offered) == set(gpus())


def test_the_changes_follow_the_controls(browser, subject):
    spec, setup, gpu, path = subject
    browser.open(path.as_uri())
    for moves, this in (
        ({}, setup),
        ({"batch": 6}, setup.replaced(micro_batch=6)),
        ({"checkpointing": "none"}, setup.replaced(micro_batch=6, checkpointing="none")),
    ):
        for name, value in moves.items():
            browser.move(name, value)
        effects = single_changes(spec, this, Room(gpu).around(spec, this))
        rows = browser.run(
            "return [...document.querySelectorAll('#changes tr')].map(tr => "
            "[Number(tr.dataset.saved), Number(tr.dataset.after), tr.querySelector('code').textContent])"
        )
        wanted = [(e.saved, e.after, e.text.partition(": ")[2]) for e in effects if e.saved * 100 >= e.after]
        assert list(map(tuple, rows)) == wanted[:4]


def test_a_fixed_rank_is_disabled_and_says_why(browser, tmp_path):
    spec, gpu = find("gpt2").spec(), find_gpu("rtx-3070")
    asked = {"method": "lora", "gpu": gpu.name, "sequence_length": 512}
    setup = resolve({**asked, "optimizer": "adamw_bnb_8bit", "rank": 12})
    path = tmp_path / "report.html"
    path.write_text(page(spec, setup, plan(spec, setup), gpu, wide=False), encoding="utf-8")
    browser.open(path.as_uri() + "#rank=64")
    assert browser.run("return document.getElementById('rank').disabled")
    assert "another rank needs a page of its own" in browser.run(
        "return document.getElementById('rank-label').title"
    )
    assert tuple(shown(browser)) == expected(spec, setup, gpu)  # not that of 64, which it cannot evaluate
    assert "--rank 12" in browser.run("document.getElementById('command').click(); return copied.value")


def test_a_method_and_a_cell_are_chosen_by_a_click(browser, subject):
    spec, setup, gpu, path = subject
    browser.open(path.as_uri())
    click = "document.querySelector(arguments[0]).dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    browser.run(click, "#methods g:nth-of-type(2)")
    method = browser.run("return document.getElementById('method').value")
    assert method != "qlora"
    cell = "#heat rect[data-batch='4'][data-seq='512']"
    browser.until(f'return document.querySelector("{cell}") !== null')
    browser.run(click, cell)
    chosen = changed(setup, {"method": method, "checkpointing": "non_reentrant"}).replaced(
        micro_batch=4, sequence_length=512
    )
    assert tuple(shown(browser)) == expected(spec, chosen, gpu)


def test_the_heat_map_and_the_frontier_are_those_of_fit(browser, subject):
    spec, setup, gpu, path = subject
    browser.open(path.as_uri() + "#method=lora&checkpointing=none&batch=2")
    lora = changed(setup, {"method": "lora", "checkpointing": "none"})

    def sizes(batch, sequence):
        """Device bytes, and whether they fit with the margin."""
        found = need(spec, lora.with_(micro_batch=batch, sequence_length=sequence))
        return found.device_bytes(gpu), found.fits(gpu)

    browser.until("return document.body.dataset.heat !== ''")
    cells = browser.run(
        "return [...document.querySelectorAll('#heat rect')].map(r => ['batch','seq','bytes','fits'].map(k "
        "=> Number(r.dataset[k])))"
    )
    assert len(cells) >= 50
    for batch, seq, size, fits in cells[::9]:
        assert (size, bool(fits)) == sizes(batch, seq)  # equal, not only within a per cent
    lines = browser.run(
        "return [...document.querySelectorAll('#heat text[data-longest]')].map(t => "
        "[Number(t.dataset.batch), Number(t.dataset.longest)])"
    )
    for batch, most in lines:
        assert most == 0 or (sizes(batch, most)[1] and not sizes(batch, most + 1)[1])


def test_a_hostile_address_changes_nothing(browser, subject):
    spec, setup, gpu, path = subject
    browser.open(path.as_uri() + "#method=<b>x&batch=1e9&seq=-5&card=constructor&__proto__=1&rank=zzz")
    assert tuple(shown(browser)) == expected(spec, setup, gpu)


def test_it_fits_a_narrow_window_and_prints(browser, subject):
    browser.open(subject[3].as_uri())
    size = {"width": 400, "height": 900}
    browser.call("POST", f"/session/{browser.session}/window/rect", size)
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth + 1")
    printed = browser.call(
        "POST", f"/session/{browser.session}/print", {"page": {"width": 21.0, "height": 29.7}}
    )
    assert len(printed) > 20_000  # a PDF, base64


def test_the_address_has_the_state_and_gives_it_back(browser, subject):
    spec, setup, gpu, path = subject
    browser.open(path.as_uri())
    for name, value in (("method", "lora"), ("checkpointing", "none"), ("card", "a100-80gb"), ("batch", 3)):
        browser.move(name, value)
    before, address = shown(browser), browser.run("return location.href")
    assert "method=lora" in address and "batch=3" in address and "card=a100-80gb" in address
    browser.open(address)
    assert shown(browser) == before and browser.run("return location.href") == address


def test_two_setups_stand_side_by_side_and_in_the_address(browser, subject):
    spec, setup, gpu, path = subject
    browser.open(path.as_uri())
    browser.run("document.getElementById('pin').click()")
    browser.move("batch", 5)
    own, other = setup, setup.replaced(micro_batch=5)
    sizes = ",".join(expected(spec, each, gpu)[0] for each in (own, other))
    assert browser.run("return document.body.dataset.beside") == sizes
    browser.open(browser.run("return location.href"))
    assert browser.run("return document.body.dataset.beside") == sizes
    browser.run("document.getElementById('pin').click()")
    assert browser.run("return document.getElementById('beside').hidden")
    assert "than." not in browser.run("return location.href")


def test_the_command_that_is_copied_is_of_the_setup_shown(browser, subject):
    spec, setup, gpu, path = subject
    for method in ("qlora", "adalora"):
        browser.open(path.as_uri() + f"#method={method}&batch=2&seq=640&rank=24&checkpointing=none")
        browser.run("document.getElementById('command').click()")
        words = shlex.split(browser.run("return document.getElementById('copied').value"))
        assert words[0] == "memplan"
        context = plan_command.make_context("plan", words[1:], allow_interspersed_args=True)
        options = {k: v for k, v in context.params.items() if k != "model"}
        typed = read_subject(words[1], options).setup
        assert shown(browser)[0] == expected(spec, typed, gpu)[0]


def test_the_course_of_the_run_is_the_replays_and_zooms(browser, subject):
    spec, setup, gpu, path = subject
    browser.open(path.as_uri())
    run = replay_of(spec, setup)
    first, last, reserved = map(int, browser.run("return document.body.dataset.course").split(","))
    assert (first, last, reserved) == (0, len(run.events.events), run.reserved_bytes)
    drag = (
        "const s = document.querySelector('#course svg'), r = s.getBoundingClientRect();"
        "for (const [kind, x] of [['pointerdown', 0.25], ['pointerup', 0.5]])"
        " s.dispatchEvent(new PointerEvent(kind, {clientX: r.left + x * r.width, clientY: r.top + 9}))"
    )
    browser.run(drag)
    first, after, _ = map(int, browser.run("return document.body.dataset.course").split(","))
    assert abs(first - last * 0.25) <= 1 and abs(after - last * 0.5) <= 1
    browser.run("document.getElementById('whole').click()")
    assert browser.run("return document.body.dataset.course").startswith(f"0,{last},")


def test_a_setup_without_a_replay_in_the_file_has_its_table(browser, tmp_path):
    spec, gpu = find("gpt2").spec(), find_gpu("rtx-4090")
    setup = resolve({"method": "lora", "gpu": "rtx-4090", "sequence_length": 512, "allocator": "expandable"})
    path = tmp_path / "report.html"
    path.write_text(page(spec, setup, plan(spec, setup), gpu, wide=False), encoding="utf-8")
    browser.open(path.as_uri())
    assert tuple(shown(browser)) == expected(spec, setup, gpu)
    assert "No replay" in browser.run("return document.getElementById('course').textContent")
    assert [entry for entry in browser.log() if entry["level"] == "SEVERE"] == []


def test_the_treemap_and_the_table_follow_the_controls(browser, subject):
    spec, setup, gpu, path = subject
    browser.open(path.as_uri())
    full = changed(setup, {"method": "full", "checkpointing": "none"})
    for moves, this in (
        ({}, setup),
        ({"batch": 7}, setup.replaced(micro_batch=7)),
        ({"method": "full", "checkpointing": "none", "batch": 1}, full),
    ):
        for name, value in moves.items():
            browser.move(name, value)
        prediction = plan(spec, this)
        sizes = browser.run(
            "return [...document.querySelectorAll('#treemap rect[data-bytes]')].map(r => "
            "[Number(r.dataset.bytes), r.getAttribute('width') * r.getAttribute('height')])"
        )
        assert sum(size for size, _ in sizes) == prediction.peak.allocated_bytes
        per_byte = sum(area for _, area in sizes) / sum(size for size, _ in sizes)
        assert all(area == pytest.approx(size * per_byte, rel=1e-6) for size, area in sizes)
        rows = browser.run(
            "return [...document.querySelectorAll('#rows tr')].map(tr => "
            "[...tr.cells].map(c => c.textContent))"
        )
        assert sorted(map(tuple, rows)) == sorted(
            (
                r.name,
                " x ".join(f"{n:,}" for n in r.shape),
                r.dtype,
                f"{r.count:,}",
                f"{r.bytes:,}",
                label(r.component),
                r.why,
            )
            for r in prediction.peak_rows
        )


def test_a_served_page_asks_the_server_for_what_it_does_not_hold(browser):
    server = ui.make_server(0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked = {"method": "lora", "gpu": "l4", "sequence_length": 256}
    spec, gpu, here = (
        find("gpt2").spec(),
        find_gpu("l4"),
        "return location.search + ' ' + document.readyState",
    )
    try:
        browser.open(f"http://127.0.0.1:{server.server_address[1]}/?model=gpt2&method=lora&gpu=l4&seq=256")
        assert tuple(shown(browser)) == expected(spec, resolve(asked), gpu)
        assert browser.run("return document.getElementById('models').options.length") == len(names())
        for moves, fields in (
            ({"method": "dora"}, {"method": "dora"}),
            ({"recipe": "trl"}, {"recipe": "trl", "method": "dora"}),
        ):
            for name, value in moves.items():
                browser.move(name, value)
                browser.until(
                    f"{here} && location.search.includes('{value}') && !!document.body.dataset.ready"
                )
            this = resolve({**asked, **fields})
            assert tuple(shown(browser)) == expected(spec, this, gpu), fields
    finally:
        server.shutdown()
        server.server_close()
        ui.PAGES.clear()
