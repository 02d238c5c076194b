"""gpus.json is documented data: every GPU has a size, a source and sane numbers; every way to name one finds
it.
"""

from __future__ import annotations

import re

import pytest

from memplan.planner.tables import gpus as module
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu, common_gpus, explain_source, find_gpu, gpus
from memplan.planner.tables.units import GIB

ALL = list(gpus().values())
DERIVED = {
    "derived-gddr": lambda gb: gb * GIB * 965 // 1000,
    "derived-ecc": lambda gb: gb * GIB * 91 // 100,
    "derived-hbm": lambda gb: gb * 10**9 * 98 // 100,
    "derived-unified": lambda gb: gb * 10**9 * 75 // 100,
}


def test_there_are_at_least_sixty_cards_of_every_kind():
    assert len(ALL) >= 60
    assert {gpu.kind for gpu in ALL} == {"datacenter", "workstation", "consumer", "edge", "amd", "apple"}
    assert {
        "t4",
        "l4",
        "rtx-3090",
        "rtx-4090",
        "rtx-5090",
        "a10g",
        "a100-40gb",
        "a100-80gb",
        "l40s",
        "h100-80gb",
        "h200",
        "b200",
    } <= set(gpus())


@pytest.mark.parametrize("gpu", ALL, ids=lambda gpu: gpu.name)
def test_every_card_is_documented(gpu: Gpu):
    assert gpu.marketing_gb is not None
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", gpu.name)
    assert 0.7 * gpu.marketing_gb * 10**9 < gpu.usable_bytes < gpu.marketing_gb * GIB, (
        "usable is below the label and not absurdly so"
    )
    assert gpu.context_bytes > 100 * 2**20 and gpu.context_source
    assert gpu.source in module._file()["sources"] or re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", gpu.source), (
        "a source key or a public thread"
    )
    assert len(explain_source(gpu)) > 20
    if gpu.source in DERIVED:
        assert gpu.usable_bytes == DERIVED[gpu.source](int(gpu.marketing_gb)), (
            "a derived size follows its rule"
        )
    assert gpu.verified == (gpu.kind not in ("amd", "apple"))
    if gpu.verified and gpu.name != "jetson-agx-thor":
        assert gpu.capability is not None and (6, 0) <= gpu.capability <= (12, 1)
    for value in (gpu.sms, gpu.bandwidth_gbs, gpu.bf16_tflops):
        assert value is None or value > 0, "unknown is None, never 0"


def test_cards_with_one_chip_and_more_memory_hold_more():
    for smaller, larger in (
        ("b200", "gb200"),
        ("gb200", "b300"),
        ("b300", "gb300"),
        ("h100-80gb", "h200"),
        ("gh200-96gb", "gh200-144gb"),
    ):
        assert find_gpu(smaller).usable_bytes < find_gpu(larger).usable_bytes


def test_measured_context_of_the_t4():
    assert find_gpu("t4").context_bytes == round(140.875 * 2**20)


def test_every_name_and_alias_finds_its_card_and_no_alias_is_shared():
    seen: dict[str, str] = {}
    for gpu in ALL:
        for word in (gpu.name, *gpu.aliases):
            assert find_gpu(word) is gpu
            assert find_gpu(word.upper().replace("-", " ")) is gpu
            plain = module._plain(word)
            assert seen.setdefault(plain, gpu.name) == gpu.name, f"{word} names two GPUs"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("4090", "rtx-4090"),
        ("RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("AMD Instinct MI300X", "mi300x"),
        ("3060_12gb", "rtx-3060"),
    ],
)
def test_names_that_people_and_drivers_use(text: str, name: str):
    assert find_gpu(text).name == name


def test_a_size_is_a_budget():
    gpu = find_gpu("23.5GiB")
    assert gpu.usable_bytes == round(23.5 * GIB)
    assert gpu.kind == "budget"
    assert find_gpu("25 GB").usable_bytes == 25 * 10**9, "GB is 10^9 where no GPU is sold with that"
    assert find_gpu("24GiB").usable_bytes == 24 * GIB


