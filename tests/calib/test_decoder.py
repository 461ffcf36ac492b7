"""The streamed decoder gives the logits of the whole model in transformers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import to_fp8_blocks
from support.deepseek_v3 import make_deepseek_v3
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tightfit.calib.architecture import architecture_of
from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.decoder import Decoder

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 120,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3-yarn": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZES, head_dim=16, rope_parameters=YARN_ROPE)
    ),
    "llama-llama3": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE)),
}


@pytest.mark.parametrize("name", MODELS)
def test_streamed_logits_equal_the_whole_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: PreTrainedModel = MODELS[name]().float().eval()
    model.save_pretrained(tmp_path)
    weights = model.state_dict()
    architecture = architecture_of(model.config.model_type)
    decoder = Decoder(tmp_path, architecture, torch.device("cpu"))
    sequences = [list(range(3, 100)), [7, 7, 7, 1]]

    streamed = list(decoder.logits(sequences, weights.__getitem__))

    for ids, logits_TV in zip(sequences, streamed, strict=True):
        with torch.no_grad():
            whole_TV = model(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits_TV, whole_TV, rtol=0, atol=1e-5)
        assert whole_TV.std() > 0.01


@pytest.mark.parametrize("form", ["bfloat16", "fp8"])
@pytest.mark.parametrize(
    "config",
    [{}, {"yarn": False, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "mtp": True}],
    ids=["yarn", "direct query"],
)
def test_a_mixture_equals_the_whole_model(
    form: str, config: dict[str, object], tmp_path: Path
) -> None:
    folder = make_deepseek_v3(tmp_path / "model", **config)
    plain = folder
    if form == "fp8":
        folder = to_fp8_blocks(plain, tmp_path / "fp8")
    checkpoint = open_checkpoint(folder)
    if form == "fp8":  # transformers on the numbers that the blocks stand for
        values = {name: checkpoint.load(name).contiguous() for name in checkpoint.names()}
        save_file(values, plain / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    decoder = Decoder(folder, checkpoint.architecture, torch.device("cpu"))
    sequences = [list(range(3, 100)), [7, 7, 7, 1]]

    streamed = list(decoder.logits(sequences, checkpoint.load))

    for ids, logits_TV in zip(sequences, streamed, strict=True):
        with torch.no_grad():
            whole_TV = model(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits_TV, whole_TV, rtol=0, atol=1e-5)
        assert whole_TV.std() > 0.1
