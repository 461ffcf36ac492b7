"""Hostile files and dying children: always our error, never a crash, a hang or an orphan."""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.smollm2 import smollm2_gguf

from tightfit.errors import RuntimeFailureError
from tightfit.runtimes.llamacpp import LlamaCpp

ORPHAN_LIMIT_S = 20.0


def with_block_count(data: bytes, count: int) -> bytes:
    key = b".block_count"
    value = data.index(key) + len(key) + 4  # after the value's type
    return data[:value] + struct.pack("<I", count) + data[value + 4 :]


DAMAGE = {
    "empty": lambda data: b"",
    "random bytes": lambda data: bytes((index * 197 + 31) % 256 for index in range(50_000)),
    "cut in the header": lambda data: data[:900],
    "cut in the weights": lambda data: data[: len(data) // 2],
    "a tensor count of 2^62": lambda data: data[:8] + struct.pack("<Q", 2**62) + data[16:],
    "4000 blocks": lambda data: with_block_count(data, 4000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_our_error(tmp_path, tiny_gguf, damage):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(DAMAGE[damage](tiny_gguf.read_bytes()))
    with pytest.raises(RuntimeFailureError, match="the last lines of its log") as caught:
        LlamaCpp(path, context_tokens=64, threads=1)
    assert str(path) in caught.value.problem
    assert "write it again" in caught.value.hint or "write the file again" in caught.value.hint


def test_an_abort_tells_its_signal_and_its_reason(tmp_path, tiny_gguf):
    path = tmp_path / "aborts.gguf"
    path.write_bytes(with_block_count(tiny_gguf.read_bytes(), 4000))
    with pytest.raises(RuntimeFailureError, match=f"signal {signal.SIGABRT:d}.*") as caught:
        LlamaCpp(path, context_tokens=64, threads=1)
    assert "GGML_ASSERT" in caught.value.hint


def test_a_missing_file_is_said_before_a_child_starts(tmp_path):
    with pytest.raises(RuntimeFailureError, match="is not a file"):
        LlamaCpp(tmp_path / "absent.gguf", context_tokens=64)


def test_kill_9_during_generation(tiny_gguf):
    with LlamaCpp(tiny_gguf, context_tokens=512, threads=1) as runtime:
        child = runtime._child.pid

        def kill(_index, _generation):
            os.kill(child, signal.SIGKILL)

        with pytest.raises(RuntimeFailureError, match="signal 9"):
            runtime.generate(
                [[5, 6]] * 400, max_tokens=400, temperature=2.0, seed=0, on_finished=kill
            )
        with pytest.raises(RuntimeFailureError, match="was closed"):
            runtime.logits([1])


def test_a_child_that_dies_has_delivered_what_finished(tiny_gguf):
    options = {"max_tokens": 40, "temperature": 1.5, "seed": 0, "parallel": 1}
    delivered = {}
    with LlamaCpp(tiny_gguf, context_tokens=64, threads=1) as runtime:
        whole = runtime.generate([[5, 6]] * 4, **options)
        child = runtime._child.pid

        def kill_after_three(index, generation):
            delivered[index] = generation
            if len(delivered) == 3:
                os.kill(child, signal.SIGKILL)

        with pytest.raises(RuntimeFailureError, match="signal 9"):
            runtime.generate([[5, 6]] * 5000, **options, on_finished=kill_after_three)
    assert [delivered[index] for index in range(3)] == whole[:3]
    assert sorted(delivered) == list(range(len(delivered)))
    assert len(delivered) < 5000


def test_silence_is_an_error_and_ends_the_child(tiny_gguf):
    with LlamaCpp(tiny_gguf, context_tokens=512, threads=1) as runtime:
        child = runtime._child.pid
        os.kill(child, signal.SIGSTOP)
        runtime._timeout_s = 0.3
        with pytest.raises(RuntimeFailureError, match="silent"):
            runtime.logits([1])
        assert not is_alive(child)


def test_closing_ends_the_child_even_while_it_computes(tiny_gguf):
    runtime = LlamaCpp(tiny_gguf, context_tokens=512, threads=1)
    child = runtime._child.pid
    stream = runtime.logits_chunks([1] * 512)
    next(stream)
    readers = threading.active_count()
    runtime.close()
    runtime.close()
    assert not is_alive(child)
    assert threading.active_count() < readers


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_orphan_when_the_parent_ends(tiny_gguf, how):
    script = (
        "import sys\n"
        "from tightfit.runtimes.llamacpp import LlamaCpp\n"
        f"with LlamaCpp({str(tiny_gguf)!r}, context_tokens=512, threads=1) as runtime:\n"
        "    print(runtime._child.pid, flush=True)\n"
        "    runtime.generate([[5, 6]] * 10**5, max_tokens=400, temperature=2.0, seed=0)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    os.killpg(parent.pid, how)
    parent.wait(ORPHAN_LIMIT_S)
    parent.stdout.close()
    deadline = time.monotonic() + ORPHAN_LIMIT_S
    while is_alive(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.1)


def test_many_loads_leak_no_descriptor(tiny_gguf):
    def load():
        with LlamaCpp(tiny_gguf, context_tokens=64, threads=1):
            pass

    load()
    before = open_descriptors()
    for _ in range(3):
        load()
    assert open_descriptors() == before


def test_a_real_file_that_is_cut_names_the_tensor(tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(smollm2_gguf().read_bytes()[:50_000_000])
    with pytest.raises(RuntimeFailureError, match="not within the file bounds"):
        LlamaCpp(path, context_tokens=64, threads=1)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not yet reaped does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
