"""The header of a GGUF: what the model is, its sizes, and how it was quantized.

Keys follow ggml's docs/gguf.md and what llama.cpp's converter writes. There is no date and no
machine in it.
"""

from dataclasses import dataclass

from gguf import GGML_QUANT_VERSION, LlamaFileType, Metadata
from gguf.utility import size_label

from tightfit.calib.dimensions import ModelDimensions
from tightfit.export.gguf.deepseek2 import deepseek2_entries
from tightfit.export.gguf.entry import Entry, f32, text, u32
from tightfit.export.gguf.rope import rope_entries

HUB_URL = "https://huggingface.co/"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIdentity:
    """Where the model comes from."""

    id: str
    """Hub id (`owner/name`) or a plain name."""
    license: str | None = None
    """SPDX identifier in lower case, as on the Hub."""
    on_hub: bool = False
    """Whether `id` is a repository of the Hub that the artifact names as its base model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceSource:
    """The calibration that weighted the rounding, in the keys of llama.cpp's importance matrix."""

    file: str
    """File name or embedded set that the text comes from, without a folder."""
    dataset: str
    """What that is, e.g. `tightfit embedded set, seed 0`."""
    n_entries: int
    """Tensors that were calibrated."""
    n_chunks: int
    """Sequences."""


def model_entries(
    architecture: str,
    dimensions: ModelDimensions,
    identity: ModelIdentity,
    *,
    n_parameters: int,
    file_type: LlamaFileType,
    quantized_by: str,
    importance: ImportanceSource | None = None,
    n_mtp_layers: int = 0,
) -> tuple[Entry, ...]:
    """All keys but the tokenizer's, in their fixed order.

    `n_mtp_layers` are in the file; `n_parameters` counts those of the other layers. Raises
    `CheckpointError` for a model that llama.cpp would compute otherwise than transformers.
    """
    return (
        text("general.architecture", architecture),
        text("general.type", "model"),
        *_identity_entries(identity, _size_label(n_parameters, dimensions), n_parameters),
        u32("general.quantization_version", GGML_QUANT_VERSION),
        u32("general.file_type", file_type),
        text("general.quantized_by", quantized_by),
        *_size_entries(architecture, dimensions, n_mtp_layers),
        *_importance_entries(importance),
    )


def _size_label(n_parameters: int, dimensions: ModelDimensions) -> str:
    """`1.5B`, or `256x20B`: experts, and the weights of a model with one expert a layer."""
    moe = dimensions.moe
    if moe is None:
        return size_label(n_parameters, n_parameters, 0, 0)
    n_matrices = 3 * (dimensions.n_layers - moe.n_dense_layers)  # gate, up and down
    expert = n_matrices * dimensions.hidden_size * moe.expert_intermediate_size
    shared = n_parameters - moe.n_routed_experts * expert
    return size_label(n_parameters, shared, expert, moe.n_routed_experts)


def _identity_entries(identity: ModelIdentity, label: str, n_parameters: int) -> list[Entry]:
    """Name, base name, size and fine-tune as the `gguf` package reads them from an id."""
    full_name, organization, basename, finetune, version, size = Metadata.get_model_id_components(
        identity.id, n_parameters
    )
    name = _title(full_name or identity.id)
    size = size or label
    entries = [text("general.name", name)]
    optional = {
        "general.organization": organization and _title(organization),
        "general.version": version,
        "general.finetune": finetune,
        "general.basename": basename,
        "general.size_label": size,
        "general.license": identity.license,
    }
    entries += [text(key, value) for key, value in optional.items() if value]
    if identity.on_hub:
        entries += [u32("general.base_model.count", 1), text("general.base_model.0.name", name)]
        if organization:
            entries.append(text("general.base_model.0.organization", _title(organization)))
        entries.append(text("general.base_model.0.repo_url", HUB_URL + identity.id))
    return entries


def _title(part: str) -> str:
    """Words in capitals, as llama.cpp's converter writes names."""
    return str(Metadata.id_to_title(part))  # type: ignore[no-untyped-call]


def _size_entries(architecture: str, dimensions: ModelDimensions, n_mtp_layers: int) -> list[Entry]:
    prefix = architecture
    # A cache of latents is one head that all query heads read.
    n_kv_heads = 1 if dimensions.mla else dimensions.n_kv_heads
    entries = [
        u32(f"{prefix}.vocab_size", dimensions.vocab_size),
        u32(f"{prefix}.context_length", dimensions.max_position_embeddings),
        u32(f"{prefix}.embedding_length", dimensions.hidden_size),
        u32(f"{prefix}.block_count", dimensions.n_layers + n_mtp_layers),
        u32(f"{prefix}.feed_forward_length", dimensions.intermediate_size),
        u32(f"{prefix}.attention.head_count", dimensions.n_heads),
        u32(f"{prefix}.attention.head_count_kv", n_kv_heads),
        f32(f"{prefix}.attention.layer_norm_rms_epsilon", dimensions.rms_norm_eps),
    ]
    if dimensions.mla is not None:
        return [*entries, *deepseek2_entries(architecture, dimensions, n_mtp_layers)]
    if dimensions.head_dim * dimensions.n_heads != dimensions.hidden_size:
        entries += [
            u32(f"{prefix}.attention.key_length", dimensions.head_dim),
            u32(f"{prefix}.attention.value_length", dimensions.head_dim),
        ]
    return entries + rope_entries(
        architecture,
        head_dim=dimensions.head_dim,
        theta=dimensions.rope_theta,
        scaling=dimensions.rope_scaling,
    )


def _importance_entries(importance: ImportanceSource | None) -> list[Entry]:
    if importance is None:
        return []
    return [
        text("quantize.imatrix.file", importance.file),
        text("quantize.imatrix.dataset", importance.dataset),
        u32("quantize.imatrix.entries_count", importance.n_entries),
        u32("quantize.imatrix.chunks_count", importance.n_chunks),
    ]
