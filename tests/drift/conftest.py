import pytest
from support.tiny_r1 import tiny_r1_gguf


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    return tiny_r1_gguf(tmp_path_factory.mktemp("tiny-r1"))
