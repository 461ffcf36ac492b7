"""A small random model, and the trained tiny-r1."""

from pathlib import Path

import pytest
from support.sensitivity_case import SensitivityCase, sensitivity_case

from tightfit.calib.locate import locate_model


@pytest.fixture
def small(qwen2: Path) -> SensitivityCase:
    return sensitivity_case(qwen2, 4)


@pytest.fixture
def tiny_r1() -> SensitivityCase:
    return sensitivity_case(locate_model(None).path, 10)
