"""The dry run without a CUDA build of torch: symbols, stubs, cache, launcher, observation, messages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("elftools", reason="the dry-run extra is not installed")

from memplan.cli.dry_run import parse_time
from memplan.cli.main import run as cli
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu
from memplan.profiler.dryrun import build
from memplan.profiler.dryrun.cards import MULTIPROCESSORS, card_environment, check_card
from memplan.profiler.dryrun.charges import ALLOC, FREE, SEGMENT, SEGMENT_GONE, charged
from memplan.profiler.dryrun.interpreter import find_interpreter, resolve
from memplan.profiler.dryrun.launch import run_program
from memplan.profiler.dryrun.observation import observe, short_line
from memplan.profiler.dryrun.symbols import Symbol, needed, shared_objects

MIB = 1 << 20
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages folder whose torch has one library: two symbols with a version, one without."""
    folder = tmp_path / "site"
    (folder / "torch" / "lib").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("")
    (folder / "torch" / "version.py").write_text("__version__ = '2.12.0+cu130'\ncuda: str = '13.0'\n")
    parts = {
        "libcudart.so.13": "int cudaDeviceSynchronize(void){return 7;} int cudaNeverSeen(void){return 7;}",
        "libcuda.so.1": "int cuInit(void){return 7;}",
    }
    for name, text in parts.items():
        (tmp_path / "part.c").write_text(text)
        script = tmp_path / "part.map"
        script.write_text("libcudart.so.13 { global: *; };" if "cudart" in name else "")
        words = [
            "cc",
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{name}",
            "-o",
            str(tmp_path / name),
            str(tmp_path / "part.c"),
        ]
        subprocess.run(
            [*words, *([f"-Wl,--version-script={script}"] if "cudart" in name else [])], check=True
        )
    (tmp_path / "user.c").write_text(
        "int cudaDeviceSynchronize(void); int cudaNeverSeen(void); int cuInit(void);"
        "int f(void){return cudaDeviceSynchronize()+cudaNeverSeen()+cuInit();}"
    )
    made = str(folder / "torch" / "lib" / "libtorch_cuda.so")
    libraries = [str(tmp_path / name) for name in parts]
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, str(tmp_path / "user.c"), *libraries], check=True)
    return folder


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_architectures", lambda python, libraries: "75 80 86 90")


@needs_compiler
def test_symbols_and_their_versions_are_read(site: Path) -> None:
    libraries, symbols = needed(shared_objects(site), 13)
    assert libraries == {"libcudart.so.13", "libcuda.so.1"}
    assert symbols == {
        Symbol("libcudart.so.13", "libcudart.so.13", "cudaDeviceSynchronize"),
        Symbol("libcudart.so.13", "libcudart.so.13", "cudaNeverSeen"),
        Symbol("libcuda.so.1", "", "cuInit"),
    }
    assert needed(shared_objects(site), 12) == (set(), set()), "another major version's runtime is left out"


@needs_compiler
def test_packages_of_a_second_folder_are_read_and_hidden_ones_are_not(site: Path, tmp_path: Path) -> None:
    """An environment that takes its other packages from another one: bitsandbytes there, its torch unused."""
    second = tmp_path / "second"
    for package in ("torch", "bitsandbytes"):
        (second / package).mkdir(parents=True)
        shutil.copy(site / "torch/lib/libtorch_cuda.so", second / package / "libnative.so")
    assert list(shared_objects(site, second)) == [
        site / "torch/lib/libtorch_cuda.so",
        second / "bitsandbytes/libnative.so",
    ]


@needs_compiler
def test_stub_libraries_satisfy_what_was_needed(site: Path, tmp_path: Path, fake_torch: None) -> None:
    folder = build.stub_libraries(Path(sys.executable), [site], "2.12.0+cu130", "13.0", tmp_path / "cache")
    assert sorted(os.listdir(tmp_path / "cache")) == ["lock", folder.name]
    names = {path.name for path in folder.iterdir()}
    assert {"libcudart.so.13", "libcuda.so.1", "libnvidia-ml.so.1", build.MEMORY, "libcuda.so"} <= names
    assert build.preload(folder).split(":")[0].endswith(build.MEMORY)
    library = site / "torch" / "lib" / "libtorch_cuda.so"
    ask = f"import ctypes; print(ctypes.CDLL({str(library)!r}).f())"
    around = {**os.environ, "LD_PRELOAD": build.preload(folder)}
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env=around)
    assert (done.stderr, done.stdout.strip()) == ("", "0"), "every stub is a success"


