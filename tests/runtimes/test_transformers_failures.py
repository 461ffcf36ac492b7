"""Damaged folders, missing packages, full memory: always our error, never transformers'."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_r1 import TINY_R1
from transformers import MambaConfig, MambaForCausalLM

from tightfit.errors import ArtifactError, MissingPackageError, RuntimeFailureError, UsageError
from tightfit.runtimes.transformers import TransformersModel


def test_tokens_outside_the_model_are_refused():
    with TransformersModel(TINY_R1, context_tokens=64) as runtime:
        with pytest.raises(RuntimeFailureError, match="the vocabulary of tiny-r1"):
            runtime.logits([1, runtime.vocab_size])
        with pytest.raises(RuntimeFailureError, match="1 to 64"):
            runtime.generate([[1], [1] * 65], max_tokens=1, seed=0)
        with pytest.raises(RuntimeFailureError, match="0 tokens"):
            runtime.generate([[]], max_tokens=1, seed=0)


def test_a_closed_model_says_so():
    runtime = TransformersModel(TINY_R1, context_tokens=64)
    runtime.close()
    with pytest.raises(RuntimeFailureError, match="was closed"):
        runtime.logits([1])


def test_nothing_is_written_while_it_loads(capfd):
    TransformersModel(TINY_R1, context_tokens=64).close()
    assert capfd.readouterr() == ("", "")


def cut(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])


def without_a_tensor(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def quantized_as(folder, section):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))


DAMAGE = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "half a config": (lambda folder: cut(folder / "config.json", 99), "does not load"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "does not load"),
    "half the weights": (lambda folder: cut(folder / "model.safetensors", 10**6), "does not load"),
    "a tensor too few": (without_a_tensor, r"lacks 1 tensors: model\.layers\.1\.mlp\.down_proj"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_our_error_with_its_cause(tmp_path, damage):
    folder = shutil.copytree(TINY_R1, tmp_path / "model")
    harm, words = DAMAGE[damage]
    harm(folder)
    with pytest.raises(RuntimeFailureError, match=words) as caught:
        TransformersModel(folder, context_tokens=64)
    assert str(folder) in caught.value.problem
    assert caught.value.hint


def test_a_folder_without_tokenizer_is_said_before_the_weights_are_read(tmp_path):
    folder = shutil.copytree(TINY_R1, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    cut(folder / "model.safetensors", 0)
    with pytest.raises(ArtifactError, match=r"holds no tokenizer\.json"):
        TransformersModel(folder, context_tokens=64)


def test_weights_that_need_a_package_name_it(tmp_path):
    folder = shutil.copytree(TINY_R1, tmp_path / "model")
    quantized_as(folder, {"quant_method": "aqlm"})
    with pytest.raises(MissingPackageError, match="aqlm"):
        TransformersModel(folder, context_tokens=64)


def test_a_state_that_is_no_kv_cache_is_refused(tmp_path):
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=32, state_size=8, num_hidden_layers=2, vocab_size=512)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    shutil.copy(TINY_R1 / "tokenizer.json", tmp_path / "mamba")
    with pytest.raises(RuntimeFailureError, match="keeps a state of the kind LinearAttention"):
        TransformersModel(tmp_path / "mamba", context_tokens=64)


def test_memory_that_runs_out_is_our_error(monkeypatch):
    with TransformersModel(TINY_R1, context_tokens=64) as runtime:

        def full(**_inputs):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(runtime._model, "forward", full)
        with pytest.raises(RuntimeFailureError, match="can't allocate memory") as caught:
            runtime.generate([[1, 2]], max_tokens=2, seed=0)
        assert "shorter context" in caught.value.hint
        assert "tiny-r1" in caught.value.problem


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeFailureError, match="no NVIDIA GPU"):
        TransformersModel(TINY_R1, context_tokens=64, device="cuda")
    with pytest.raises(UsageError, match="no device 'gpu'"):
        TransformersModel(TINY_R1, context_tokens=64, device="gpu")
