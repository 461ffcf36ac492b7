"""Shapes that an engine is built for, and the memory that a build needs."""

import pytest

from tightfit.errors import DoesNotFitError
from tightfit.runtimes.tensorrt import memory
from tightfit.runtimes.tensorrt.profile import DECODE, PREFILL, Profile, input_shapes, phases

PROFILE = Profile(context_tokens=4096, max_batch=4, prompt_tokens=512)
MIB = 1 << 20


def shapes(name, fixed, phase):
    return input_shapes(name, fixed, phases(PROFILE)[phase], PROFILE.max_batch)


def test_the_two_profiles_of_a_decoder():
    assert shapes("input_ids", (-1, -1), PREFILL) == ((1, 1), (1, 512), (4, 512))
    assert shapes("position_ids", (-1, -1), DECODE) == ((1, 1), (1, 1), (4, 1))
    assert shapes("attention_mask", (-1, -1), DECODE) == ((1, 1), (1, 2049), (4, 4096))
    cache = shapes("past_key_values.3.key", (-1, 2, -1, 64), PREFILL)
    assert cache == ((1, 2, 0, 64), (1, 2, 0, 64), (4, 2, 4095, 64))


def test_every_step_of_a_whole_context_lies_in_a_profile():
    low, _, high = (shape[2] for shape in shapes("past_key_values.0.key", (-1, 2, -1, 8), DECODE))
    assert (low, high) == (0, PROFILE.context_tokens - 1)
    total = shapes("attention_mask", (-1, -1), PREFILL)
    assert total[2][1] >= PROFILE.context_tokens


def test_a_short_context_has_a_short_chunk():
    assert Profile(context_tokens=64).chunk_tokens == 64


@pytest.mark.parametrize(("weights_mib", "measured_mib"), [(161, 991), (809, 2519), (1534, 4833)])
def test_the_estimate_covers_what_was_measured(weights_mib, measured_mib):
    estimate_mib = memory.build_memory_bytes(weights_mib * MIB) / MIB
    assert measured_mib <= estimate_mib <= 1.25 * measured_mib


def test_too_little_memory_is_refused_with_the_figures(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 * memory.GIB)
    memory.check_build_memory(memory.GIB)
    with pytest.raises(DoesNotFitError, match=r"6\.2 GiB of memory.* has 4\.0 GiB") as caught:
        memory.check_build_memory(2 * memory.GIB)
    assert "more memory" in caught.value.hint
    assert "gguf" in caught.value.hint


def test_a_container_with_a_limit_counts(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(f"{3 * memory.GIB}\n")
    (tmp_path / "memory.current").write_text(f"{2 * memory.GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {memory.GIB}\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_machine_bytes", lambda: 100 * memory.GIB)
    assert memory.available_bytes() == 2 * memory.GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() == 100 * memory.GIB
