"""Real tokenizers of the family, held against llama.cpp's own tokenization."""

import json
import shutil
from pathlib import Path

import pytest
from gguf import TokenType
from support.gguf_models import REAL_TOKENIZERS, unpack_tokenizer, vocabulary_gguf
from support.smollm2 import smollm2_checkpoint
from tokenizers import Tokenizer

from tightfit.calib.locate import locate_model
from tightfit.errors import CheckpointError
from tightfit.export.gguf.tokenizer import GgufTokenizer, read_tokenizer
from tightfit.runtimes.llamacpp import LlamaCpp

BOS = "<｜begin▁of▁sentence｜>"
TEXTS = (
    "What is 12345678 + 9.75? It's 3,000; I'LL say\t1e-5.",
    "line\n\n\n  indented\r\n\ttabs   and trailing   \n",
    "naïve café, Größe, ½, x²³, Ⅷ, ٣٤٥, こんにちは世界 한국어 ไทย",
    "🚀👩‍👩‍👧 emoji — dashes… «quotes» ﷽",
    "   leading spaces",
    "don't we'RE they'Ve",
    "{'a': [1, 22, 333, 4444]}  // x_1 += y**2;",
    f"{BOS}<｜User｜>Solve $x^2=4$.<｜Assistant｜><think>\nhm\n</think>\n\n\\boxed{{2}}",
    f"{BOS}{BOS}twice",
    "<think></think> a<think>b < think >",
)


@pytest.fixture(
    params=[
        "deepseek-r1",
        "deepseek-r1-0528-qwen3-8b",
        "deepseek-r1-distill-llama-8b",
        "tiny-r1",
        # Dequantizes the whole model for its tokenizer.
        pytest.param("smollm2", marks=pytest.mark.slow),
    ]
)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "tiny-r1":
        return locate_model(None).path
    if request.param == "smollm2":
        return smollm2_checkpoint(tmp_path / "model")
    return unpack_tokenizer(request.param, tmp_path)


def test_llama_cpp_gives_the_ids_of_tokenizers(folder: Path, tmp_path: Path) -> None:
    path = vocabulary_gguf(folder, tmp_path / "vocabulary.gguf")
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    with LlamaCpp(path, context_tokens=64, threads=1) as runtime:
        for text in TEXTS:
            expected = reference.encode(text, add_special_tokens=False).ids
            assert runtime.tokenize(text) == expected, text
            begun = runtime.tokenize(text, add_special=True)
            if config.get("add_bos_token"):
                assert begun == [reference.token_to_id(BOS), *expected], text
            else:
                assert begun == expected, text


@pytest.mark.parametrize(("name", "expected"), REAL_TOKENIZERS.items())
def test_pre_tokenizer_ids_are_llama_cpps(name: str, expected: str, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(unpack_tokenizer(name, tmp_path), vocab_size=160_000)
    assert tokenizer.pre_tokenizer == expected
    assert len(tokenizer.tokens) == len(tokenizer.types) == 160_000
    assert tokenizer.tokens[-1] == "[PAD159999]"
    assert tokenizer.types[-1] is TokenType.UNUSED


def test_types_follow_the_added_tokens(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(unpack_tokenizer("deepseek-r1", tmp_path), vocab_size=129_280)
    kinds = dict(zip(tokenizer.tokens, tokenizer.types, strict=True))
    assert kinds[BOS] is TokenType.CONTROL
    assert kinds["<｜User｜>"] is TokenType.CONTROL, "not special in the file, but looks it"
    assert kinds["<think>"] is TokenType.USER_DEFINED
    assert kinds["the"] is TokenType.NORMAL
    assert tokenizer.special_ids == {"bos": 0, "eos": 1, "pad": 1}
    assert tokenizer.add_bos
    assert not tokenizer.add_eos
    assert tokenizer.chat_template is not None
    assert "<｜Assistant｜>" in tokenizer.chat_template


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A copy of tiny-r1's tokenizer that a test may change."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(locate_model(None).path / name, tmp_path / name)
    return tmp_path


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def read(folder: Path) -> GgufTokenizer:
    return read_tokenizer(folder, vocab_size=512)


def test_a_custom_vocabulary_is_known_by_its_split(tiny: Path) -> None:
    assert read(tiny).pre_tokenizer == "deepseek-r1-qwen"


def test_both_forms_of_merges_give_the_same(tiny: Path) -> None:
    pairs = read(tiny).merges
    definition = json.loads((tiny / "tokenizer.json").read_text())
    model = definition["model"]
    assert isinstance(model["merges"][0], list)
    change(tiny / "tokenizer.json", model=model | {"merges": list(pairs)})
    assert read(tiny).merges == pairs
    assert pairs[0].count(" ") == 1


def test_the_chat_template_file_wins_and_lists_are_split(tiny: Path) -> None:
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    change(tiny / "tokenizer_config.json", chat_template=named)
    tokenizer = read(tiny)
    assert (tokenizer.chat_template, tokenizer.named_templates) == ("A", {"tool_use": "B"})
    keys = {entry.key: entry.value for entry in tokenizer.entries}
    assert keys["tokenizer.chat_template.tool_use"] == "B"
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    (tiny / "chat_template.jinja").write_text("C")
    assert read(tiny).chat_template == "C"


def test_bos_from_the_files_template(tiny: Path) -> None:
    config = json.loads((tiny / "tokenizer_config.json").read_text())
    del config["add_bos_token"]
    (tiny / "tokenizer_config.json").write_text(json.dumps(config))
    assert not read(tiny).add_bos
    single = [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    change(tiny / "tokenizer.json", post_processor={"type": "Sequence", "processors": [template]})
    assert read(tiny).add_bos


def test_ids_stand_in_for_missing_names(tiny: Path) -> None:
    change(tiny / "tokenizer_config.json", eos_token=None)
    change(tiny / "generation_config.json", eos_token_id=[509, 507])
    assert read(tiny).special_ids["eos"] == 509
    change(tiny / "tokenizer_config.json", pad_token=None)
    (tiny / "config.json").write_text('{"pad_token_id": -1}')  # as in older Llama checkpoints
    change(tiny / "generation_config.json", pad_token_id=-1)
    assert "pad" not in read(tiny).special_ids


def test_an_unknown_split_lists_the_known_ids(tiny: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": r"\d+"}, "behavior": "Isolated", "invert": False}
    settings = dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), False)
    steps = [split, {"type": "ByteLevel"} | settings]
    change(tiny / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    with pytest.raises(CheckpointError, match=r"\\d\+; bytes") as caught:
        read(tiny)
    assert "deepseek-v3" in caught.value.allowed


def test_sentence_piece_is_refused(tiny: Path) -> None:
    definition = json.loads((tiny / "tokenizer.json").read_text())
    change(tiny / "tokenizer.json", model=definition["model"] | {"byte_fallback": True})
    with pytest.raises(CheckpointError, match="SentencePiece"):
        read(tiny)
    (tiny / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        read(tiny)
    (tiny / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match="SentencePiece"):
        read(tiny)


def test_damaged_files_and_foreign_tokenizers_are_refused(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="id 511 and the model knows 500"):
        read_tokenizer(tiny, vocab_size=500)
    (tiny / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read(tiny)