@needs_compiler
def test_a_failed_build_leaves_nothing_and_a_kept_one_is_used(
    site: Path, tmp_path: Path, fake_torch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("CC", "false")
    with pytest.raises(UsageError, match="could not build the stub libraries"):
        build.stub_libraries(Path(sys.executable), [site], "2.12.0", "13.0", cache)
    assert os.listdir(cache) == ["lock"]
    monkeypatch.delenv("CC")
    kept = build.stub_libraries(Path(sys.executable), [site], "2.12.0", "13.0", cache)
    monkeypatch.setenv("CC", "false")
    assert build.stub_libraries(Path(sys.executable), [site], "2.12.0", "13.0", cache) == kept
    with pytest.raises(UsageError):  # another environment is another folder
        build.stub_libraries(Path(sys.executable), [site], "2.13.0", "13.0", cache)


def test_no_compiler_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="install gcc or clang, or pip install ziglang"):
        build.compiler()
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: object())
    assert build.compiler()[1:] == ["-m", "ziglang", "cc"]


def test_another_system_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: "riscv64")
    with pytest.raises(UsageError, match="x86-64, aarch64"):
        build.check_machine()


@needs_compiler
def test_memory_of_the_stubs(site: Path, tmp_path: Path, fake_torch: None) -> None:
    """Allocation up to the device's bytes, small copies real, virtual memory counted when it is created."""
    folder = build.stub_libraries(Path(sys.executable), [site], "2.12.0", "13.0", tmp_path / "cache")
    script = f"""
import ctypes
memory = ctypes.CDLL({str(folder / build.MEMORY)!r}, mode=ctypes.RTLD_GLOBAL)
runtime = ctypes.CDLL({str(folder / "libcudart.so.13")!r})
driver = ctypes.CDLL({str(folder / "libcuda.so.1")!r})
MIB = 1 << 20
def free():
    a, b = ctypes.c_size_t(), ctypes.c_size_t()
    runtime.cudaMemGetInfo(ctypes.byref(a), ctypes.byref(b))
    return a.value // MIB, b.value // MIB
def malloc(n):
    p = ctypes.c_void_p()
    return runtime.cudaMalloc(ctypes.byref(p), ctypes.c_size_t(n)), p
assert free() == (90, 100)
error, p = malloc(60 * MIB)
assert error == 0 and p.value and free() == (30, 100)
assert malloc(40 * MIB)[0] == 2 and runtime.cudaGetLastError() == 2 and runtime.cudaGetLastError() == 0
text = ctypes.create_string_buffer(b"true", 8)
runtime.cudaMemcpy(p, text, ctypes.c_size_t(8), 1)
back = ctypes.create_string_buffer(8)
runtime.cudaMemcpy(back, p, ctypes.c_size_t(8), 2)
assert back.value == b"true"
memory.stub_answer.argtypes = [ctypes.c_longlong]
memory.stub_answer(41)
number = ctypes.c_longlong()
runtime.cudaMemcpy(ctypes.byref(number), p, ctypes.c_size_t(8), 2)
assert number.value == 41
assert runtime.cudaFree(p) == 0 and free() == (90, 100)
properties, handle = (ctypes.c_int * 8)(1, 0, 1, 0), ctypes.c_ulonglong()
assert driver.cuMemCreate(ctypes.byref(handle), ctypes.c_size_t(80 * MIB), properties, 0) == 0
assert free() == (10, 100)
assert driver.cuMemCreate(ctypes.byref(ctypes.c_ulonglong()), ctypes.c_size_t(20 * MIB), properties, 0) == 2
assert driver.cuMemRelease(handle) == 0 and free() == (90, 100)
"""
    around = {"MEMPLAN_STUB_TOTAL_BYTES": str(100 * MIB), "MEMPLAN_STUB_CONTEXT_BYTES": str(10 * MIB)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **around}
    )
    assert done.returncode == 0, done.stderr


