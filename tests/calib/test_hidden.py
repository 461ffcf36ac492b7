"""Hidden states keep every real token and no padding."""

from pathlib import Path

import pytest
import torch

from tightfit.calib.hidden import HiddenStates, plan_batches


def test_batches_hold_each_sample_once_within_the_budget() -> None:
    lengths = [5, 60, 7, 33, 8, 64, 1]

    batches = plan_batches(lengths, batch_tokens=64)

    assert sorted(sample for batch in batches for sample in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[sample] for sample in batch)
        assert padded <= 64


def test_a_sample_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    assert plan_batches([100, 3], batch_tokens=64) == [[0], [1]]


def test_scatter_and_gather_round_trip_through_the_file(tmp_path: Path) -> None:
    lengths = [3, 1, 4]
    states = HiddenStates(tmp_path / "hidden", lengths, width=2)
    hidden_BTD = torch.arange(16.0).view(2, 4, 2)
    states.scatter([0, 2], hidden_BTD)
    del states

    reopened = HiddenStates(tmp_path / "hidden", lengths, width=2)
    gathered_BTD, real_BT = reopened.gather([0, 2])

    assert real_BT.tolist() == [[True, True, True, False], [True] * 4]
    assert torch.equal(gathered_BTD[real_BT], hidden_BTD[real_BT])
    assert torch.equal(gathered_BTD[~real_BT], torch.zeros(1, 2))
    assert torch.equal(reopened.gather([1])[0], torch.zeros(1, 1, 2))


def test_the_process_holds_no_page_of_the_file(tmp_path: Path) -> None:
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("only Linux tells which pages a process holds")
    path = tmp_path / "hidden"
    states = HiddenStates(path, [4096], width=64)

    states.scatter([0], torch.ones(1, 4096, 64))
    states.add(torch.arange(4096), torch.ones(4096, 64))
    twice_BTD, _ = states.gather([0])

    assert bool((twice_BTD == 2).all())
    _, _, ours = smaps.read_text().partition(str(path))
    assert ours.partition("Rss:")[2].split()[:2] == ["0", "kB"]
