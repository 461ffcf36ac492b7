"""Model folders made to do harm: config.json, the index of the shards, links, the tokenizer."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from support.checkpoints import make_checkpoint
from support.deepseek_v3 import make_deepseek_v3
from support.hostile import FUZZ, MESSAGE_CHARACTERS, answer, damaged_json, time_limit

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.config import read_config
from tightfit.calib.dimensions import dimensions_of
from tightfit.calib.tensor_index import index_folder
from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.calib.validate import validate
from tightfit.errors import CheckpointError
from tightfit.export.gguf.tokenizer import read_tokenizer

INDEX = "model.safetensors.index.json"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "model"
    return make_checkpoint(folder, "llama", hidden=64, sharded=True)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A config.json with latent attention and experts."""
    folder = make_deepseek_v3(tmp_path_factory.mktemp("mixture") / "model")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.fixture
def folder(sharded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded, tmp_path / "model")


def refusal(folder: Path) -> CheckpointError:
    with time_limit(), pytest.raises(CheckpointError) as caught:
        check(folder)
    assert len(str(caught.value)) < MESSAGE_CHARACTERS
    return caught.value


def check(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    validate(checkpoint, checkpoint.architecture)


# --- config.json


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000"),
        ({"num_hidden_layers": -1}, "'num_hidden_layers' is -1"),
        ({"hidden_size": 2**63}, "'hidden_size' is 9223372036854775808"),
        ({"hidden_size": 64.0}, "'hidden_size' is 64.0"),
        ({"hidden_size": [64]}, "'hidden_size' is [64]"),
        ({"rms_norm_eps": 10**30}, "'rms_norm_eps' is 1000000000000000000000000000000"),
        ({"rope_parameters": [1]}, "'rope_parameters' is [1]"),
        ({"model_type": "x" * 10**6}, "'model_type' is 'xxx"),
        ({"model_type": "\x1b[2J"}, "'model_type' is '\\x1b[2J'"),
        ({"model_type": {}}, "'model_type' is {}"),
    ],
)
def test_sizes_that_no_model_has(values: dict[str, Any], sentence: str, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    assert sentence in refusal(folder).problem


@pytest.mark.parametrize("key", ["n_routed_experts", "num_nextn_predict_layers"])
def test_counts_that_no_mixture_has(key: str, mixture: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(mixture | {key: 10**9}))
    with time_limit(), pytest.raises(CheckpointError, match=f"'{key}' is 1000000000"):
        dimensions_of(read_config(tmp_path))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"[" * 100_000, "nested deeper"),
        (b'{"model_type": "llama", "model_type": "qwen2"}', "'model_type' is there twice"),
        (b'{"rms_norm_eps": 1e400}', "'rms_norm_eps' is inf"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'"llama"', "not a JSON object"),
    ],
)
def test_what_is_no_config(text: bytes, sentence: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(text)
    assert sentence in refusal(folder).problem


def test_configs_of_mixtures_with_values_exchanged(mixture: dict[str, Any], tmp_path: Path) -> None:
    @FUZZ
    @given(config=damaged_json(mixture))
    def fuzz(config: str) -> None:
        (tmp_path / "config.json").write_text(config)
        sizes = answer(lambda: dimensions_of(read_config(tmp_path)))
        if sizes is None:
            return
        assert 1 <= sizes.n_layers <= 512
        assert 1 <= sizes.vocab_size < 2**31
        assert 0 < sizes.rms_norm_eps < float("inf")

    fuzz()


def test_configs_with_values_exchanged(folder: Path) -> None:
    whole = json.loads((folder / "config.json").read_text())

    @settings(FUZZ, max_examples=150)
    @given(config=damaged_json(whole))
    def fuzz(config: str) -> None:
        (folder / "config.json").write_text(config)
        answer(lambda: check(folder))

    fuzz()


# --- the index


def edit_index(folder: Path, **places: Any) -> None:
    path = folder / INDEX
    index = json.loads(path.read_text())
    index["weight_map"] |= {Q_PROJ: places.pop("place")} if "place" in places else places
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "place",
    [
        *("../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", ".."),
        *("a\\b.safetensors", "C:b.safetensors", "pytorch_model.bin", "\0.safetensors"),
        *("\x1b[2J.safetensors", "x" * 10**6, "", 3, None, ["a.safetensors"], {}),
    ],
)
def test_places_that_are_no_file_of_the_folder(place: object, folder: Path) -> None:
    edit_index(folder, place=place)
    error = refusal(folder)
    assert "is said to be in" in error.problem
    assert "plain file name" in error.allowed


def test_a_name_that_clears_the_screen(folder: Path) -> None:
    edit_index(folder, **{"\x1b[2J": "model-00001-of-00002.safetensors"})
    assert r"'\x1b[2J' is said to be in" in refusal(folder).problem


@pytest.mark.parametrize("text", [b"[]", b'{"weight_map": []}', b'{"weight_map": {}}', b"[" * 9999])
def test_what_is_no_index(text: bytes, folder: Path) -> None:
    (folder / INDEX).write_bytes(text)
    assert "`weight_map`" in refusal(folder).problem