def test_every_gpu_of_the_table_that_torch_runs_on_has_its_facts() -> None:
    found = card_environment(find_gpu("t4"), 2, 75)
    assert found["MEMPLAN_STUB_CAPABILITY"] == "75" and found["MEMPLAN_STUB_DEVICES"] == "2"
    assert found["MEMPLAN_STUB_SHARED_PER_MULTIPROCESSOR"] == str(64 << 10)
    assert int(found["MEMPLAN_STUB_TOTAL_BYTES"]) == find_gpu("t4").usable_bytes
    unbounded = card_environment(find_gpu("t4"), 1, 75, bounded=False)
    assert int(unbounded["MEMPLAN_STUB_TOTAL_BYTES"]) > 1 << 41
    for name in ("t4", "a100-80gb", "rtx-3090", "rtx-4090", "l40s", "h100-80gb", "b200", "rtx-5090"):
        assert find_gpu(name).capability in MULTIPROCESSORS
    with pytest.raises(UsageError, match="no NVIDIA GPU"):
        check_card(next(gpu for gpu in map(find_gpu, ("mi300x",)) if not gpu.verified), 1)


def test_architecture_is_the_newest_of_the_generation(tmp_path: Path) -> None:
    (tmp_path / build.ARCHITECTURES).write_text("75 80 86 90 100 120")
    assert build.architecture(tmp_path, (8, 9)) == 86
    assert build.architecture(tmp_path, (9, 0)) == 90
    assert build.architecture(tmp_path, (7, 0)) is None


def test_blocks_are_charged_as_they_lie() -> None:
    base = 1 << 40
    events = [
        (SEGMENT, base, 20 * MIB),
        (ALLOC, base, 19 * MIB + 100),  # what remains is less than 1 MiB: not split off
        (FREE, base, 19 * MIB + 100),
        (ALLOC, base, 12 * MIB + 1),
        (ALLOC, base + 12 * MIB + 512, 2 * MIB),
        (SEGMENT, base - 2 * MIB, 2 * MIB),  # touches the other segment, and is not merged with it
        (ALLOC, base - 2 * MIB, MIB),
        (ALLOC, base - MIB, MIB - 512),
        (ALLOC, base - 512, 1),
        (SEGMENT_GONE, base + 40 * MIB, 2 * MIB),
    ]
    assert charged(events) == {1: 20 * MIB, 3: 12 * MIB + 512, 4: 2 * MIB, 6: MIB, 7: MIB - 512, 8: 512}


def report(**changes: object) -> dict[str, object]:
    """One step of a process: 4 MiB of weights, 2 MiB saved for backward, 4 MiB of gradients, 8 of states."""
    base = 1 << 40
    weight, saved, gradient, state, temporary = (base + place * MIB for place in (0, 4, 6, 10, 18))
    events = [
        [SEGMENT, base, 100 * MIB],
        [ALLOC, weight, 4 * MIB, 0, 0, 0],
        [ALLOC, saved, 2 * MIB, 0, 1, 0],
        [ALLOC, temporary, 8 * MIB, -1, -1, 0],
        [FREE, temporary, 8 * MIB],
        [ALLOC, gradient, 4 * MIB, -1, -1, 0],
        [FREE, saved, 2 * MIB],
        [ALLOC, state, 8 * MIB, 0, 1, 0],
    ]
    marks = [[-1, "load", "begin", [[0, 0]]], [-1, "load", "end", [[1, 0]]]]
    places = {"forward": ([1, 0], [2, 0]), "backward": ([2, 0], [4, 2]), "optimizer_step": ([4, 2], [5, 2])}
    moments = [moment("load", -1, 0, 1, 4, 4)]
    for name, (begin, end) in places.items():
        marks += [[0, name, "begin", [begin]], [0, name, "end", [end]]]
    moments += [
        moment("forward", 0, 2, 3, 6, 6),
        moment("backward", 0, 4, 5, 14, 8),
        moment("optimizer_step", 0, 6, 7, 16, 16),
    ]
    marks += [[0, "x", "claim", [[4, 2]]], [0, "x", "claim", [[5, 2]]]]
    claims = [[8, gradient, "gradients", ""], [9, state, "optimizer_states", ""], [9, weight, "weights", "w"]]
    made = {"process": 1, "parent": 0, "rank": 0, "outcome": "stopped", "error": None, "error_line": ""}
    made |= {"torch": "2.12.0", "cuda": "13.0", "steps": 1, "optimizers": 1, "expandable": False}
    made |= {"moments": moments, "marks": marks, "claims": claims, "notes": [], "events": [events]}
    return {**made, "lines": ["/home/me/train.py:3 main", "/x/site-packages/a/b.py:7 forward"], **changes}


