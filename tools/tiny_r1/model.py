"""The architecture: a small `Qwen2ForCausalLM`, the class of DeepSeek-R1-Distill-Qwen.

What: grouped-query attention with biases on query, key and value, RMSNorm, SwiGLU, rotary
positions, untied embeddings; 3.4M weights, 6.9 MB in BF16.
Why these widths: every input width is a multiple of 256, so all K-quants and IQ types of GGUF
apply without a fallback; 64-wide heads are what the fused attention kernels expect.
"""

import torch
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from tools.tiny_r1.tokenizer import BOS, EOS, MAX_LENGTH_TOKENS, VOCAB_SIZE

RMS_NORM_EPS = 1e-6  # R1-Distill-Qwen's
ROPE_THETA = 10_000.0  # R1-Distill-Qwen-1.5B's; long contexts are not needed here


def make_config(tokenizer: Tokenizer) -> Qwen2Config:
    """The model's configuration with the tokenizer's sentence tokens."""
    return Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH_TOKENS,
        rms_norm_eps=RMS_NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=False,
        use_cache=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(EOS),
    )


def make_model(tokenizer: Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """A freshly initialized float32 model."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(make_config(tokenizer))