def test_a_tensor_with_two_places_in_the_index(folder: Path) -> None:
    index = (folder / INDEX).read_text()
    (folder / INDEX).write_text(index.replace('"model.norm.weight"', f'"{Q_PROJ}"'))
    assert f"'{Q_PROJ}' is there twice" in refusal(folder).problem


def test_a_tensor_in_a_shard_that_lacks_it(folder: Path) -> None:
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    other = next(file for file in places.values() if file != places[Q_PROJ])
    edit_index(folder, place=other)
    error = refusal(folder)
    assert f"it holds '{Q_PROJ}'" in error.problem
    assert other in error.problem


def test_a_tensor_in_two_shards_of_which_the_index_says_nothing(folder: Path) -> None:
    path = folder / INDEX
    index = json.loads(path.read_text())
    first, second, *_ = sorted(set(index["weight_map"].values()))
    shutil.copy(folder / first, folder / second)
    index["weight_map"] = {"x": first, "y": second}
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="says of neither that it is the one"):
        index_folder(folder)


def test_indexes_with_values_exchanged(folder: Path) -> None:
    whole = json.loads((folder / INDEX).read_text())

    @settings(FUZZ, max_examples=100)
    @given(index=damaged_json(whole))
    def fuzz(index: str) -> None:
        (folder / INDEX).write_text(index)
        found = answer(lambda: index_folder(folder))
        for tensor in (found or {}).values():
            assert tensor.file.parent == folder

    fuzz()


# --- links


def shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[0]


def test_a_link_that_leaves_the_folder(folder: Path, tmp_path: Path) -> None:
    link = shard(folder)
    moved = shutil.move(link, tmp_path / "secret.safetensors")
    link.symlink_to(moved)
    assert f"is a link to {moved}" in refusal(folder).problem


def test_links_within_the_folder_and_to_the_hubs_cache(sharded: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--a--b"
    snapshot = repo / "snapshots" / ("a" * 40)
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(sharded.iterdir())):
        shutil.copy(file, repo / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    check(snapshot)
    (tmp_path / "link").symlink_to(snapshot)
    check(tmp_path / "link")
    # The cache of another model is not this one's.
    other = tmp_path / "models--c--d"
    other.mkdir()
    stray = shutil.move(shard(snapshot).resolve(), other / "blob")
    link = shard(snapshot)
    link.unlink()
    link.symlink_to(os.path.relpath(stray, snapshot))
    assert "is a link to" in refusal(snapshot).problem


# --- the tokenizer

TINY = Path(load_tokenizer.__code__.co_filename).parent / "embedded" / "tiny-r1"
TOKENIZER = json.loads((TINY / "tokenizer.json").read_text())
TOKENIZER_CONFIG = json.loads((TINY / "tokenizer_config.json").read_text())


def tokenizer_folder(folder: Path, definition: str, config: str) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copy(TINY / "config.json", folder / "config.json")
    (folder / "tokenizer.json").write_text(definition)
    (folder / "tokenizer_config.json").write_text(config)
    return folder


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for", "unexpected"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ raise_exception('x' * 1000000) }}", "xxx...xxx"),
        (5, "fails"),
        ([], "fails"),
    ],
)
def test_templates_that_fail(template: object, sentence: str, tmp_path: Path) -> None:
    config = json.dumps(TOKENIZER_CONFIG | {"chat_template": template})
    folder = tokenizer_folder(tmp_path / "t", json.dumps(TOKENIZER), config)
    tokenizer = load_tokenizer(folder)
    with time_limit(), pytest.raises(CheckpointError) as caught:
        prompt_ids(tokenizer, "hi")
    assert len(str(caught.value)) < MESSAGE_CHARACTERS
    assert sentence.partition("...")[0] in caught.value.problem


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_tokenizer_files_without_end(name: str, tmp_path: Path) -> None:
    config = json.dumps(TOKENIZER_CONFIG)
    folder = tokenizer_folder(tmp_path / "t", json.dumps(TOKENIZER), config)
    with (folder / name).open("ab") as stream:
        stream.truncate(1 << 40)
    with time_limit(), pytest.raises(CheckpointError, match="has 1099511627776 bytes"):
        load_tokenizer(folder)


@settings(FUZZ, max_examples=40)
@given(definition=damaged_json(TOKENIZER), config=damaged_json(TOKENIZER_CONFIG))
def test_tokenizers_with_values_exchanged(definition: str, config: str, tmp_path: Path) -> None:
    pairs = ((definition, json.dumps(TOKENIZER_CONFIG)), (json.dumps(TOKENIZER), config))
    for files in pairs:
        folder = tokenizer_folder(tmp_path / "t", *files)
        ids = answer(lambda at=folder: prompt_ids(load_tokenizer(at), "hi"))
        assert ids is None or all(isinstance(number, int) for number in ids)
        made = answer(lambda at=folder: read_tokenizer(at, vocab_size=512))
        assert made is None or all(isinstance(token, str) for token in made.tokens + made.merges)