def moment(name: str, step: int, begin: int, end: int, peak: int, now: int) -> dict[str, object]:
    counters = {"allocated": now * MIB, "allocated_peak": peak * MIB, "reserved": 100 * MIB}
    counters |= {"reserved_peak": 100 * MIB, "requested_peak": 0, "active_peak": 0, "retries": 0}
    line = f"/home/me/train.py:9 {name}"
    return {"step": step, "moment": name, "begin": begin, "end": end, "line": line, "counters": [counters]}


def test_components_are_read_at_the_peaks_place() -> None:
    found = observe([json.loads(json.dumps(report()))])
    assert found is not None
    seen = {moment.name: moment for moment in found.moments}
    assert list(seen) == ["load_peak", "load", "forward", "backward", "optimizer_step"]
    for moment_ in seen.values():
        assert sum(moment_.components.values()) == moment_.allocated_bytes
    backward = seen["backward"].components
    assert (backward["weights"], backward["activations"], backward["unattributed"]) == (
        4 * MIB,
        2 * MIB,
        8 * MIB,
    )
    assert seen["optimizer_step"].components["optimizer_states"] == 8 * MIB
    assert found.peak_moment == "optimizer_step" and found.peak_line == "/home/me/train.py:3 main"
    assert short_line("/x/site-packages/a/b.py:7 forward") == "a/b.py:7 forward"


def test_the_process_that_trained_is_the_one_observed() -> None:
    idle = report(steps=0, process=2)
    other = report(rank=1, process=3, torch="other")
    found = observe([idle, other, report()])
    assert found is not None and found.torch == "2.12.0"
    assert observe([]) is None and observe([report(events=[[]])]) is None


def run_python(text: str, deadline: float = 20.0) -> object:
    return run_program([sys.executable, "-c", text], {}, "", deadline, lambda text: None)


def test_standard_input_is_empty_and_output_is_kept() -> None:
    ended = run_python("print('here'); input()")
    assert ended.status == 1 and "here" in ended.output and "EOFError" in ended.output


def test_nothing_stays_behind(tmp_path: Path) -> None:
    """A program that ignores SIGTERM, and a child that left the process group."""
    note = tmp_path / "child"
    text = (
        "import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(100)'];"
        "child = subprocess.Popen(sleep, start_new_session=True);"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}'); time.sleep(100)"
    )
    began = time.monotonic()
    ended = run_python(text, deadline=3.0)
    assert ended.status is None and time.monotonic() - began < 15
    for number in map(int, note.read_text().split()):
        until = time.monotonic() + 5
        while alive(number) and time.monotonic() < until:
            time.sleep(0.05)
        assert not alive(number)


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


def test_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert (parse_time("90"), parse_time("90s"), parse_time("10m"), parse_time("1h")) == (90, 90, 600, 3600)
    for text in ("", "0", "ten", "-5", "1d"):
        with pytest.raises(UsageError, match="expected a time"):
            parse_time(text)


def fake_environment(folder: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("")
    (folder / "torch" / "version.py").write_text(version)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_cpu_torch_is_refused_with_the_lines_that_make_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_environment(tmp_path, "__version__ = '2.12.0+cpu'\ncuda: str | None = None\n", monkeypatch)
    assert cli(["dry-run", "--", "python", "train.py"]) == 2
    said = capsys.readouterr().err
    assert "a build without CUDA" in said and "pip install --no-deps torch" in said and "--python" in said


def test_an_old_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_environment(tmp_path, "__version__ = '2.8.0+cu128'\ncuda = '12.8'\n", monkeypatch)
    with pytest.raises(UsageError, match="needs 2.9 or later"):
        find_interpreter(None)


def test_versions_are_read_without_importing_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_environment(tmp_path, "__version__ = '2.12.0+cu130'\ncuda: str | None = '13.0'\n", monkeypatch)
    found = find_interpreter(None)
    assert (found.torch, found.cuda, found.sites[0]) == ("2.12.0+cu130", "13.0", tmp_path)
    assert found.python == sys.version_info[:2]
    assert resolve(["python3", "a.py"], found) == [sys.executable, "a.py"]
    with pytest.raises(UsageError, match="no such command"):
        resolve(["no-such-launcher"], found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--python", "/no/such/python", "--", "python", "x.py"], "no such executable"),
        (["--gpu", "rtx-9999", "--", "python", "x.py"], "unknown GPU"),
        (["--timeout", "soon", "--", "python", "x.py"], "expected a time"),
        (["--snapshot", "/no/such/folder/file", "--", "python", "x.py"], "its folder does not exist"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_is_one_message(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["dry-run", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
