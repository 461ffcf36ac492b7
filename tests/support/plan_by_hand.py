"""llama.cpp's files and buffers done again, slowly, from the published sizes of the models.

Typed in by hand: the sizes (config.json), the machines (memory less reserve, runtime, bandwidth),
bytes of 256 weights of each type (the GGUF specification), the types of each file type
(llama-quant.cpp) and the formulas of docs/memory.md. Nothing here imports tightfit.
"""

from dataclasses import dataclass
from functools import cache

GIB = 1 << 30
F32, F16 = 1024, 512
Q8_0, Q5_1, Q5_0, Q4_0 = 8 * 34, 8 * 24, 8 * 22, 8 * 18
Q6_K, Q5_K, Q4_K, Q3_K, Q2_K = 210, 176, 144, 110, 84
STANDS_IN = {Q6_K: Q8_0, Q5_K: Q5_1, Q4_K: Q5_0, Q3_K: Q4_0, Q2_K: Q4_0}
"""For rows of 128, which no super-block divides."""
FILE_TYPES = {
    "f16": F16,
    "q8_0": Q8_0,
    "q6_k": Q6_K,
    "q5_k_m": Q5_K,
    "q4_k_m": Q4_K,
    "q3_k_m": Q3_K,
    "q2_k": Q2_K,
}


@dataclass(frozen=True)
class Sizes:
    """Of a model with grouped-query attention."""

    layers: int
    hidden: int
    wide: int
    heads: int
    kv_heads: int
    vocab: int
    biases: bool = False
    qk_norm: bool = False
    rope_divisors: bool = False
    """Llama 3's frequency divisors, a tensor of the GGUF."""


@dataclass(frozen=True)
class Machine:
    """A target."""

    devices: int
    available_gib: float
    runtime_gib: float
    bandwidth_gb_s: float
    table_counts: bool = False
    """Whether the token table lies in the same memory."""


MODELS = {
    "r1-distill-qwen-1.5b": Sizes(28, 1536, 8960, 12, 2, 151936, biases=True),
    "r1-distill-qwen-7b": Sizes(28, 3584, 18944, 28, 4, 152064, biases=True),
    "r1-distill-llama-8b": Sizes(32, 4096, 14336, 32, 8, 128256, rope_divisors=True),
    "r1-0528-qwen3-8b": Sizes(36, 4096, 12288, 32, 8, 151936, qk_norm=True),
    "r1-distill-qwen-14b": Sizes(48, 5120, 13824, 40, 8, 152064, biases=True),
    "r1-distill-qwen-32b": Sizes(64, 5120, 27648, 40, 8, 152064, biases=True),
    "r1-distill-llama-70b": Sizes(80, 8192, 28672, 64, 8, 128256, rope_divisors=True),
    "r1": Sizes(61, 7168, 18432, 128, 128, 129280),
}
"""The smallest first; r1 stands for r1-zero and r1-0528, too."""
MACHINES = {
    "jetson-orin-nano-8gb": Machine(1, 6.6, 0.3, 102.4, table_counts=True),
    "rtx3060-8gb": Machine(1, 7.25, 0.3, 240.0),
    "rtx3060-12gb": Machine(1, 11.25, 0.3, 360.0),
    "cpu-16gb": Machine(1, 12.0, 0.1, 51.2, table_counts=True),
    "rtx4060ti-16gb": Machine(1, 15.05, 0.3, 288.0),
    "rtx4070ti-super-16gb": Machine(1, 15.05, 0.4, 672.0),
    "l4-24gb": Machine(1, 21.99, 0.35, 300.0),
    "rtx4090-24gb": Machine(1, 23.1, 0.5, 1008.0),
    "rtx3090-24gb": Machine(1, 23.15, 0.4, 936.0),
    "rtx5090-32gb": Machine(1, 30.8, 0.6, 1792.0),
    "a100-40gb": Machine(1, 39.45, 0.5, 1555.0),
    "l40s-48gb": Machine(1, 44.38, 0.55, 864.0),
    "rtx3090x2": Machine(2, 23.15, 0.4, 936.0),
    "cpu-64gb": Machine(1, 60.0, 0.1, 89.6, table_counts=True),
    "jetson-agx-orin-64gb": Machine(1, 60.7, 0.3, 204.8, table_counts=True),
    "a100-80gb": Machine(1, 79.15, 0.5, 1935.0),
    "a100x2-80gb": Machine(2, 79.15, 0.5, 1935.0),
    "a100x4-80gb": Machine(4, 79.15, 0.5, 2039.0),
    "h100x8-80gb": Machine(8, 79.09, 0.5, 3350.0),
    "a100x8-80gb": Machine(8, 79.15, 0.5, 2039.0),
    # llama.cpp splits a model over 15 devices at most.
    "a100x16-80gb": Machine(15, 79.15, 0.5, 2039.0),
}
HEAD_DIM = 128
EXPERTS, EXPERTS_PER_TOKEN, EXPERT_WIDE, DENSE_LAYERS = 256, 8, 2048, 3
Q_LATENT, KV_LATENT, ROPE, NOPE, VALUE = 1536, 512, 64, 128, 128
"""R1's: arXiv:2412.19437, section 4.2."""