@pytest.mark.parametrize("text", ["24", "24G", "24g", "24GB", "24 gb", "24.0GB"])
def test_a_size_that_gpus_are_sold_with_is_the_smallest_of_them(text: str):
    gpu = find_gpu(text)
    sold = [
        g.usable_bytes
        for g in ALL
        if g.marketing_gb == 24 and g.kind in ("datacenter", "workstation", "consumer")
    ]
    assert gpu.name == "24gb" and gpu.usable_bytes == min(sold) == 24 * GIB * 91 // 100
    assert "sold as 24 GB, of the smallest usable size: 21.84 GiB" in module.said_of(gpu)
    assert find_gpu(gpu.name) == gpu and module.said_of(find_gpu("rtx-4090")) == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("4060 ti 16gb", "rtx-4060-ti-16gb"),
        ("4090 24g", "rtx-4090"),
        ("a100 40g", "a100-40gb"),
        ("M3 Max 36GB", "apple-m3-max-36gb"),
        ("m2 ultra 192gb", "apple-m2-ultra-192gb"),
        ("m4 16gb", "apple-m4-16gb"),
    ],
)
def test_a_name_with_its_size(text: str, name: str):
    gpu = find_gpu(text)
    assert gpu.name == name and find_gpu(name) == gpu
    if gpu.kind == "apple":
        assert gpu.usable_bytes == DERIVED["derived-unified"](int(gpu.marketing_gb)) and not gpu.verified


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4060 ti", "could be rtx-4060-ti-8gb or rtx-4060-ti-16gb: name one of them"),
        ("M3 Max", "sold with many sizes of memory: write yours, such as --gpu m3-max-64gb"),
        ("4090 48GB", "rtx-4090 is sold with 24 GB, not 48 GB"),
        ("2x 4090", "write --gpu rtx-4090 --gpus 2"),
        ("25", "expected at least 64 MiB, such as 25GiB"),
    ],
)
def test_what_is_not_one_gpu_says_the_next_step(text: str, message: str):
    with pytest.raises(UsageError, match=re.escape(message)):
        find_gpu(text)


@pytest.mark.parametrize(
    "text",
    [
        "rtx-4099",
        "a100",
        "",
        "12 parsecs",
        "-4GiB",
        "25",
        "0GiB",
        "nan",
        "1e400GiB",
        "9" * 400 + "GiB",
        "\x00",
        "x" * 10_000,
    ],
)
def test_what_is_no_gpu_is_one_readable_message(text: str):
    with pytest.raises(UsageError) as caught:
        find_gpu(text)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400


def test_an_ambiguous_name_lists_the_candidates():
    with pytest.raises(UsageError, match="could be a100-40gb or a100-80gb"):
        find_gpu("a100")


def test_common_cards_are_in_order_of_size():
    sizes = [gpu.usable_bytes for gpu in common_gpus()]
    assert len(sizes) >= 10 and sizes == sorted(sizes)


class FakeNvml:
    """The part of pynvml that local_gpu uses, for one GPU."""

    class NVMLError(Exception):
        pass

    class Memory:
        free, total = 20 * GIB, 24 * GIB

    def nvmlInit(self): ...
    def nvmlShutdown(self): ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA GeForce RTX 4090" if handle == 0 else "NVIDIA Something Else"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Memory:
        return self.Memory()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine without a GPU: tests add what they need."""
    module.local_gpu.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield monkeypatch
    module.local_gpu.cache_clear()


def test_local_asks_nvml_for_what_is_free_now(machine: pytest.MonkeyPatch):
    machine.setitem(__import__("sys").modules, "pynvml", FakeNvml())
    gpu = find_gpu("local")
    assert (gpu.name, gpu.usable_bytes, gpu.capability) == ("local (rtx-4090)", 20 * GIB, (8, 9))


def test_local_keeps_an_unknown_card_as_a_budget(machine: pytest.MonkeyPatch):
    machine.setitem(__import__("sys").modules, "pynvml", FakeNvml())
    machine.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    gpu = find_gpu("local")
    assert (gpu.name, gpu.usable_bytes, gpu.capability) == ("local (NVIDIA Something Else)", 20 * GIB, None)


def test_local_falls_back_to_nvidia_smi(machine: pytest.MonkeyPatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 14000, 15360'\n")
    tool.chmod(0o755)
    machine.setenv("PATH", f"{tmp_path}")
    gpu = find_gpu("local")
    assert (gpu.name, gpu.usable_bytes, gpu.capability) == ("local (t4)", 14000 * 2**20, (7, 5))


def test_local_without_a_gpu_says_what_to_do(machine: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="name a GPU"):
        find_gpu("local")
