"""The first screen and --explain, from a hand-built Prediction: every figure on the screen is one of its
own.
"""

from __future__ import annotations

import io
import re

import pytest

from memplan.planner.answers.fit.suggest import Suggestion
from memplan.planner.answers.verdict import judge, margin_of
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Accuracy, Breakdown, ModelSummary, Peak, Prediction, Row
from memplan.planner.tables.gpus import Gpu, common_gpus, find_gpu
from memplan.planner.tables.units import GIB, MIB
from memplan.render.bar import ruler, stacked_bar
from memplan.render.components import shown_moments
from memplan.render.console import make_console, show
from memplan.render.explain import explain_rows, explanation
from memplan.render.sentences import assumptions, defaults
from memplan.render.terminal import Advice, plan_screen
from memplan.render.text import count, number

WEIGHTS = Row("base weights", (4096, 4096), "nf4", 224, 4 * GIB, "weights", "4-bit linear layers")
GRADS = Row("adapter gradients", (16, 4096), "float32", 448, 256 * MIB, "gradients", ".grad of every adapter")
STATES = Row("exp_avg", (16, 4096), "float32", 448, 512 * MIB, "optimizer_states", "AdamW's first moment")
SAVED = Row(
    "logits", (1, 2048, 32000), "float32", 1, 1 * GIB, "activations", "fp32 copy kept by cross-entropy"
)
SMALL = Row("loss", (), "float32", 1, 4, "temporaries", "a scalar")


def prediction(gpu: Gpu | None = None, **changes) -> Prediction:
    moments = (
        Breakdown("load_peak", (WEIGHTS,)),
        Breakdown("load", (WEIGHTS,)),
        Breakdown("forward", (WEIGHTS, STATES, SAVED)),
        Breakdown("backward", (WEIGHTS, STATES, SAVED, GRADS, SMALL)),
        Breakdown("optimizer_step", (WEIGHTS, STATES, GRADS)),
    )
    allocated = moments[3].allocated_bytes
    peak = Peak("backward", allocated, allocated + 128 * MIB, 600 * MIB)
    model = ModelSummary("llama-7b", "LlamaForCausalLM", 6_738_415_616)
    made = Prediction(
        "formula",
        model,
        resolve({"method": "qlora"}),
        39_976_960,
        6_778_392_576,
        0,
        peak,
        peak,
        moments,
        **changes,
    )
    return made.with_(gpus=tuple(judge(made, card) for card in ((gpu,) if gpu else common_gpus())))


def screen(
    made: Prediction,
    gpu: Gpu | None = None,
    suggestions: tuple[Suggestion, ...] = (),
    width: int = 80,
    ascii_only: bool = False,
) -> str:
    stream = io.StringIO()
    shown = plan_screen(made, gpu, Advice(suggestions), width, ascii_only)
    show(*shown, console=make_console(stream, width))
    return stream.getvalue()


def detail(made: Prediction, gpu: Gpu | None = None, width: int = 80) -> str:
    """What --explain and --assumptions add."""
    stream = io.StringIO()
    parts = [*explanation(made, gpu, width, False), *assumptions(made)]
    show(*parts, console=make_console(stream, width))
    return stream.getvalue()


GOLDEN = """\
llama-7b · qlora · batch 1 × 2,048 tokens · gradient checkpointing on

  weights (4-bit)         4.0 GiB ████████████████████████████████████
  gradients               0.2 GiB ██
  optimizer states        0.5 GiB ████
  activations             1.0 GiB █████████
  temporaries            <0.1 GiB
  fragmentation           0.1 GiB ░
  CUDA context            0.6 GiB █████

Peak      backward pass, largest tensors: logits 1.0 GiB
Save      1.0 GiB --loss chunked
Checked   no recorded run of this engine

--explain tensors · --assumptions · fit --gpu rtx-4090 · report -o page.html
"""


