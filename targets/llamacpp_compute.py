"""The compute buffers of llama.cpp: what its graph needs beside weights and KV cache.

A buffer is planned once, for the largest moment of a micro-batch of u = 512 tokens whose logits are
all wanted (`n_outputs_max` left alone), with flash attention, the default. In float32 numbers a
token, h being the hidden width and c half of the padded context (a mask of 2-byte numbers):

    head    vocabulary
    block   the widest of   3 intermediate                                    gate, up, product
                            experts a token (3 expert_intermediate + h)       the same, routed
                            heads (head_dim + rope + latent + latent + rope)  queries on latents

    one device        4 u (max(head, block) + n h + c)      n = 4 on a GPU, 5 on a CPU
    layers, first     4 u (block + 16 h + 4 c), and heads * rope more with latent attention
            between   4 u (block + 11 h + 4 c)
            last      4 u (max(head + 9 h, block + 11 h) + 4 c)
    tensors, each     as one device: intermediate results are allocated whole (llama.cpp #23937)

A layer split keeps GGML_SCHED_MAX_COPIES = 4 copies of whatever enters a device, the mask included.
Three effects of ggml's allocator, which puts a tensor into the smallest hole that takes it:

    what an expert returns (the h above) counts only while h > 2 expert_intermediate
    the logits go where the mask was once that is long enough: head counts only while
    vocabulary > c + 2 h (one GPU), on a CPU until vocabulary <= c - h at the latest
    one more hidden-wide tensor on a CPU while intermediate - 2 h <= c < 2 intermediate - h,
    where the head is the larger moment

The numbers of hidden-wide tensors are this build's (xllamacpp 2026.10): they were read from its own
reports, for CPUs and for stand-in devices that its scheduler takes for GPUs (docs/memory.md). The
count does not depend on the number of sequences; llama-server, which wants few logits, needs
only the block.
"""

from tightfit.calib.dimensions import ModelDimensions
from tightfit.targets.profile import Target
from tightfit.targets.workload import Split, Workload

CONTEXT_STEP_TOKENS = 256
"""llama.cpp pads the KV cache to this (flash attention reads it in such strides)."""
MICRO_BATCH_TOKENS = 512
"""llama.cpp's default `n_ubatch`."""
_F32_BYTES = 4
_MLP_TENSORS = 3
_INPUT_COPIES = 4
"""`GGML_SCHED_MAX_COPIES`: what pipeline parallelism keeps of everything that enters a device."""

# Hidden-wide tensors beside the largest moment.
_ON_CPU = 5
_ON_GPU = 4
_ON_FIRST = 16
_BETWEEN = 11
_BESIDE_LAST_LOGITS = 9
_ON_HOST = 4
"""In host memory, beside the GPU: the embedding of a micro-batch and what is copied from there."""
_ON_SPLIT_HOST = 10
# By how many the hole of the mask is wider or narrower than it was.
_HOLE_ON_GPU = 2
_HOLE_ON_CPU = -1


def padded_context(context_tokens: int) -> int:
    """The context of a sequence as llama.cpp allocates it."""
    return -(-context_tokens // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS


def compute_bytes(
    dimensions: ModelDimensions, workload: Workload, target: Target, n_devices: int
) -> tuple[int, ...]:
    """Bytes of the compute buffer of each device; unified memory holds the host's as well."""
    mask = _mask_numbers(workload)
    if n_devices == 1 or workload.split is Split.TENSOR:
        numbers = (_whole(dimensions, mask, on_cpu=target.kind == "cpu"),) * n_devices
    else:
        numbers = _by_layers(dimensions, mask, n_devices)
    if target.unified_memory:
        numbers = (numbers[0] + _on_host(dimensions, mask, n_devices), *numbers[1:])
    n_tokens = min(MICRO_BATCH_TOKENS, workload.n_sequences * workload.context_tokens)
    return tuple(_F32_BYTES * n_tokens * count for count in numbers)


def _whole(dimensions: ModelDimensions, mask: int, *, on_cpu: bool) -> int:
    """Numbers a token of a device that runs the whole graph."""
    hidden, wide = dimensions.hidden_size, dimensions.intermediate_size
    block, head = _block_moment(dimensions), dimensions.vocab_size
    n_beside = _ON_CPU if on_cpu else _ON_GPU
    hole = mask + (_HOLE_ON_CPU if on_cpu else _HOLE_ON_GPU) * hidden
    if head <= max(block, hole):
        return block + n_beside * hidden + mask
    if on_cpu and wide - 2 * hidden <= mask < 2 * wide - hidden:
        n_beside += 1
    return head + n_beside * hidden + mask


def _by_layers(dimensions: ModelDimensions, mask: int, n_devices: int) -> tuple[int, ...]:
    """The same for each device of a layer split."""
    hidden, block = dimensions.hidden_size, _block_moment(dimensions)
    masks = _INPUT_COPIES * mask
    first = block + _ON_FIRST * hidden + masks
    if dimensions.mla is not None:
        first += dimensions.n_heads * dimensions.mla.qk_rope_head_dim
    between = block + _BETWEEN * hidden + masks
    last = max(between, dimensions.vocab_size + _BESIDE_LAST_LOGITS * hidden + masks)
    return (first, *[between] * (n_devices - 2), last)


def _on_host(dimensions: ModelDimensions, mask: int, n_devices: int) -> int:
    if n_devices == 1:
        return _ON_HOST * dimensions.hidden_size + mask
    return _ON_SPLIT_HOST * dimensions.hidden_size + _INPUT_COPIES * mask


def _block_moment(dimensions: ModelDimensions) -> int:
    """Numbers a token that the widest moment inside a block holds, beside hidden-wide tensors."""
    widths = [_MLP_TENSORS * dimensions.intermediate_size]
    if (moe := dimensions.moe) is not None and dimensions.n_layers > moe.n_dense_layers:
        routed, hidden = _MLP_TENSORS * moe.expert_intermediate_size, dimensions.hidden_size
        # What an expert returns lies where its gate and up were, if it fits.
        routed += hidden if hidden > 2 * moe.expert_intermediate_size else 0
        widths.append(moe.n_experts_per_token * routed)
    if (mla := dimensions.mla) is not None:
        latents = 2 * (mla.kv_lora_rank + mla.qk_rope_head_dim)
        widths.append(dimensions.n_heads * (dimensions.head_dim + latents))
    return max(widths)


def _mask_numbers(workload: Workload) -> int:
    """The attention mask of a token, an F16 for each place of its sequence, as float32 numbers."""
    return padded_context(workload.context_tokens) // 2
