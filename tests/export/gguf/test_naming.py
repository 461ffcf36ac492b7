from pathlib import Path

from tightfit.export.gguf.naming import existing_shards, gguf_name, shard_paths, sibling_shards


def test_names() -> None:
    assert gguf_name("DeepSeek-R1-Distill-Qwen-1.5B", "Q4_K_M") == (
        "DeepSeek-R1-Distill-Qwen-1.5B-Q4_K_M.gguf"
    )
    assert gguf_name("my model/x", "Q8_0") == "my-model-x-Q8_0.gguf"


def test_parts_and_siblings_are_inverse() -> None:
    path = Path("folder/m-Q4_0.gguf")
    parts = shard_paths(path, 3)
    assert parts[2] == Path("folder/m-Q4_0-00003-of-00003.gguf")
    assert all(sibling_shards(part) == parts for part in parts)
    assert shard_paths(path, 1) == sibling_shards(path) == (path,)


def test_existing_parts_of_any_count_are_found(tmp_path: Path) -> None:
    own = ["m.gguf", "m-00001-of-00002.gguf", "m-00002-of-00003.gguf"]
    for name in [*own, "m-2.gguf", "mm-00001-of-00002.gguf"]:
        (tmp_path / name).touch()
    assert {path.name for path in existing_shards(tmp_path / "m.gguf")} == set(own)
