"""The range of keys and values, for the static scales of an FP8 KV cache.

    scale = max |x| / 448                     x: keys after rope, or values, of all real tokens

One scale for the keys and one for the values of a layer, as vLLM and TensorRT-LLM read them
(compressed-tensors, `kv_cache_scheme` of strategy `tensor`).

Shape legend: B sequences, H heads, T positions, D width of a head.
"""

from torch import Tensor

from tightfit.quant.grids.float8 import E4M3_MAX

KV_SCALES = ("self_attn.k_scale", "self_attn.v_scale")
"""Names inside a block."""


class KvRange:
    """A cache that keeps nothing but the largest magnitudes of what passes through it."""

    def __init__(self) -> None:
        self.real_BT: Tensor | None = None
        """Which positions are no padding; set before each run."""
        self._largest = [0.0, 0.0]

    def update(
        self, keys_BHTD: Tensor, values_BHTD: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """What the attention of transformers calls."""
        for n, x_BHTD in enumerate((keys_BHTD, values_BHTD)):
            x = x_BHTD.transpose(1, 2)[self.real_BT]
            self._largest[n] = max(self._largest[n], float(x.abs().max()))
        return keys_BHTD, values_BHTD

    def scales(self) -> dict[str, float]:
        """By name inside the block; 1 where everything is zero."""
        return {
            name: largest / E4M3_MAX or 1.0
            for name, largest in zip(KV_SCALES, self._largest, strict=True)
        }
