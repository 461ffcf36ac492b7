"""A decoder one block at a time, with the module classes of `transformers`.

The whole model exists on the meta device only (no memory); a block is materialized by assigning
its parameters, used, and dropped. With a source of dequantized weights the same code is the
reference that an artifact is compared with.

Shape legend: B sequences, T positions, D hidden width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tightfit.calib.config import read_config
from tightfit.calib.dimensions import dimensions_of
from tightfit.calib.experts import RoutedTokens, Routing, expert_names, routing_of, run_expert
from tightfit.calib.family import Architecture, BlockKind
from tightfit.calib.logical import HEADS, STORED_HEADS, is_heads, is_stack, join_kv_b
from tightfit.calib.shapes import tensor_shapes
from tightfit.calib.transfer import to_device
from tightfit.errors import CalibrationError

WeightSource = Callable[[str], Tensor]
"""A tensor by its checkpoint name, in any floating dtype."""


class KeyValueSink(Protocol):
    """What attention hands its keys and values to."""

    def update(
        self, keys_BHTD: Tensor, values_BHTD: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take those of new positions (B, H, T, width of a head); give back those of all."""


class Decoder:
    """Runs a model's parts on demand, in float32."""

    def __init__(self, folder: Path, architecture: Architecture, device: torch.device) -> None:
        """Read config.json of `folder`; no weight is loaded."""
        from transformers import AutoConfig, AutoModelForCausalLM

        self.architecture = architecture
        self.dimensions = dimensions_of(read_config(folder))
        self.device = device
        # Weights arrive here already dequantized, so the module classes must be the plain ones.
        config = AutoConfig.from_pretrained(folder)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        attention = "sdpa"
        if self.dimensions.mla is not None:
            from tightfit.calib.padded_attention import NAME as attention  # noqa: N811
        with torch.device("meta"):
            build: Any = AutoModelForCausalLM.from_config
            causal = build(config, dtype=torch.float32, attn_implementation=attention)
        self.config = causal.config
        self._names = tuple(tensor_shapes(architecture, self.dimensions))
        self._model = causal.model
        self._rotary = type(self._model.rotary_emb)(config=self.config).to(device)

    @property
    def n_blocks(self) -> int:
        """Decoder blocks."""
        return int(self.config.num_hidden_layers)

    def block_kind(self, layer: int) -> BlockKind:
        """Kind of the block at that depth."""
        return self.architecture.block_kind(layer, self.dimensions)

    def block_parameters(self, layer: int) -> tuple[str, ...]:
        """Logical names of a block's parameters inside the block, without routed experts."""
        prefix = self.architecture.tensor(layer, "")
        return tuple(
            name.removeprefix(prefix)
            for name in self._names
            if name.startswith(prefix) and not is_stack(name)
        )

    def load_block(self, layer: int, source: WeightSource) -> dict[str, Tensor]:
        """A block's parameters in float32 by logical path inside it, without routed experts."""
        return {
            name: to_device(source(self.architecture.tensor(layer, name)), self.device).float()
            for name in self.block_parameters(layer)
        }

    def block(self, layer: int, parameters: Mapping[str, Tensor]) -> nn.Module:
        """The block's module with these parameters; of a mixture without its routed experts."""
        template = self._model.layers[layer]
        with torch.device("meta"):
            module: nn.Module = type(template)(self.config, layer)
            if any(map(is_stack, self.block_kind(layer).linears)):
                module.get_submodule("mlp").experts = RoutedTokens()
        module.load_state_dict(_stored_parameters(parameters), strict=True, assign=True)
        return module.eval().requires_grad_(False)

    def embed(self, ids: Sequence[int], embedding_VD: Tensor) -> Tensor:
        """float32 (T, D) embeddings of one sequence."""
        return to_device(embedding_VD[torch.tensor(ids)], self.device).float()

    @torch.inference_mode()
    def run_block(
        self, block: nn.Module, hidden_BTD: Tensor, cache: KeyValueSink | None = None
    ) -> Tensor:
        """The block's output; positions count from 0 and attention is causal.

        `cache` sees keys and values as a KV cache would.
        """
        return self.forward_block(block, hidden_BTD, cache)

    def forward_block(
        self, block: nn.Module, hidden_BTD: Tensor, cache: KeyValueSink | None = None
    ) -> Tensor:
        """`run_block` where gradients can flow."""
        length = hidden_BTD.shape[1]
        window = getattr(self.config, "sliding_window", None)
        if window is not None and length > window:
            raise CalibrationError(
                f"a sequence of {length} tokens is longer than the model's sliding window",
                allowed=f"at most {window} tokens",
                hint="lower --calib-length",
            )
        position_ids = torch.arange(length, device=self.device)[None]
        output = block(
            hidden_BTD,
            attention_mask=None,
            position_ids=position_ids,
            position_embeddings=self._rotary(hidden_BTD, position_ids),
            past_key_values=cache,
            use_cache=False,
        )
        assert isinstance(output, Tensor)
        return output

    @torch.inference_mode()
    def normalize(self, hidden: Tensor, norm_D: Tensor) -> Tensor:
        """The final norm, applied to (..., D)."""
        return self.forward_norm(hidden, norm_D)

    def forward_norm(self, hidden: Tensor, norm_D: Tensor) -> Tensor:
        """`normalize` where gradients can flow to `hidden`."""
        template = self._model.norm
        with torch.device("meta"):
            module = type(template)(norm_D.shape[0], eps=self.config.rms_norm_eps)
        module.load_state_dict({"weight": to_device(norm_D, self.device).float()}, assign=True)
        output = module.requires_grad_(False)(hidden)
        assert isinstance(output, Tensor)
        return output

    @torch.inference_mode()
    def logits(
        self,
        sequences: Sequence[Sequence[int]],
        source: WeightSource,
        input_scales: Mapping[str, float] | None = None,
    ) -> Iterator[Tensor]:
        """float32 (T, V) logits of each sequence, all positions, one block in memory at a time.

        `input_scales` are static FP8 scales of what linears read, by the weight's checkpoint name:
        those inputs are rounded as an FP8 runtime does.
        """
        head_VD = to_device(source(self.architecture.head), self.device).float()
        for hidden_TD in self.final_hidden(sequences, source, input_scales):
            yield hidden_TD @ head_VD.T

    @torch.inference_mode()
    def final_hidden(
        self,
        sequences: Sequence[Sequence[int]],
        source: WeightSource,
        input_scales: Mapping[str, float] | None = None,
        on_block: Callable[[], None] = lambda: None,
    ) -> Iterator[Tensor]:
        """float32 (T, D) of each sequence: what the head reads; the rest as in `logits`.

        `on_block` is called as all sequences have passed through a block.
        """
        input_scales = input_scales or {}
        names = self.architecture
        embedding_VD = source(names.embedding)
        states = [self.embed(ids, embedding_VD)[None] for ids in sequences]
        del embedding_VD
        for layer in range(self.n_blocks):
            states = self.pass_block(layer, source, states, input_scales)
            on_block()
        norm_D = source(names.final_norm)
        head_scale = input_scales.get(names.head)
        for hidden_BTD in states:
            hidden_TD = self.normalize(hidden_BTD[0], norm_D)
            if head_scale is not None:
                hidden_TD = round_to_float8(hidden_TD, head_scale)
            yield hidden_TD

    @torch.inference_mode()
    def pass_block(
        self,
        layer: int,
        source: WeightSource,
        states: Sequence[Tensor],
        input_scales: Mapping[str, float] | None = None,
    ) -> list[Tensor]:
        """Sequences (B, T, D) through a whole block, its experts one at a time in memory.

        An expert is loaded by its stored names, and only where a token visits it. Its share is
        added in the order of the experts, so a token's sum does not depend on the others.
        """
        block = self.block(layer, self.load_block(layer, source))
        self._round_inputs(block, layer, input_scales or {})
        leaving: list[Tensor] = []
        routings: list[Routing] = []
        for hidden_BTD in states:
            leaving.append(self.run_block(block, hidden_BTD))
            if routing := routing_of(block):
                routings.append(routing)
        if routings:
            assert self.dimensions.moe is not None
            for number in range(self.dimensions.moe.n_routed_experts):
                self._add_expert(layer, number, source, leaving, routings)
        return leaving

    def _add_expert(
        self,
        layer: int,
        number: int,
        source: WeightSource,
        leaving: Sequence[Tensor],
        routings: Sequence[Routing],
    ) -> None:
        visits = [torch.where(routing.experts_TK == number) for routing in routings]
        if not any(len(rows_T) for rows_T, _ in visits):
            return
        gate_OI, up_OI, down_IO = (
            to_device(source(name), self.device).float()
            for name in expert_names(self.architecture, layer, number)
        )
        for hidden_BTD, routing, (rows_T, places_T) in zip(leaving, routings, visits, strict=True):
            y_TD = run_expert(gate_OI, up_OI, down_IO, routing.x_TI[rows_T])
            y_TD *= routing.weights_TK[rows_T, places_T, None]
            hidden_BTD.view(-1, hidden_BTD.shape[-1])[rows_T] += y_TD

    def _round_inputs(
        self, block: nn.Module, layer: int, input_scales: Mapping[str, float]
    ) -> None:
        prefix = self.architecture.tensor(layer, "")
        inside = [name for name in input_scales if name.startswith(prefix)]
        # None of them is a module's weight here; only graphs have static scales, and not of these.
        assert not any(is_stack(name) or is_heads(name) for name in inside)
        for path, module in block.named_modules():
            scale = input_scales.get(self.architecture.tensor(layer, f"{path}.weight"))
            if scale is not None:
                module.register_forward_pre_hook(
                    lambda _module, args, scale=scale: (round_to_float8(args[0], scale),)
                )


def _stored_parameters(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of transformers, which are the checkpoint's."""
    stored = {name: value for name, value in parameters.items() if name not in HEADS}
    if parameters.keys() >= set(HEADS):
        k_b, v_b = (parameters[name] for name in HEADS)
        stored[STORED_HEADS] = join_kv_b(k_b, v_b)
    return stored


def round_to_float8(x: Tensor, scale: float) -> Tensor:
    """Values of `x` after rounding to FP8 E4M3 with a static scale, saturating at the largest."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    return (x / scale).clamp(-largest, largest).to(torch.float8_e4m3fn).float() * scale
