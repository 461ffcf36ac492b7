"""The checkpoints that are converted: random weights in real shapes, written as real ones are."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.r1_tensors import count_weights
from benchmarks.shaped import TOKENIZER_FILES
from benchmarks.shaped_r1 import ShapedR1, write_shaped_r1
from tightfit.calib.architecture import architecture_of
from tightfit.calib.config import ModelConfig
from tightfit.calib.dimensions import dimensions_of
from tightfit.calib.locate import EMBEDDED_NAME, locate_model
from tightfit.calib.shapes import tensor_shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama:
    """A Llama in BF16; the sizes that are given are TinyLlama 1.1B's."""

    hidden: int = 2048
    intermediate: int = 5632
    n_layers: int = 22
    n_heads: int = 32
    n_kv_heads: int = 4
    vocab: int = 32000

    def config(self) -> dict[str, object]:
        """Its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": 506,
            "eos_token_id": 507,
        }

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor."""
        dimensions = dimensions_of(ModelConfig(origin="benchmark", values=self.config()))
        return tensor_shapes(architecture_of(dimensions.model_type), dimensions)

    def count(self) -> int:
        """Weights."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def write(self, folder: Path) -> None:
        """One file a block; one tensor is drawn at a time, and one file held."""
        shapes = self.shapes()
        generator = torch.Generator().manual_seed(0)
        folder.mkdir(parents=True)
        placed: dict[str, str] = {}
        for number, names in enumerate(_by_block(shapes)):
            file = f"model-{number:05d}.safetensors"
            tensors = {name: _draw(shapes[name], generator) for name in names}
            save_file(tensors, folder / file, metadata={"format": "pt"})
            placed |= dict.fromkeys(names, file)
        index = {"metadata": {}, "weight_map": placed}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps(self.config()))
        for name in TOKENIZER_FILES:
            shutil.copy(locate_model(EMBEDDED_NAME).path / name, folder / name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What is converted, and to which file types."""

    title: str
    n_weights: int
    write: Callable[[Path], object]
    """Into a folder that is not there yet."""
    schemes: tuple[str, ...]


def _models(llama: Llama, deepseek: ShapedR1) -> Mapping[str, Model]:
    return {
        "llama": Model(
            title="Llama in BF16",
            n_weights=llama.count(),
            write=llama.write,
            schemes=("q4_k_m", "q5_k_m", "q6_k", "iq4_xs", "q8_0", "q4_0"),
        ),
        "deepseek": Model(
            title="DeepSeek-V3 in FP8 blocks of 128 x 128",
            n_weights=count_weights(deepseek),
            write=lambda folder: write_shaped_r1(deepseek, folder),
            schemes=("q4_k_m", "q6_k"),
        ),
    }


FULL: Final = _models(
    Llama(), ShapedR1(n_layers=4, n_experts=64, hidden=2048, moe_intermediate=1024)
)
"""1.1 and 1.4 billion weights."""
SMALL: Final = _models(
    Llama(hidden=512, intermediate=1536, n_layers=4, n_heads=8, n_kv_heads=4, vocab=4096),
    ShapedR1(n_layers=2, n_experts=16, hidden=512, moe_intermediate=256),
)
"""About twenty million weights each; not eight experts, for which llama.cpp mixes types anew."""


def _by_block(names: Iterable[str]) -> list[list[str]]:
    """Those of a block together, what is outside of the blocks before them."""
    groups: dict[str, list[str]] = {"": []}
    for name in names:
        _, mark, after = name.partition(".layers.")
        groups.setdefault(after.partition(".")[0] if mark else "", []).append(name)
    return list(groups.values())


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, generator=generator) / math.sqrt(shape[-1])).to(torch.bfloat16)
