"""torch's out-of-memory messages, form by form as they were reported over the years, and the tracebacks
around them.
"""

# ruff: noqa: E501 -- messages as torch prints them

import io
import os
import time

import pytest

from memplan.cli import main
from memplan.planner.answers.oom import read_oom
from memplan.planner.answers.oom_explain import cards_that_hold, explain
from memplan.planner.answers.oom_log import read_log
from memplan.planner.tables.errors import UsageError

MIB, GIB = 2**20, 2**30
HINT = (
    " If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See "
    "documentation for Memory Management  "
    "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)

REAL = [
    # (message, expected fields)
    (
        "cuda runtime error (2) : out of memory at /pytorch/aten/src/THC/generic/THCStorage.cu:58",
        {"asked": None, "capacity": None},
    ),
    (
        "THCudaCheck FAIL "
        "file=/opt/conda/conda-bld/pytorch_1532502421238/work/aten/src/THC/generic/THCStorage.cu line=58 "
        "error=2 : out of memory\n"
        "RuntimeError: cuda runtime error (2) : out of memory at /opt/conda/x/THCStorage.cu:58",
        {"form": "driver, outside the caching allocator"},
    ),
    (
        "RuntimeError: CUDA out of memory. Tried to allocate 16.00 GiB (GPU 0; 11.93 GiB total capacity; "
        "4.00 GiB already allocated; 7.33 GiB free; "
        "179.00 KiB cached)",
        {
            "form": "torch 1.0 to 1.4",
            "asked": 16 * GIB,
            "free": round(7.33 * GIB),
            "reserved": 4 * GIB + 179 * 1024,
        },
    ),
    (
        "RuntimeError: CUDA out of memory. Tried to allocate 12.50 MiB (GPU 0; 10.92 GiB total capacity; "
        "8.57 MiB already allocated; 9.28 GiB free; "
        "4.68 MiB cached)",
        {"asked": 13107200, "allocated": round(8.57 * MIB)},
    ),
    (
        "RuntimeError: CUDA out of memory. Tried to allocate 1024.00 KiB (GPU 0; 11.17 GiB total capacity; "
        "10.90 GiB already allocated; 576.00 KiB free; "
        "30.96 MiB cached)",
        {"asked": MIB, "free": 576 * 1024},
    ),
    (
        "RuntimeError: CUDA out of memory. Tried to allocate 26.00 MiB (GPU 0; 1024.00 MiB total capacity; "
        "435.61 MiB already allocated; 24.17 MiB free; "
        "26.39 MiB cached)",
        {"capacity": GIB},
    ),
    (
        "RuntimeError: CUDA out of memory. Tried to allocate 2.87 GiB (GPU 0; 14.76 GiB total capacity; "
        "8.77 GiB already allocated; 19.75 MiB free; "
        "13.71 GiB reserved in total by PyTorch)",
        {"form": "torch 1.5 to 2.0", "reserved": round(13.71 * GIB), "gpu": 0},
    ),
    (
        "Tried to allocate 156.00 MiB (GPU 0; 10.91 GiB total capacity; 5.68 GiB already allocated; 100.81 "
        "MiB free; 5.75 GiB reserved in total by PyTorch)",
        {"asked": 156 * MIB, "device": "CUDA"},
    ),
    (
        "RuntimeError: CUDA out of memory. Tried to allocate 92.00 MiB (GPU 1; 1.96 GiB total capacity; "
        "1.46 GiB already allocated; 16.38 MiB free; "
        "1.51 GiB reserved in total by PyTorch",
        {"gpu": 1, "asked": 92 * MIB},
    ),
    (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.71 GiB (GPU 0; 6.00 GiB total capacity; "
        "3.49 GiB already allocated; 1.04 GiB free; "
        "3.50 GiB reserved in total by PyTorch) If reserved memory is >> allocated memory try setting "
        "max_split_size_mb to avoid fragmentation.  See "
        "documentation for Memory Management and PYTORCH_CUDA_ALLOC_CONF",
        {"form": "torch 1.5 to 2.0", "capacity": 6 * GIB},
    ),
    (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 3; 79.35 GiB "
        "total capacity; 3.70 GiB already allocated; "
        "73.00 GiB free; 4.00 GiB allowed; 3.98 GiB reserved in total by PyTorch)",
        {"allowed": 4 * GIB, "gpu": 3},
    ),
    (
        "RuntimeError: HIP out of memory. Tried to allocate 512.00 MiB (GPU 0; 15.98 GiB total capacity; "
        "12.00 GiB already allocated; 100.00 MiB free; "
        "14.00 GiB reserved in total by PyTorch)",
        {"device": "HIP", "reserved": 14 * GIB},
    ),
    (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 55.57 GiB. GPU 0 has a total "
        "capacty of 12.00 GiB of which 9.02 GiB is free. "
        "Of the allocated memory 984.52 MiB is allocated by PyTorch, and 463.48 MiB is reserved by PyTorch "
        "but unallocated. If reserved but unallocated "
        "memory is large try setting max_split_size_mb to avoid fragmentation.",
        {"form": "torch 2.1 and later", "capacity": 12 * GIB},
    ),
    (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 64.00 MiB. GPU 0 has a total "
        "capacty of 8.00 GiB of which 0 bytes is free. Of "
        "the allocated memory 22.44 GiB is allocated by PyTorch, and 3.16 MiB is reserved by PyTorch but "
        "unallocated.",
        {"free": 0},
    ),
    (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 22.00 MiB. GPU 0 has a total "
        "capacity of 23.65 GiB of which 11.06 MiB is free. "
        "Including non-PyTorch memory, this process has 23.60 GiB memory in use. Of the allocated memory "
        "22.90 GiB is allocated by PyTorch, and 194.87 MiB "
        "is reserved by PyTorch but unallocated." + HINT,
        {"in_use": round(23.6 * GIB), "allocated": round(22.9 * GIB), "asked": 22 * MIB},
    ),
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 7 has a total capacity "
        "of 79.15 GiB of which 1.11 GiB is free. Process "
        "12345 has 30.00 GiB memory in use. Process 23456 has 2.00 GiB memory in use. Including non-PyTorch "
        "memory, this process has 46.02 GiB memory in "
        "use. Of the allocated memory 44.00 GiB is allocated by PyTorch, and 1.20 GiB is reserved by "
        "PyTorch but unallocated." + HINT,
        {"gpu": 7, "other_processes": 32 * GIB},
    ),
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB. GPU 0 has a total "
        "capacity of 44.40 GiB of which 300.31 MiB is free. "
        "Including non-PyTorch memory, this process has 44.09 GiB memory in use. 40.00 GiB allowed; Of the "
        "allocated memory 39.00 GiB is allocated by "
        "PyTorch, and 0 bytes is reserved by PyTorch but unallocated." + HINT,
        {"allowed": 40 * GIB},
    ),
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 128.00 MiB. GPU 0 has a total "
        "capacity of 31.37 GiB of which 16.25 MiB is free. "
        "Including non-PyTorch memory, this process has 31.34 GiB memory in use. Of the allocated memory "
        "29.00 GiB is allocated by PyTorch, with 2.50 GiB "
        "allocated in private pools (e.g., CUDA Graphs), and 1.25 GiB is reserved by PyTorch but unallocated."
        + HINT,
        {"reserved": round(30.25 * GIB)},
    ),
    (
        "HIP out of memory. Tried to allocate 432.00 MiB. GPU 0 has a total capacity of 15.92 GiB of which "
        "7.12 GiB is free. Of the allocated memory "
        "8.08 GiB is allocated by PyTorch, and 321.96 MiB is reserved by PyTorch but unallocated.",
        {"device": "HIP"},
    ),
    (
        "torch.OutOfMemoryError: XPU out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity "
        "of 15.91 GiB. Of the allocated memory 10.00 GiB "
        "is allocated by PyTorch, and 1.00 GiB is reserved by PyTorch but unallocated.",
        {"device": "XPU", "free": None},
    ),
    (
        "RuntimeError: MPS backend out of memory (MPS allocated: 5.05 GB, other allocations: 2.29 GB, max "
        "allowed: 6.77 GB). Tried to allocate 1024.00 MB on "
        "private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit.",
        {"device": "MPS", "asked": GIB, "capacity": round(6.77 * GIB)},
    ),
    (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 17179869184 bytes. "
        "Error code 12 (Cannot allocate memory)",
        {"form": "host memory", "device": "host", "asked": 16 * GIB},
    ),
    (
        "RuntimeError: [enforce fail at ..\\c10\\core\\impl\\alloc_cpu.cpp:72] data. DefaultCPUAllocator: "
        "not enough memory: you tried to allocate 4915200 "
        "bytes.",
        {"device": "host"},
    ),
    (
        "RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at "
        "some other API call",
        {"asked": None},
    ),
    ("torch.AcceleratorError: CUDA error: out of memory", {"form": "driver, outside the caching allocator"}),
    (
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        {"form": "driver, outside the caching allocator"},
    ),
    ("NCCL WARN Cuda failure 'out of memory'", {"form": "driver, outside the caching allocator"}),
    (
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: exitcode : -9 (pid: 4128)",
        {"device": "host"},
    ),
    ("torch.cuda.OutOfMemoryError", {"form": "no sizes"}),
    (
        "RuntimeError: CUDA out of memory. Tried to allocate 1.39 GiB.",
        {"form": "shortened message", "asked": round(1.39 * GIB)},
    ),
]


