"""What llama.cpp itself reports for models of given sizes, on the CPU or on stand-in devices.

`reported` runs this file as a child process (llama.cpp aborts on what it does not like), which
loads sparse files of zeros and reads the log: model, KV and compute buffers.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, ExpertGatingFuncType, GGUFWriter
from gguf import GGMLQuantizationType as Type

from tightfit.calib.architecture import architecture_of
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import find_model
from tightfit.runtimes.llamacpp.binding import load_library
from tightfit.runtimes.llamacpp.client import CHILD_ENVIRONMENT
from tightfit.targets.schemes.ggml_types import tensor_bytes
from tightfit.targets.schemes.gguf import gguf_shapes, scheme_types

CACHE_TYPES = {"f16": 1, "q8_0": 8}
"""`enum ggml_type`."""
SPLIT_MODES = {"layer": 1, "tensor": 3}
"""`enum llama_split_mode`."""
_ALIGNMENT_BYTES = 32
_TIMEOUT_S = 120
_FLOATS = {Type.F32: np.dtype(np.float32), Type.F16: np.dtype(np.float16)}


@dataclass(frozen=True, kw_only=True)
class Use:
    """A context to make."""

    context_tokens: int
    n_sequences: int = 1
    cache_type: str = "f16"


@dataclass(frozen=True, kw_only=True)
class Load:
    """A model to load."""

    model: str
    """Name of a known model."""
    uses: Sequence[Use]
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes of it to change."""
    n_experts: int | None = None
    """Routed experts, where not the model's own."""
    scheme: str = "q4_k_m"
    n_devices: int = 0
    """Stand-in devices; 0: the CPU alone."""
    split: str = "layer"
    allocated: bool = False
    """Whether weights and caches are really allocated: on the CPU or in a layer split."""

    @property
    def dimensions(self) -> ModelDimensions:
        model = find_model(self.model)
        assert model is not None
        changed: dict[str, Any] = dict(self.sizes)
        if self.n_experts is not None:
            assert model.dimensions.moe is not None
            changed["moe"] = replace(model.dimensions.moe, n_routed_experts=self.n_experts)
        return replace(model.dimensions, **changed)

    @property
    def tensor_bytes(self) -> dict[str, int]:
        """Bytes of every tensor by GGUF name."""
        shapes, types = _stored(self)
        return {name: tensor_bytes(types[name], shape) for name, shape in shapes.items()}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Buffers in MiB by the name that llama.cpp gives their device, as it prints them."""

    model: dict[str, float]
    cached: list[float]
    """The whole KV cache, for each use; printed whether it is allocated or not."""
    cached_there: list[dict[str, float]]
    compute: list[dict[str, float]]


def reported(loads: Sequence[Load]) -> list[Report]:
    """What llama.cpp reports for each of the loads."""
    child = subprocess.run(
        [sys.executable, "-m", "support.llamacpp_loads"],
        input=json.dumps([asdict(load) for load in loads]),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        cwd=Path(__file__).parents[1],
        env=os.environ | CHILD_ENVIRONMENT,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return [Report(**fields) for fields in json.loads(child.stdout)]


def _stored(load: Load) -> tuple[dict[str, tuple[int, ...]], dict[str, Type]]:
    architecture = architecture_of(load.dimensions.model_type)
    shapes = gguf_shapes(architecture, load.dimensions)
    return shapes, scheme_types(load.scheme, shapes, architecture, load.dimensions)


def _write_zeros(load: Load, path: Path) -> None:
    """A GGUF of zeros that takes no room on a disk."""
    shapes, types = _stored(load)
    writer = GGUFWriter(path, architecture_of(load.dimensions.model_type).gguf_arch)
    _add_sizes(writer, load.dimensions)
    n_data = 0
    for name, shape in shapes.items():
        kind, n_bytes = types[name], tensor_bytes(types[name], shape)
        if kind in _FLOATS:
            writer.add_tensor_info(name, shape, _FLOATS[kind], n_bytes)
        else:
            block, block_bytes = GGML_QUANT_SIZES[kind]
            row_bytes = shape[-1] // block * block_bytes
            in_bytes = (*shape[:-1], row_bytes)
            writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), n_bytes, raw_dtype=kind)
        n_data += _aligned(n_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(_aligned(path.stat().st_size) + n_data)


def _add_sizes(writer: GGUFWriter, dimensions: ModelDimensions) -> None:
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(dimensions.vocab_size)
    writer.add_context_length(dimensions.max_position_embeddings)
    writer.add_embedding_length(dimensions.hidden_size)
    writer.add_block_count(dimensions.n_layers)
    writer.add_feed_forward_length(dimensions.intermediate_size)
    writer.add_head_count(dimensions.n_heads)
    writer.add_layer_norm_rms_eps(dimensions.rms_norm_eps)
    mla, moe = dimensions.mla, dimensions.moe
    if mla is None or moe is None:
        writer.add_head_count_kv(dimensions.n_kv_heads)
        writer.add_key_length(dimensions.head_dim)
        writer.add_value_length(dimensions.head_dim)
        writer.add_rope_dimension_count(dimensions.head_dim)
        return
    writer.add_head_count_kv(1)
    writer.add_key_length(mla.kv_lora_rank + mla.qk_rope_head_dim)
    writer.add_value_length(mla.kv_lora_rank)
    writer.add_key_length_mla(dimensions.head_dim)
    writer.add_value_length_mla(mla.v_head_dim)
    writer.add_rope_dimension_count(mla.qk_rope_head_dim)
    writer.add_kv_lora_rank(mla.kv_lora_rank)
    assert mla.q_lora_rank is not None
    writer.add_q_lora_rank(mla.q_lora_rank)
    writer.add_leading_dense_block_count(moe.n_dense_layers)
    writer.add_expert_count(moe.n_routed_experts)
    writer.add_expert_used_count(moe.n_experts_per_token)
    writer.add_expert_shared_count(moe.n_shared_experts)
    writer.add_expert_feed_forward_length(moe.expert_intermediate_size)
    writer.add_expert_weights_scale(moe.routed_scale)
    writer.add_expert_weights_norm(moe.normalized)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_expert_group_count(moe.n_groups)
    writer.add_expert_group_used_count(moe.n_groups_per_token)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


class _Loader:
    """llama.cpp in this process."""

    def __init__(self) -> None:
        self.library = load_library()
        self.lines: list[str] = []
        line_type = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._on_line = line_type(lambda _, text, __: self.lines.append(text.decode()))
        self.library.llama_log_set(self._on_line, None)
        self.library.llama_model_free.argtypes = (ctypes.c_void_p,)
        self._devices: list[Any] = []

    def report(self, load: Load, path: Path) -> Report:
        """Load it and make its contexts."""
        _write_zeros(load, path)
        model = self._model(load, path)
        there = self._buffers("model")
        log = "".join(self.lines)
        cached, cached_there, compute = [], [], []
        for use in load.uses:
            assert model, log[-2000:]
            self._context(model, use)
            sizes = re.findall(r"llama_kv_cache: size = +([\d.]+) MiB", "".join(self.lines))
            cached.append(float(sizes[0]))
            cached_there.append(self._buffers("KV"))
            compute.append(self._buffers("compute"))
        if model:
            self.library.llama_model_free(model)
        return Report(model=there, cached=cached, cached_there=cached_there, compute=compute)

    def _model(self, load: Load, path: Path) -> int | None:
        params = self.library.llama_model_default_params()
        params.no_alloc = not load.allocated
        params.use_extra_bufts = False  # the CPU's repacked matrices count as a buffer apart
        params.load_mode = 0  # read, not mapped: what is not allocated cannot be mapped
        if load.n_devices:
            from support.llamacpp_devices import StandIn

            while len(self._devices) < load.n_devices:
                self._devices.append(StandIn(self.library, len(self._devices)))
            chosen = self._devices[: load.n_devices]
            pointers = (ctypes.c_void_p * (len(chosen) + 1))(*[d.pointer for d in chosen], None)
            # All cards of a target are equal, and as free.
            shares = (ctypes.c_float * 128)(*([1.0] * len(chosen)))
            params.devices = ctypes.cast(pointers, ctypes.c_void_p)
            params.tensor_split = ctypes.cast(shares, ctypes.c_void_p)
            params.split_mode = SPLIT_MODES[load.split]
        self.lines.clear()
        model: int | None = self.library.llama_model_load_from_file(str(path).encode(), params)
        return model

    def _context(self, model: int, use: Use) -> None:
        params = self.library.llama_context_default_params()
        params.n_ctx = use.context_tokens * use.n_sequences
        params.n_seq_max = use.n_sequences
        params.type_k = params.type_v = CACHE_TYPES[use.cache_type]
        self.lines.clear()
        context = self.library.llama_init_from_model(model, params)
        assert context, "".join(self.lines)[-2000:]
        self.library.llama_free(context)

    def _buffers(self, kind: str) -> dict[str, float]:
        found = re.findall(rf"(\S+) {kind} buffer size = +([\d.]+) MiB", "".join(self.lines))
        return {name: float(mib) for name, mib in found}


def main() -> None:
    """Loads as JSON on stdin, reports as JSON on stdout."""
    loads = [
        Load(**fields | {"uses": [Use(**use) for use in fields["uses"]]})
        for fields in json.load(sys.stdin)
    ]
    loader = _Loader()
    with tempfile.TemporaryDirectory() as folder:
        reports = [loader.report(load, Path(folder) / "zeros.gguf") for load in loads]
    sys.stdout.write(json.dumps([asdict(report) for report in reports]))


if __name__ == "__main__":
    main()
