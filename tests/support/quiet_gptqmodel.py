"""gptqmodel, without what its import does to the process."""

import logging
import os
from types import ModuleType

import pytest


def import_gptqmodel() -> ModuleType:
    """The package, or a skipped test; the environment and the root logger stay as they were.

    Its import points HF_HOME at a folder in /tmp, for all that starts or is imported later.
    """
    environment, level = dict(os.environ), logging.getLogger().level
    try:
        module: ModuleType = pytest.importorskip("gptqmodel")
    finally:
        os.environ.clear()
        os.environ.update(environment)
        logging.getLogger().setLevel(level)
    return module