@pytest.mark.parametrize(("message", "expected"), REAL, ids=range(len(REAL)))
def test_a_reported_form(message, expected):
    found = read_oom(f"some log line\n{message}\nmore\n")
    assert {name: getattr(found, name) for name in expected} == expected
    assert explain(found) and found.to_document()["schema"] == "memplan.oom/1"


def test_there_are_at_least_twenty_forms():
    assert len(REAL) >= 20


MODERN = REAL[14][0]
FRAMES = {
    "load": (
        '  File "/x/transformers/modeling_utils.py", line 4178, in from_pretrained\n  File '
        '"/x/transformers/core_model_loading.py", line 1720, in convert'
    ),
    "forward": (
        '  File "/x/transformers/trainer.py", line 3, in compute_loss\n  File "/x/modeling_llama.py", line '
        "9, in forward\n    self.mlp(x)"
    ),
    "backward": '  File "/x/accelerate/accelerator.py", line 2, in backward\n    loss.backward(**kwargs)\n  '
    'File "/x/torch/autograd/graph.py", line 8, in _engine\n'
    '  File "/x/modeling_llama.py", line 9, in forward\n    self.mlp(x)',
    "optimizer_step": (
        '  File "/x/torch/optim/adamw.py", line 2, in step\n  File "/x/torch/optim/adam.py", line 160, in '
        '_init_group\n    state["exp_avg"] = x'
    ),
    "evaluate": (
        '  File "/x/transformers/trainer.py", line 4, in evaluation_loop\n  File "/x/trainer.py", line 3, '
        "in compute_loss\n  in forward"
    ),
    "save": (
        '  File "/x/transformers/trainer.py", line 1, in _save_checkpoint\n  File "/x/fsdp.py", line 4, in '
        "full_state_dict\n    x"
    ),
}