class Replays:
    """A run whose smallest capacity is known."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def smallest_capacity(self, mode: str | None = None) -> int:
        return self.capacity

    def survives(self, capacity: int, mode: str | None = None) -> bool:
        return capacity >= self.capacity


CHUNKED = Suggestion("chunked loss: --loss chunked", {"loss": "chunked"}, GIB, 5 * GIB)


def test_the_first_screen():
    card = find_gpu("rtx-4090")
    made = prediction(card, survival=Replays(prediction().peak.allocated_bytes))
    text = screen(made, card, (CHUNKED,))
    assert text.partition("\n")[2] == GOLDEN  # the first line is the next test's
    assert len(text.splitlines()) <= 17


def test_the_verdict_comes_first_with_its_range_and_headroom():
    card = find_gpu("rtx-4090")
    made = prediction(card, survival=Replays(5 * GIB))
    verdict = made.gpus[0]
    low, high = verdict.low_bytes, verdict.high_bytes
    assert low is not None and high is not None and low < verdict.needed_bytes < high
    assert screen(made, card).splitlines()[0] == (
        f"✓ FITS rtx-4090    needs {low / GIB:.1f}–{high / GIB:.1f} GiB of 23.5 GiB    "
        f"{(verdict.usable_bytes - high) / GIB:.1f} GiB or more to spare"
    )
    small = find_gpu("5GiB")
    assert screen(prediction(small), small).startswith("✗ DOES NOT FIT 5GiB    needs 6.5 GiB of 5.0 GiB")


def test_without_a_card_it_says_which_common_ones_fit():
    able = [v.name for v in prediction().gpus if v.verdict == "fits"]
    first = screen(prediction()).splitlines()[0]
    assert first == f"needs 6.5 GiB    ✓ fits {able[0]} … {able[-1]} ({len(able)})"
    assert len(able) == len(common_gpus()), "none is left out"


def test_what_is_not_counted_makes_a_lower_bound_and_never_fits():
    card = find_gpu("rtx-4090")
    made = prediction(card, not_modelled=("a second forward",), survival=Replays(5 * GIB))
    lines = screen(made, card).splitlines()
    low = made.gpus[0].low_bytes
    assert low is not None and low < made.peak.device_bytes
    assert " ".join(lines[:2]).startswith(f"≥ AT LEAST {low / GIB:.1f} GiB of 23.5 GiB rtx-4090")
    assert "not counted: a second forward" in " ".join(lines[:2])
    unnamed = screen(prediction(not_modelled=("a second forward",)))
    assert unnamed.startswith("≥ AT LEAST") and "not counted: a second forward" in unnamed
    for text in ("\n".join(lines), unnamed):
        assert "fits" not in text.lower()


@pytest.mark.parametrize("width", [60, 80])
def test_the_first_screen_is_short(width: int):
    card = find_gpu("rtx-4090")
    made = prediction(card, warnings=tuple(f"warning {n}" for n in range(5)))
    lines = screen(made, card, (CHUNKED,), width).splitlines()
    assert len(lines) <= 17 + 3 + 2 * (width < 80)
    assert "warning 1" in " ".join(lines) and "3 more with --assumptions" in " ".join(lines)
    assert "warning 4" in detail(made, card)


def test_components_add_up_by_moment():
    card = find_gpu("h200")
    lines = detail(prediction(card), card).splitlines()
    figures = {}
    for name in (
        "weights",
        "gradients",
        "optimizer states",
        "activations",
        "temporaries",
        "allocated",
        "fragmentation",
        "CUDA context",
        "device",
    ):
        line = next(line for line in lines if name in line[:22])
        figures[name] = line[22:].split()
    assert figures["weights"][0] == "4.00" and figures["weights"][2:] == ["4.00"] * 5
    assert figures["temporaries"][0] == "<0.01", "what is not zero does not read as zero"
    assert figures["gradients"] == ["0.25", "3.9", "-", "-", "-", "0.25", "0.25"]
    assert figures["allocated"] == ["5.75", "89.0", "4.00", "4.00", "5.50", "5.75", "4.75"]
    assert figures["fragmentation"][0] == "0.12"
    assert figures["device"] == ["6.46", "100.0"]


def test_peak_is_explained_by_its_largest_rows():
    text = " ".join(detail(prediction()).split())
    assert (
        "Peak backward pass, 5.75 GiB allocated. Largest temporary tensors: logits 1.00 GiB (fp32 "
        "copy kept by cross-entropy)" in text
    )


def test_recipe_and_what_it_fixed_are_named_but_not_what_the_user_chose():
    text = " ".join(detail(prediction()).split())
    assert "recipe hf: nf4 weights with double quantization" in text and "sdpa attention" in text
    made = prediction().with_(setup=resolve({"method": "qlora", "attention": "eager"}))
    assert "eager attention" not in detail(made)


def test_the_ranks_that_adalora_uses_are_named():
    assert "rank 12 pruned to 8 on all-linear" in defaults(resolve({"method": "adalora"}))
    assert "rank 6 pruned to 3 on all-linear" in defaults(resolve({"method": "adalora", "rank": 6}))
    assert "rank" not in defaults(resolve({"method": "lora", "adapter": {"peft_type": "VERA"}}))


def test_accuracy_is_evidence_or_its_absence():
    assert "Accuracy  unknown: no recorded run of this engine." in detail(prediction())
    assert "Checked   no recorded run of this engine" in screen(prediction())
    known = Accuracy(0.004, 0.031, 25, "25 recorded runs on h200", "llama-2-7b qlora")
    checked = " ".join(screen(prediction(accuracy=known)).split())
    assert "Checked 25 recorded runs on h200: median 0.4 %, worst 3.1 %" in checked
    text = " ".join(detail(prediction(accuracy=known)).split())
    assert (
        "formula engine, peak allocated within 0.40 % (median), 3.10 % (worst): 25 recorded runs on h200; "
        "nearest run: llama-2-7b qlora." in text
    )


def test_the_formulas_recorded_error_makes_the_band_of_tight():
    made = prediction(accuracy=Accuracy(0.01, 0.02, 25, "h200", device_error=0.05))
    device = made.peak.reserved_bytes + find_gpu("8GiB").context_bytes
    slack = round(made.peak.reserved_bytes * 0.05)
    words = {
        offset: judge(made, find_gpu(f"{device + offset}B")).verdict
        for offset in (slack, slack - 1, 0, -slack, -slack - 1)
    }
    assert words == {slack: "fits", slack - 1: "tight", 0: "tight", -slack: "tight", -slack - 1: "no"}


def test_the_traces_smallest_capacity_makes_the_band_of_tight():
    made = prediction(smallest_capacity_bytes=5 * GIB).with_(engine="trace")
    bare = 5 * GIB - made.peak.context_bytes
    low = bare - round(bare * margin_of("trace", made.setup)) + find_gpu("8GiB").context_bytes
    assert judge(made, find_gpu(f"{low}B")).verdict == "tight"
    assert judge(made, find_gpu(f"{low - 1}B")).verdict == "no"
    assert judge(made, find_gpu("24GiB")).verdict == "fits"


def test_suggestions_say_what_they_save_and_whether_it_fits():
    card = find_gpu("6GiB")
    made = (
        Suggestion("chunked loss: --loss chunked", {"loss": "chunked"}, 1 * GIB, 5 * GIB),
        Suggestion("half the rank: --rank 8", {"rank": 8}, MIB, 6 * GIB + 1),
    )
    text = screen(prediction(card), card, made)
    assert "Save      1.0 GiB --loss chunked (fits)    <0.01 GiB --rank 8\n" in text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("card", [None, "rtx-4090", "5GiB"])
def test_no_line_is_wider_than_the_terminal(width: int, card: str | None):
    gpu = find_gpu(card) if card else None
    made = prediction(gpu, warnings=("word " * 60,), assumptions=("x" * 200,))
    lines = [*screen(made, gpu, width=width).splitlines(), *detail(made, gpu, width).splitlines()]
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if line != line.rstrip()]


def test_ascii_when_the_stream_is_ascii():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    console = make_console(stream)
    assert console.options.ascii_only
    show(*plan_screen(prediction(), None, Advice(), console.width, True), console=console)
    text = raw.getvalue().decode("ascii")
    assert text.count("#") > 36 and "?" not in text


def test_color_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" not in screen(prediction())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in screen(prediction())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in screen(prediction())


def test_the_bar_is_to_scale_and_marks_what_is_usable():
    bar = stacked_bar([("weights", 50), ("activations", 25)], 100, 90, 20).plain
    assert bar == "█" * 10 + "░" * 5 + "·" * 3 + "|" + "·"
    assert stacked_bar([("weights", 150)], 100, 90, 10, ascii_only=True).plain == "WWWWWWWWW|"


@pytest.mark.parametrize("usable", [1, 40, 60, 98, 100])
def test_the_ruler_never_overlaps(usable: int):
    line = ruler(100, usable, 60, ("0", "2.00 GiB usable", "rtx-4090")).plain
    assert (
        line.startswith("0 ")
        and line.endswith(" rtx-4090")
        and " 2.00 GiB usable " in line
        and len(line) == 60
    )


def test_explain_shows_every_row_and_their_sum():
    stream = io.StringIO()
    made = prediction()
    show(*explain_rows(made), console=make_console(stream, 80))
    text = stream.getvalue()
    for row in made.peak_rows:
        assert f"{row.bytes:,} {row.name}" in text and row.why in text
    assert "[1x2048x32000] float32" in text and "[4096x4096] nf4 x 224" in text and "[scalar]" in text
    assert f"5 rows add up to {made.peak.allocated_bytes:,} bytes" in text


def test_at_most_five_moments_are_shown_and_the_peak_is_one():
    made = prediction()
    extra = tuple(Breakdown(name, (WEIGHTS, STATES)) for name in ("evaluate", "save", "merge"))
    shown = [m.moment for m in shown_moments(made.with_(moments=(*made.moments, *extra)))]
    assert len(shown) == 5 and "backward" in shown


def test_numbers_for_people():
    assert [number(None), number(0), number(1), number(GIB)] == ["", "-", "<0.01", "1.00"]
    assert [count(512), count(40_000_000), count(6_738_415_616)] == ["512", "40.0 M", "6.74 B"]


@pytest.mark.parametrize("width", [40, 50, 60, 66])
def test_a_narrow_terminal_keeps_decimals_and_gives_up_moments(width: int):
    named = ("weights", "optimizer states")
    lines = [
        line
        for line in filter(None, detail(prediction(), width=width).splitlines())
        if line[0] in "█▒" and line.lstrip("█▒ ").startswith(named)
    ]
    assert len(lines) == 2 and all(re.search(r" \d+\.\d+ +\d+\.\d+$", line) for line in lines), lines