def limit_tokens(model: str) -> int:
    return 163840 if model == "r1" else 131072


def n_parameters(model: str) -> int:
    """Counted from the bytes of one byte a weight."""
    total = sum(n for n, _ in _every_tensor(model, "count"))
    return total - (64 if MODELS[model].rope_divisors else 0)


def file_bytes(model: str, scheme: str) -> int:
    """Every tensor of these models ends on a multiple of 32 bytes, so nothing is padded."""
    return sum(n for n, _ in _every_tensor(model, scheme))


@dataclass(frozen=True)
class Use:
    """Bytes on each device."""

    weights: tuple[int, ...]
    kv_cache: tuple[int, ...]
    compute: tuple[int, ...]
    runtime: int

    @property
    def totals(self) -> list[int]:
        parts = zip(self.weights, self.kv_cache, self.compute, strict=True)
        return [sum(each) + self.runtime for each in parts]

    def fits(self, target: str) -> bool:
        return max(self.totals) <= int(MACHINES[target].available_gib * GIB)


def use(model: str, scheme: str, target: str, context: int) -> Use:
    sizes, machine = MODELS[model], MACHINES[target]
    n = machine.devices
    cells = (context + 255) // 256 * 256
    wide_cache = KV_LATENT + ROPE if model == "r1" else 2 * sizes.kv_heads * HEAD_DIM
    cached = [0] * n
    for layer in range(sizes.layers):
        cached[_device(layer, sizes.layers, n)] += wide_cache * 2 * cells
    return Use(
        weights=_weights(model, scheme, n, machine.table_counts),
        kv_cache=tuple(cached),
        compute=_compute(model, target, cells),
        runtime=int(machine.runtime_gib * GIB),
    )


def _compute(model: str, target: str, cells: int) -> tuple[int, ...]:
    """4 bytes a number and token of a micro-batch of 512; n hidden-wide tensors, and the mask."""
    sizes, machine = MODELS[model], MACHINES[target]
    hidden, head, mask = sizes.hidden, sizes.vocab, cells // 2
    block, first_more = 3 * sizes.wide, 0
    if model == "r1":
        experts = EXPERTS_PER_TOKEN * (hidden + 3 * EXPERT_WIDE)
        latents = sizes.heads * (NOPE + ROPE + ROPE + KV_LATENT + KV_LATENT + ROPE)
        block, first_more = max(block, experts, latents), sizes.heads * ROPE
    assert head > mask + 2 * hidden, "logits are longer than the masks here"
    if machine.devices > 1:
        numbers = [block + 11 * hidden] * machine.devices
        numbers[0] += 5 * hidden + first_more
        numbers[-1] = max(head + 9 * hidden, block + 11 * hidden)
        return tuple(4 * 512 * (n + 4 * mask) for n in numbers)
    n_wide = 4
    if target.startswith("cpu"):
        n_wide = 5
        if head > block and sizes.wide - 2 * hidden <= mask < 2 * sizes.wide - hidden:
            n_wide = 6
    on_host = (4 * hidden + mask) if target.startswith("jetson") else 0
    return (4 * 512 * (max(head, block) + n_wide * hidden + mask + on_host),)


def longest_context(model: str, scheme: str, target: str) -> int:
    """By trying every step downwards."""
    for context in range(limit_tokens(model), 0, -256):
        if use(model, scheme, target, context).fits(target):
            return context
    return 0


def tokens_per_s(model: str, scheme: str, target: str, context: int) -> float:
    """Weights that a token visits and the whole cache, over the bandwidth of one device."""
    machine = MACHINES[target]
    read = sum(use(model, scheme, target, context).kv_cache)
    for n_bytes, where in _every_tensor(model, scheme):
        if where == "experts":
            read += n_bytes * EXPERTS_PER_TOKEN / EXPERTS
        elif where == "table":
            read += machine.table_counts * n_bytes / MODELS[model].vocab
        elif where != "divisors":
            read += n_bytes
    return machine.bandwidth_gb_s * 1e9 / read