@pytest.mark.parametrize("moment", FRAMES)
def test_the_traceback_tells_the_moment(moment):
    log = f"Traceback (most recent call last):\n{FRAMES[moment]}\n{MODERN}\n"
    assert read_oom(log).moment == moment


@pytest.mark.parametrize(
    ("frame", "place"),
    [
        (
            "loss_utils.py, line 5, in ForCausalLMLoss\n  logits = logits.float()",
            "the loss over the vocabulary",
        ),
        ("sdpa_attention.py\n  attn = torch.nn.functional.scaled_dot_product_attention(", "attention"),
        ("bitsandbytes/autograd/_functions.py\n  F.dequantize_4bit(B)", "quantized weights"),
        ("modeling_llama.py\n  down_proj = self.down_proj(self.act_fn(", "the MLP"),
    ],
)
def test_the_innermost_frames_tell_the_place(frame, place):
    assert read_oom(f"Traceback (most recent call last):\n  {frame}\n{MODERN}").place == place


def test_colors_rank_prefixes_and_wrapped_lines():
    words = MODERN.replace("11.06 MiB is free", "11.06 MiB\n is free").replace(
        "CUDA out", "\x1b[31mCUDA\x1b[0m out"
    )
    found = read_oom(
        f"[rank3]: Traceback (most recent call last):\n[rank3]:   in from_pretrained\n[rank3]: {words}"
    )
    assert found.free == round(11.06 * MIB) and found.moment == "load"


