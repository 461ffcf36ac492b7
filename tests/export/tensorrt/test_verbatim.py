"""Finding matrices in a file: every form, against a search for every byte string."""

import numpy as np
import pytest

from tightfit.export.tensorrt.verbatim import Matrix, find_verbatim

RNG = np.random.default_rng(0)


def matrix(rows, columns, *, whole_bytes=True):
    data = RNG.integers(0, 256, rows * columns, dtype=np.uint8)
    return Matrix(data=data, shape=(rows, columns), whole_bytes=whole_bytes)


def values(item):
    return item.data.reshape(item.shape)


def write(path, *parts):
    """Parts at multiples of 8 bytes with zeros between, as in an engine."""
    data = b""
    for part in parts:
        data += b"\0" * (-len(data) % 64) + part
    path.write_bytes(data)
    return path


def test_all_three_forms_are_found(tmp_path):
    plain, transposed, left, right = matrix(16, 40), matrix(24, 8), matrix(8, 32), matrix(24, 32)
    packed = matrix(10, 64, whole_bytes=False)
    side_by_side = np.concatenate([values(left), values(right)]).T
    path = write(
        tmp_path / "plan",
        b"header",
        plain.data.tobytes(),
        values(transposed).T.tobytes(),
        side_by_side.tobytes(),
        packed.data.tobytes(),
    )
    wanted = {
        "plain": plain,
        "transposed": transposed,
        "left": left,
        "right": right,
        "packed": packed,
    }
    data = path.read_bytes()
    assert plain.data.tobytes() in data
    assert left.data.tobytes() not in data
    assert find_verbatim(path, wanted) == set(wanted)


@pytest.mark.parametrize("form", ["plain", "transposed", "strided"])
def test_one_changed_byte_anywhere_is_noticed(tmp_path, form):
    item, other = matrix(16, 24), matrix(16, 24)
    stored = {
        "plain": values(item),
        "transposed": values(item).T,
        "strided": np.concatenate([values(other), values(item)]).T,
    }[form].copy()
    assert find_verbatim(write(tmp_path / "plan", stored.tobytes()), {"w": item}) == {"w"}
    place = np.argwhere(stored == stored)
    mine = place if form != "strided" else place[place[:, 1] >= 16]
    for row, column in mine[RNG.choice(len(mine), 24, replace=False)]:
        changed = stored.copy()
        changed[row, column] ^= 1
        assert not find_verbatim(write(tmp_path / "plan", changed.tobytes()), {"w": item})


@pytest.mark.parametrize("shift", range(8))
def test_weights_may_begin_anywhere(tmp_path, shift):
    item, other = matrix(16, 24), matrix(24, 16)
    path = write(tmp_path / "plan", values(item).tobytes(), values(other).T.tobytes())
    path.write_bytes(bytes(shift) + path.read_bytes())
    assert find_verbatim(path, {"w": item, "x": other}) == {"w", "x"}


def test_a_matrix_cut_at_the_end_is_missing(tmp_path):
    item = matrix(16, 24)
    for stored in (values(item), values(item).T):
        path = write(tmp_path / "plan", stored.tobytes()[:-1])
        assert not find_verbatim(path, {"w": item})


def test_repeated_words_and_equal_matrices(tmp_path):
    zeros = Matrix(data=np.zeros(256, np.uint8), shape=(16, 16), whole_bytes=True)
    item = matrix(16, 16)
    twin = Matrix(data=item.data.copy(), shape=item.shape, whole_bytes=True)
    path = write(tmp_path / "plan", bytes(1024), item.data.tobytes())
    assert find_verbatim(path, {"a": item, "b": twin, "zeros": zeros}) == {"a", "b", "zeros"}
