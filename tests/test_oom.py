"""torch's out-of-memory messages, form by form as they were reported over the years, and the tracebacks
around them.
"""

# ruff: noqa: E501 -- messages as torch prints them

import pytest

from memplan.planner.answers.oom import cards_that_hold, explain, read_oom
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
        {"device": "MPS", "asked": 1024 * 10**6, "capacity": 6770000000},
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