def test_the_most_telling_message_wins_and_repeats_are_counted():
    found = read_oom(f"torch.OutOfMemoryError\n{MODERN}\n[rank1]: {MODERN}\n")
    assert found.form == "torch 2.1 and later" and found.failures == 2


def test_fragmentation_is_named_where_the_cache_was_larger_than_the_request():
    found = read_oom(REAL[6][0])
    assert found.cached == pytest.approx(4.94 * GIB, abs=2) and any(
        "fragmentation" in line and "expandable" in line for line in explain(found)
    )
    assert not any("fragmentation" in line for line in explain(read_oom(REAL[2][0])))


def test_needed_and_the_cards_that_would_have_held_it():
    found = read_oom(MODERN)
    assert found.needed == found.in_use + found.asked
    cards = cards_that_hold(found)
    assert cards and all(card.usable_bytes >= found.needed for card in cards)
    assert cards == sorted(cards, key=lambda card: card.usable_bytes)


@pytest.mark.parametrize(
    "log", ["", "all went well\nloss 1.23", "memory is out of scope", "Tried to allocate hope"]
)
def test_a_log_without_an_oom(log):
    with pytest.raises(UsageError, match="no out-of-memory error in this log"):
        read_oom(log)


def test_a_hostile_log_takes_no_time():
    log = (
        "CUDA out of memory. Tried to allocate 1 GiB. " * 20000
        + "Process 1 has 1 GiB memory in use. " * 20000
    )
    assert read_oom(log).asked == GIB


def run(args, stdin):
    from click.testing import CliRunner

    from memplan.cli.oom import command

    return CliRunner().invoke(command, args, input=stdin)


def test_the_command_reads_standard_input_and_a_file(tmp_path):
    log = f"Traceback (most recent call last):\n{FRAMES['backward']}\n{MODERN}\n"
    shown = run([], log)
    assert shown.exit_code == 0 and "22.00 MiB" in shown.output and "backward" in shown.output
    (tmp_path / "train.log").write_text(log)
    assert run([str(tmp_path / "train.log")], "").output == shown.output
    assert '"schema": "memplan.oom/1"' in run(["--json"], log).output


MESSAGE = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 "
    "GiB of which 11.06 MiB is free. Of the allocated memory 22.90 GiB is allocated by PyTorch, and 194.87 MiB is "
    "reserved by PyTorch but unallocated.\n"
)


def read_bytes(data: bytes):
    return read_oom(read_log(io.BytesIO(data)))


