"""A module with the part of vLLM's interface that `VllmModel` uses, on a small transformers model.

Names, defaults and limits are those of vLLM's V1 engine as its source has them; what it does not
know, this refuses too. One token a step is computed for every running request, without a cache.
"""

import importlib.machinery
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

ENGINE_ARGUMENTS = {
    "model",
    "max_model_len",
    "tensor_parallel_size",
    "max_logprobs",
    "max_num_batched_tokens",
    "enable_chunked_prefill",
    "gpu_memory_utilization",
    "seed",
}


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(kw_only=True)
class SamplingParams:
    """Fields that are not here raise `TypeError`, as in vLLM."""

    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE


@dataclass
class Request:
    prompt: list[int]
    params: SamplingParams
    random: np.random.Generator
    made: list[int] = field(default_factory=list)


class Engine:
    """What `LLM.llm_engine` is."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        folder = Path(options["model"])
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.eos = self.model.config.eos_token_id
        self.model_config = SimpleNamespace(
            dtype=torch.float32,
            quantization=None,
            get_vocab_size=lambda: self.model.config.vocab_size,
        )
        self.running: dict[str, Request] = {}
        self.used_ids: set[str] = set()
        self.params: list[SamplingParams] = []
        self.aborted: list[str] = []
        self.most_running = 0
        self.fail_at_step: int | None = None
        self.n_steps = 0

    def add_request(self, request_id: str, prompt: dict[str, Any], params: SamplingParams) -> str:
        assert request_id not in self.used_ids, "a request id comes twice"
        tokens = prompt["prompt_token_ids"]
        if len(tokens) >= self.options["max_model_len"]:
            raise ValueError("the prompt leaves no room for a token")
        if (params.prompt_logprobs or 0) > self.options["max_logprobs"]:
            raise ValueError("Requested prompt logprobs greater than max allowed")
        assert not params.detokenize or params.output_kind is RequestOutputKind.FINAL_ONLY
        self.used_ids.add(request_id)
        self.params.append(params)
        self.running[request_id] = Request(tokens, params, np.random.default_rng(params.seed))
        self.most_running = max(self.most_running, len(self.running))
        return request_id

    def abort_request(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            del self.running[request_id]
        self.aborted += request_ids

    def step(self) -> list[Any]:
        self.n_steps += 1
        if self.n_steps == self.fail_at_step:
            raise RuntimeError("EngineCore encountered an issue")
        outputs = []
        for request_id, request in list(self.running.items()):
            finish = self._advance(request)
            if finish is None:
                continue
            del self.running[request_id]
            completion = SimpleNamespace(
                index=0, text="", token_ids=list(request.made), finish_reason=finish
            )
            outputs.append(
                SimpleNamespace(
                    request_id=request_id,
                    finished=True,
                    outputs=[completion],
                    prompt_token_ids=request.prompt,
                    prompt_logprobs=self._prompt_logprobs(request),
                )
            )
        return outputs

    def _advance(self, request: Request) -> str | None:
        logits_V = self._logits([*request.prompt, *request.made])[-1].numpy().astype(np.float64)
        temperature = request.params.temperature
        if temperature:
            p_V = np.exp((logits_V - logits_V.max()) / temperature)
            request.made.append(int(request.random.choice(len(p_V), p=p_V / p_V.sum())))
        else:
            request.made.append(int(logits_V.argmax()))
        # The end token is among the ids, as in vLLM.
        if request.made[-1] in {self.eos, *(request.params.stop_token_ids or [])}:
            return "stop"
        n_tokens = len(request.prompt) + len(request.made)
        full = n_tokens >= self.options["max_model_len"]
        return "length" if full or len(request.made) == request.params.max_tokens else None

    def _prompt_logprobs(self, request: Request) -> list[Any] | None:
        n_top = request.params.prompt_logprobs
        if n_top is None:
            return None
        log_p_TV = torch.log_softmax(self._logits(request.prompt), dim=-1)
        positions: list[Any] = [None]
        for row_V, token in zip(log_p_TV, request.prompt[1:], strict=False):
            kept = dict.fromkeys([token, *row_V.topk(n_top).indices.tolist()])
            positions.append({each: SimpleNamespace(logprob=float(row_V[each])) for each in kept})
        return positions

    def _logits(self, tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.tensor([tokens])).logits[0]


class LLM:
    def __init__(self, **options: Any) -> None:
        unknown = options.keys() - ENGINE_ARGUMENTS
        if unknown:
            raise TypeError(f"EngineArgs got an unexpected keyword argument {unknown.pop()!r}")
        self.llm_engine = Engine(options)

    def get_tokenizer(self) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast.from_pretrained(self.llm_engine.options["model"])


def install(monkeypatch: Any) -> ModuleType:
    """Make `import vllm` give this, on a machine that seems to have a GPU."""
    module = ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    sampling = ModuleType("vllm.sampling_params")
    sampling.RequestOutputKind = RequestOutputKind  # type: ignore[attr-defined]
    contents = {"LLM": LLM, "SamplingParams": SamplingParams, "TokensPrompt": dict}
    for name, value in (contents | {"__version__": "0.0-stand-in"}).items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Stand-in")
    return module
