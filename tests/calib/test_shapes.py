import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from tightfit.calib.architecture import architecture_of
from tightfit.calib.config import ModelConfig
from tightfit.calib.dimensions import dimensions_of
from tightfit.calib.shapes import count_parameters, tensor_shapes

# Head dimension times heads is not the hidden width, and no two sizes are equal.
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 512,
}
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES),
    "qwen2-tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=24),
    "llama": LlamaConfig(**SIZES, head_dim=32),
    "llama-bias": LlamaConfig(**SIZES, attention_bias=True),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shape_is_that_of_transformers(name: str) -> None:
    theirs = CONFIGS[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    dimensions = dimensions_of(ModelConfig(origin=name, values=theirs.to_dict()))
    shapes = tensor_shapes(architecture_of(theirs.model_type), dimensions)
    assert shapes == {key: tuple(value.shape) for key, value in model.named_parameters()}
    assert count_parameters(shapes) == model.num_parameters()