@pytest.mark.parametrize("after", [0, 100, 2**20, 40 * 2**20])
@pytest.mark.parametrize("before", [0, 2**20 - 300, 2 * 2**20 - 10, 30 * 2**20])
def test_a_message_is_found_wherever_in_the_log_it_stands(before, after):
    trace = b'Traceback (most recent call last)\n  File "x.py", line 3, in backward\n'
    log = b"step\n" * (before // 5) + trace + MESSAGE.encode() + b"done\n" * (after // 5)
    found = read_bytes(log)
    assert (found.asked, found.moment, found.failures) == (2 * GIB, "backward", 1)


def test_failures_far_apart_are_counted():
    assert read_bytes((MESSAGE.encode() + b"x" * 100_000) * 200).failures == 200


@pytest.mark.parametrize(
    "filler", [" ", "\t\n", "\n", "GiB ", "9", "a9", "[", "\x1b[", "exitcode", "Process 1 has "]
)
def test_the_time_is_linear_in_the_log(filler):
    """Eight times the log takes less than thirty times as long: a quadratic pattern takes sixty-four."""

    def seconds(count: int) -> float:
        text = MESSAGE + filler * (count // len(filler)) + MESSAGE
        start = time.perf_counter()
        read_bytes(text.encode())
        return time.perf_counter() - start

    once = min(seconds(20_000) for _ in range(3))
    assert min(seconds(160_000) for _ in range(2)) < 30 * once + 0.1


@pytest.mark.parametrize(
    ("old", "new"),
    [("23.65 GiB", "1073741824.00 GiB"), ("2.00 GiB", "9" * 300 + " GiB"), ("22.90", "9" * 40)],
)
def test_a_size_that_no_gpu_has_is_not_believed(old, new):
    """It is out of memory all the same: the size counts as unsaid, and the answer names it in short."""
    whole, found = read_bytes(MESSAGE.encode()), read_bytes(MESSAGE.replace(old, new).encode())
    lost = [name for name in ("asked", "capacity", "allocated") if getattr(found, name) is None]
    assert len(lost) == 1 and found.garbled and getattr(whole, lost[0]) is not None
    (line,) = (line for line in explain(found) if "more than any GPU has" in line)
    assert len(line) < 200 and whole.garbled is None


def test_a_request_that_overflowed_is_believed():
    assert read_bytes(MESSAGE.replace("2.00 GiB", "17179869184.00 GiB").encode()).asked == 2**64


def test_an_endless_log_ends_with_a_message():
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(size)

    with pytest.raises(UsageError, match="more than 268,435,456 bytes"):
        read_log(Endless())


def test_a_pipe_or_a_missing_standard_input_does_not_block(tmp_path, monkeypatch, capsys):
    os.mkfifo(tmp_path / "pipe.log")
    assert main.run(["oom", str(tmp_path / "pipe.log")]) == 2
    assert "a pipe or a device" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)
    assert main.run(["oom"]) == 2
    assert "no log" in capsys.readouterr().err


def modern(capacity, free, processes, allocated, unallocated):
    held = "".join(
        f" Process {number} has {size} GiB memory in use." for number, size in enumerate(processes, 11)
    )
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of "
        f"{capacity} GiB of which {free} MiB is free.{held} Of the allocated memory {allocated} GiB is allocated "
        f"by PyTorch, and {unallocated} GiB is reserved by PyTorch but unallocated."
    )


def test_in_a_container_ones_own_process_is_listed_among_the_others():
    alone = read_oom(modern("39.50", "200.00", ["39.30"], "37.00", "1.70"))
    assert alone.in_use == round(39.30 * 2**30) and alone.other_processes is None
    two = read_oom(modern("22.00", "300.00", ["9.00", "12.70"], "12.00", "0.29"))
    assert two.in_use == round(12.70 * 2**30) and two.other_processes == 9 * 2**30
    room = read_oom(modern("80.00", "100.00", ["30.00"], "40.00", "1.00"))  # the sums leave room for another
    assert room.in_use is None and room.other_processes == 30 * 2**30


def test_a_line_may_break_at_any_blank():
    whole = modern("39.50", "200.00", ["39.30"], "37.00", "1.70")
    words = whole.split(" ")
    for at in range(3, len(words), 4):
        broken = " ".join(words[:at]) + "\n" + " ".join(words[at:])
        assert read_oom(broken) == read_oom(whole)


