"""ONNX decoders for tests: weights by plain rounding, the file, its runs, and the reference.

The reference is transformers on the dequantized weights, one whole sequence at a time without a
cache; the ONNX model runs a right-padded batch and then decodes token by token with its cache.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.shapes import tensor_shapes
from tightfit.export.onnx.decoder import build_graph
from tightfit.export.onnx.options import OnnxOptions
from tightfit.export.onnx.writer import write_onnx
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight, Weights
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
E4M3_MAX = 448.0


def rtn_weights(
    checkpoint: Checkpoint,
    linears: str,
    *,
    embedding: str = "bfloat16",
    head: str = "bfloat16",
    input_scale: float | None = None,
    act_order: bool = False,
) -> Weights:
    """All weights of a checkpoint, matrices rounded to grids or kept in a float type (`FLOATS`).

    Experts count as linears, a router stays as it is. Norms, biases and the router are bfloat16.
    """
    architecture = checkpoint.architecture
    special = {architecture.embedding: embedding, architecture.head: head}

    def weight(name: str, shape: tuple[int, ...]) -> Weight:
        plain = len(shape) < 2 or name.endswith("mlp.gate.weight")
        stored_as = "bfloat16" if plain else special.get(name, linears)
        load = partial(checkpoint.load, name)
        if stored_as in FLOATS:
            dtype = FLOATS[stored_as]
            return FloatWeight(shape=shape, dtype=dtype, load=lambda: load().to(dtype))
        rounded = round_to_nearest(stored_as, load(), act_order and name not in special)
        scale = None if name in special else input_scale
        return QuantizedWeight(
            shape=rounded.shape,
            grid=stored_as,
            load=lambda: rounded,
            group_index_I=rounded.group_index_I,
            input_scale=scale,
        )

    shapes = tensor_shapes(architecture, checkpoint.dimensions)
    return {name: weight(name, shape) for name, shape in shapes.items()}


def round_to_nearest(grid_name: str, w_OI: Tensor, act_order: bool = False) -> QuantizedTensor:
    """A matrix on a grid; with `act_order` its groups are scattered columns, fixed by its width."""
    grid = get_grid(grid_name)
    w_OI = w_OI.float()
    shape = (w_OI.shape[0], w_OI.shape[1])
    group_index_I, order_I = None, torch.arange(shape[1])
    if act_order:
        order_I = torch.randperm(shape[1], generator=torch.Generator().manual_seed(shape[1]))
        group_index_I = torch.empty(shape[1], dtype=torch.int32)
        group_index_I[order_I] = torch.arange(shape[1], dtype=torch.int32) // grid.span
    params = grid.fit(w_OI[:, order_I])
    codes_OI = torch.empty(shape, dtype=torch.uint8)
    codes_OI[:, order_I] = grid.round(w_OI[:, order_I], grid.lattice(params, *shape))
    return QuantizedTensor(
        grid=grid_name, shape=shape, codes_OI=codes_OI, params=params, group_index_I=group_index_I
    )


def write_model(
    folder: Path, checkpoint: Checkpoint, weights: Weights, options: OnnxOptions
) -> Path:
    """Write `model.onnx` with its data file and check it with the onnx package."""
    graph = build_graph(checkpoint.dimensions, checkpoint.architecture, weights, options)
    path = write_onnx(folder / "model.onnx", graph, overwrite=True)[0]
    check_model(path)
    return path


def check_model(path: Path) -> None:
    """The onnx package's own check, and its strictest inference of types and shapes."""
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def reference_model(checkpoint: Checkpoint, weights: Weights) -> PreTrainedModel:
    """Transformers in float32 on the numbers that the weights stand for."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        state = model.state_dict()
        for name, weight in weights.items():
            state[name].copy_(weight.values())
    for name, module in model.named_modules():
        weight = weights.get(f"{name}.weight")
        if isinstance(weight, QuantizedWeight) and weight.input_scale is not None:
            module.register_forward_pre_hook(partial(_round_input, weight.input_scale))
    return model.eval()


def _round_input(scale: float, _module: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    codes = (inputs[0] / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return (codes.float() * scale,)


class OnnxDecoder:
    """A model in onnxruntime on the CPU, with its cache."""

    def __init__(self, path: Path) -> None:
        """Load it, one thread, nothing rounded beyond what the file says."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = onnxruntime.InferenceSession(
            path,
            options,
            providers=["CPUExecutionProvider"],
            # It would take the rounding of static FP8 activations out.
            disabled_optimizers=["QDQSelectorActionTransformer"],
        )
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(
        self, prompts: Sequence[NDArray[np.int64]], next_BS: NDArray[np.int64], chunk: int = 1
    ) -> list[NDArray]:
        """Logits of each sequence (its prompt and its S next tokens, V), padding left out.

        The next tokens go in `chunk` at a time.
        """
        lengths = [len(prompt) for prompt in prompts]
        ids = np.zeros((len(prompts), max(lengths)), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        cache = self.empty_cache(len(prompts))
        logits, cache = self.step(
            ids, mask, np.broadcast_to(np.arange(ids.shape[1]), ids.shape), cache
        )
        parts = [[logits[row, :length]] for row, length in enumerate(lengths)]
        for start in range(0, next_BS.shape[1], chunk):
            ids = next_BS[:, start : start + chunk]
            mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
            position = np.array(lengths)[:, None] + start + np.arange(ids.shape[1])
            logits, cache = self.step(ids, mask, position, cache)
            for row, part in enumerate(parts):
                part.append(logits[row])
        return [np.concatenate(part).astype(np.float32) for part in parts]

    def empty_cache(self, n_sequences: int) -> dict[str, NDArray]:
        """What a first run gets."""
        return {
            name: np.zeros(
                (n_sequences, value.shape[1], 0, value.shape[3]),
                dtype=np.float16 if "float16" in value.type else np.float32,
            )
            for name, value in self.inputs.items()
            if name.startswith("past")
        }

    def step(
        self, ids: NDArray, mask: NDArray, position: NDArray, cache: Mapping[str, NDArray]
    ) -> tuple[NDArray, dict[str, NDArray]]:
        """One run: logits, and the cache to go on with."""
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": position, **cache}
        feed = {name: value for name, value in feed.items() if name in self.inputs}
        results = dict(zip(self.outputs, self.session.run(None, feed), strict=True))
        logits = results.pop("logits")
        past = {name.replace("present", "past_key_values"): v for name, v in results.items()}
        return logits, past


def expected_logits(reference: PreTrainedModel, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits (S, V) of one sequence, all at once."""
    with torch.inference_mode():
        return reference(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()


def relative_difference(
    path: Path,
    reference: PreTrainedModel,
    *,
    prompt_lengths: Sequence[int] = (19, 11, 5),
    n_steps: int = 32,
    chunk: int = 1,
    seed: int = 0,
) -> float:
    """Largest difference of any logit over the largest logit: prefill and decoding steps."""
    rng = np.random.default_rng(seed)
    vocab_size = reference.config.vocab_size
    prompts = [rng.integers(0, vocab_size, length) for length in prompt_lengths]
    next_BS = rng.integers(0, vocab_size, (len(prompts), n_steps))
    return difference_on(path, reference, prompts, next_BS, chunk)


def difference_on(
    path: Path,
    reference: PreTrainedModel,
    prompts: Sequence[NDArray[np.int64]],
    next_BS: NDArray[np.int64],
    chunk: int = 1,
) -> float:
    """`relative_difference` on given tokens: prompts, and what follows each."""
    found = OnnxDecoder(path).run(prompts, next_BS, chunk)
    worst, largest = 0.0, 0.0
    for prompt, next_S, logits in zip(prompts, next_BS, found, strict=True):
        expected = expected_logits(reference, np.concatenate([prompt, next_S]))
        assert np.isfinite(logits).all()
        worst = max(worst, float(np.abs(logits - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    return worst / largest