@cache
def _weights(model: str, scheme: str, n_devices: int, table_counts: bool) -> tuple[int, ...]:
    sizes = MODELS[model]
    placed = [0] * n_devices
    for layer in range(sizes.layers):
        device = _device(layer, sizes.layers, n_devices)
        placed[device] += sum(n for n, _ in _block(model, scheme, layer))
    table, head, norm, divisors = (n for n, _ in _ends(model, scheme))
    placed[0] += table * table_counts + divisors
    placed[_device(sizes.layers, sizes.layers, n_devices)] += head + norm
    return tuple(placed)


def _device(layer: int, layers: int, devices: int) -> int:
    """Equal devices: the share of the layers, the head counting as one, that lies before."""
    return next(d for d in range(devices) if layer * devices < (d + 1) * (layers + 1))


@cache
def _every_tensor(model: str, scheme: str) -> list[tuple[int, str]]:
    blocks = [_block(model, scheme, layer) for layer in range(MODELS[model].layers)]
    return [*_ends(model, scheme), *(tensor for block in blocks for tensor in block)]


def _more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _kinds(model: str, scheme: str, layer: int) -> tuple[int, int, int, int]:
    """Bytes of 256 weights: usual, attn_v, ffn_down, attn_output."""
    if scheme == "count":
        return (256,) * 4
    sizes, base = MODELS[model], FILE_TYPES[scheme]
    value = down = out = base
    if scheme in ("q5_k_m", "q4_k_m") and _more_bits(layer, sizes.layers):
        value = down = Q6_K
    if scheme == "q3_k_m":
        value = Q5_K if layer < 2 else Q4_K
        down = Q5_K if layer < sizes.layers // 16 else Q4_K
        out = Q4_K
    if scheme == "q2_k":
        value = Q4_K if sizes.heads // sizes.kv_heads >= 4 else Q3_K
        down = out = Q3_K
    if sizes.layers == 80 and value in (Q3_K, Q4_K):
        value = Q5_K
    return base, value, down, out


def _ends(model: str, scheme: str) -> list[tuple[int, str]]:
    """Token table, head, last norm, Llama 3's divisors."""
    sizes = MODELS[model]
    if scheme == "count":
        base = head = F = 256
    else:
        base, F = FILE_TYPES[scheme], F32
        head = base if scheme in ("f16", "q8_0") else Q6_K
    table = sizes.vocab * sizes.hidden
    return [
        (table * base // 256, "table"),
        (table * head // 256, "head"),
        (sizes.hidden * F // 256, "norm"),
        (64 * sizes.rope_divisors * F // 256, "divisors"),
    ]


def _block(model: str, scheme: str, layer: int) -> list[tuple[int, str]]:
    sizes = MODELS[model]
    base, value, down, out = _kinds(model, scheme, layer)
    plain = 256 if scheme == "count" else F32
    hidden, q, kv = sizes.hidden, sizes.heads * HEAD_DIM, sizes.kv_heads * HEAD_DIM
    if model == "r1":
        return _block_of_r1(scheme, layer)
    weights = {
        base: 2 * hidden * sizes.wide + hidden * (q + kv),
    }
    parts = [n * kind // 256 for kind, n in weights.items()]
    parts += [
        hidden * kv * value // 256,
        q * hidden * out // 256,
        sizes.wide * hidden * down // 256,
    ]
    vectors = 2 * hidden + (q + 2 * kv) * sizes.biases + 2 * HEAD_DIM * sizes.qk_norm
    return [(n, "dense") for n in (*parts, vectors * plain // 256)]


def _block_of_r1(scheme: str, layer: int) -> list[tuple[int, str]]:
    sizes = MODELS["r1"]
    base, _, down, out = _kinds("r1", scheme, layer)
    plain = 256 if scheme == "count" else F32
    hidden, heads = sizes.hidden, sizes.heads
    queries = hidden * Q_LATENT + Q_LATENT * heads * (NOPE + ROPE)
    latents = hidden * (KV_LATENT + ROPE) + heads * VALUE * KV_LATENT
    found = [
        ((queries + latents) * base // 256, "dense"),
        (heads * KV_LATENT * NOPE * STANDS_IN.get(base, base) // 256, "dense"),
        (heads * VALUE * hidden * out // 256, "dense"),
        ((2 * hidden + Q_LATENT + KV_LATENT) * plain // 256, "dense"),
    ]
    if layer < DENSE_LAYERS:
        return [
            *found,
            (2 * hidden * sizes.wide * base // 256, "dense"),
            (sizes.wide * hidden * down // 256, "dense"),
        ]
    expert = hidden * EXPERT_WIDE
    return [
        *found,
        ((EXPERTS * hidden + EXPERTS) * plain // 256, "dense"),
        (2 * expert * base // 256, "dense"),
        (expert * down // 256, "dense"),
        (2 * EXPERTS * expert * base // 256, "experts"),
        (EXPERTS * expert * down // 256, "experts"),
    ]