def test_mps_writes_gb_and_means_2_to_the_30():
    log = (
        "RuntimeError: MPS backend out of memory (MPS allocated: 8.50 GB, other allocations: 100.00 MB, max "
        "allowed: 9.07 GB). Tried to allocate 512.00 MB on private pool."
    )
    oom = read_oom(log)
    assert oom.asked == 512 * 2**20 and oom.allocated == round(8.5 * 2**30)
    assert oom.capacity == round(9.07 * 2**30) and cards_that_hold(oom) == []
    assert not any("expandable" in line for line in explain(oom))


def test_more_than_the_gpu_has_is_windows_shared_memory():
    oom = read_oom(modern("12.00", "0.00", [], "18.50", "0.49"))
    assert any("shared GPU memory on Windows" in line for line in explain(oom))
    assert not any("expandable" in line for line in explain(oom))
    assert all(gpu.usable_bytes >= oom.needed for gpu in cards_that_hold(oom))


def test_it_died_while_saving_not_at_the_loss():
    oom = read_oom(
        "UserWarning: Failed to clone() tensor with name lm_head.weight on rank 0. Error: CUDA out of memory. "
        "Tried to allocate 502.00 MiB (GPU 0; 39.39 GiB total capacity; 35.00 GiB already allocated; 300.00 MiB "
        "free; 37.50 GiB reserved in total by PyTorch)"
    )
    assert (oom.moment, oom.place) == ("save", None) and "in save" in explain(oom)[0]


@pytest.mark.parametrize(
    "log",
    [
        "run.sh: line 14: 310392 Killed                  python train.py",
        "Loading checkpoint shards:  25%\nKilled\n",
        "[1234.5] Out of memory: Killed process 4242 (python)",
        "subprocess.CalledProcessError: died with <Signals.SIGKILL: 9>.",
    ],
)
def test_the_kernels_killer_is_the_hosts_memory(log):
    oom = read_oom(log)
    assert oom.device == "host" and cards_that_hold(oom) == []
    assert explain(oom)[0] == "the host ran out of memory, not the GPU"
    assert "ranks x model" in explain(oom)[1]


def test_host_advice_multiplies_ranks_and_model():
    oom = read_oom("torchrun --nproc_per_node 8 t.py\n[rank3]: x\nrun.sh: line 1: 42 Killed   torchrun")
    assert oom.ranks == 8
    assert explain(oom, 16 * 2**30)[1].startswith("8 ranks x 16.00 GiB of model are 128.00 GiB")


@pytest.mark.parametrize(
    ("log", "device", "allocated"),
    [
        (
            "RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.97 GiB total capacity; 58.00 "
            "GiB already allocated; 58.10 GiB current active; 1.00 GiB free; 59.00 GiB reserved in total by "
            "PyTorch)",
            "NPU",
            58 * 2**30,
        ),
        (
            "RuntimeError: XPU out of memory. Tried to allocate 512.00 MiB (GPU 0; 15.56 GiB total capacity; "
            "12.00 GiB already allocated; 13.60 GiB reserved in total by PyTorch)",
            "XPU",
            12 * 2**30,
        ),
        ("Error out of memory at line 380 in file /src/csrc/pythonInterface.c", "CUDA", None),
    ],
)
def test_other_devices_and_bitsandbytes_own_message(log, device, allocated):
    oom = read_oom(log)
    assert (oom.device, oom.allocated) == (device, allocated) and explain(oom)
    assert cards_that_hold(oom) == []


@pytest.mark.parametrize("capacity", [12, 16, 22.03, 23.99, 39.39, 44.4, 79.1])
def test_a_gpu_no_larger_than_the_one_that_failed_is_never_offered(capacity):
    oom = read_oom(modern(f"{capacity:.2f}", "100.00", [], "5.00", "0.10"))
    assert all(gpu.usable_bytes > capacity * 2**30 * 1.04 for gpu in cards_that_hold(oom))
