"""Names, row order, rope and metadata, held against transformers by running the file."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.gguf_models import float_gguf
from transformers import AutoModelForCausalLM

from tightfit.runtimes.llamacpp import LlamaCpp

MAX_DIFFERENCE = 3e-4
"""Float32 on both sides; other summation orders. A wrong rope or row order gives over 0.1."""
N_TOKENS = 300

YARN_WITH_FACTOR = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "attention_factor": 1.0,
    "beta_fast": 16.0,
}
CASES = {
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie": True}),
    "qwen2-linear": ("qwen2", {"rope": "linear"}),
    "qwen3": ("qwen3", {}),
    "qwen3-yarn": ("qwen3", {"rope": "yarn"}),
    "qwen3-yarn-attention-factor": ("qwen3", {"rope_parameters": YARN_WITH_FACTOR}),
    "qwen3-wide-heads": ("qwen3", {"head_dim": 96}),
    "llama": ("llama", {}),
    "llama-llama3": ("llama", {"rope": "llama3"}),
    "llama-biases": ("llama", {"attention_bias": True}),
}


@pytest.mark.parametrize(("family", "options"), CASES.values(), ids=CASES.keys())
def test_llama_cpp_computes_what_transformers_does(
    family: str, options: dict[str, object], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family, dtype=torch.float32, **options)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    (path,) = float_gguf(checkpoint, tmp_path / "model.gguf", model.state_dict())
    tokens = torch.randint(0, 512, (N_TOKENS,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens[None]).logits[0].numpy()
    with LlamaCpp(path, context_tokens=512, threads=1, kv_type="f32") as runtime:
        found = runtime.logits(tokens.tolist())
    assert abs(found - expected).max() < MAX_DIFFERENCE
    assert expected.std() > 0.1, "logits too flat to tell a mistake"
