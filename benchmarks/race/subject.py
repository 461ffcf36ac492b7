"""The model and the tokens of the race: a small random Qwen2, and ids given to all alike.

Peers get token ids, never text: they may build another tokenizer from the folder.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCABULARY = 512, 1536, 8, 8, 4, 512
LENGTH_TOKENS = 512
"""Of a calibration sequence."""
GROUP_SIZE = 128
_HELD_OUT_SEED = 1234
_HELD_OUT_SEQUENCES = 4


def make_model(folder: Path, n_layers: int = LAYERS) -> None:
    """Write the checkpoint, in float32 so that nobody's arithmetic is rounded before it starts."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=n_layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    build: Any = AutoModelForCausalLM.from_config
    build(config, dtype=torch.float32).save_pretrained(folder)


def calibration_ids(n_sequences: int, seed: int = 1) -> Tensor:
    """int64 (sequences, tokens)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (n_sequences, LENGTH_TOKENS), generator=generator)


def held_out_ids() -> Tensor:
    """Tokens that nobody calibrates on, of the same kind."""
    return calibration_ids(_HELD_OUT_SEQUENCES, _HELD_OUT_SEED)
