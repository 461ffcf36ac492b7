"""A checkpoint running in vLLM's offline `LLM`: completions and the prompt's log-probabilities.

Written to the interface of vLLM's V1 engine, the only one since 0.11 (github.com/vllm-project/vllm:
entrypoints/llm.py, v1/engine/llm_engine.py, sampling_params.py, outputs.py). Requests are added to
`LLM.llm_engine` and stepped here, as `LLM.generate` does inside, so that each completion is handed
on when it ends.

Shape legend: T tokens (positions).
"""

import gc
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tightfit.errors import LogprobsUnavailableError, RuntimeFailureError
from tightfit.runtimes.base import PARALLEL_SEQUENCES, Finished, check_tokens, ignore_finished
from tightfit.runtimes.endpoint.completion import (
    TokenizerLike,
    from_tokens,
    request_seed,
    stop_reason,
)
from tightfit.runtimes.endpoint.logprobs import collect
from tightfit.runtimes.logprobs import TokenLogprobs
from tightfit.runtimes.results import Generation, StopReason, SystemInfo
from tightfit.runtimes.vllm.package import unavailable

TOP_LOGPROBS: Final = 64
"""Tokens kept of a position: vLLM makes a Python object of each, and three of four positions of a
reasoning trace need fewer."""
MEMORY_SHARE: Final = 0.85
"""Of the GPU's memory for vLLM, under its default of 0.9: a prompt's log-probabilities need logits
of `BATCH_TOKENS` positions beside it."""
BATCH_TOKENS: Final = 2048
"""Positions computed at a time: float32 logits of a vocabulary of 152,064 take 1.2 GiB. vLLM's own
default on large cards is 16384."""


class VllmModel:
    """A model in vLLM; use it in a `with`."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        tokenizer: TokenizerLike,
        context_tokens: int,
        gpus: int = 1,
        top_logprobs: int = TOP_LOGPROBS,
    ) -> None:
        """Load a checkpoint folder or a Hub id over `gpus` GPUs (tensor parallel).

        `tokenizer` is the model's; `context_tokens` is per sequence, prompt and completion;
        `top_logprobs` are kept of each position by `token_logprobs`.

        Raises what `unavailable` returns, and `RuntimeFailureError` when the model does not load.
        """
        missing = unavailable()
        if missing is not None:
            raise missing
        location = os.fspath(model)
        is_folder = Path(location).is_dir()
        self.name = Path(location).absolute().name if is_folder else location
        self.context_tokens = context_tokens
        self._tokenizer = tokenizer
        self._top_logprobs = top_logprobs
        self._n_requests = 0
        self._llm: Any = _load(
            location,
            max_model_len=context_tokens,
            tensor_parallel_size=gpus,
            max_logprobs=top_logprobs,
            max_num_batched_tokens=BATCH_TOKENS,
            enable_chunked_prefill=True,
            gpu_memory_utilization=MEMORY_SHARE,
            seed=0,
        )
        config = self._engine.model_config
        self.vocab_size = int(config.get_vocab_size())
        self.system_info = _system_info(config, context_tokens, gpus)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the engine, which ends with its last reference; further calls fail."""
        self._llm = None
        gc.collect()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text` by vLLM's tokenizer of the model, none added."""
        self._check_open()
        return list(self._llm.get_tokenizer().encode(text, add_special_tokens=False))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int,
        streams: Sequence[int] | None = None,
        parallel: int = PARALLEL_SEQUENCES,
        on_finished: Finished = ignore_finished,
    ) -> list[Generation]:
        """Complete prompts given as token ids, at most `parallel` at a time, in their order.

        Temperature 0 is greedy. `streams` numbers the random stream of each prompt (default: its
        index). `on_finished` gets each completion as it ends. Other batches round differently:
        the same arguments give the same tokens only where vLLM batches the same.

        Raises `RuntimeFailureError` for a prompt that is empty, longer than the context or of
        another vocabulary, and when vLLM fails.
        """
        numbers = range(len(prompts)) if streams is None else streams
        assert len(numbers) == len(prompts), "a random stream for every prompt"
        for prompt in prompts:
            self._check_tokens(prompt, self.context_tokens)
        rooms = [self.context_tokens - len(prompt) for prompt in prompts]
        results: dict[int, Generation] = {}
        requests: dict[int, dict[str, Any]] = {}
        for index, room in enumerate(rooms):
            if room < 1:
                results[index] = Generation(token_ids=(), text="", stop=StopReason.CONTEXT)
                on_finished(index, results[index])
                continue
            requests[index] = {
                "max_tokens": min(max_tokens, room),
                "temperature": temperature,
                "top_p": top_p,
                "seed": request_seed(seed, numbers[index]),
                "stop_token_ids": sorted(self._tokenizer.end_ids),
            }
        with closing(self._run(prompts, requests, parallel)) as outputs:
            for index, output in outputs:
                completion = output.outputs[0]
                stop = stop_reason(
                    completion.finish_reason, max_tokens=max_tokens, room_tokens=rooms[index]
                )
                results[index] = from_tokens(list(completion.token_ids), stop, self._tokenizer)
                on_finished(index, results[index])
        return [results[index] for index in range(len(prompts))]

    def token_logprobs(self, tokens: Sequence[int], first_scored: int) -> TokenLogprobs:
        """Distributions of the positions that predict `tokens[first_scored:]`, one a token.

        Each has the `top_logprobs` most probable tokens and the one that follows. Raises
        `RuntimeFailureError` for a sequence that does not leave room for the one token that vLLM
        must generate, and `LogprobsUnavailableError` where positions are missing.
        """
        self._check_tokens(tokens, self.context_tokens - 1)
        assert 0 < first_scored < len(tokens), "the first token has no prediction"
        sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": self._top_logprobs}
        ((_, output),) = self._run([tokens], {0: sampling}, 1)
        positions = output.prompt_logprobs
        if positions is None or len(positions) != len(tokens):
            found = "no" if positions is None else len(positions)
            raise LogprobsUnavailableError(
                f"vLLM gave log-probabilities of {found} positions, {len(tokens)} were asked for",
                hint="is it a version that knows `SamplingParams(prompt_logprobs=...)`?",
            )
        entries_T = [
            {int(token): float(entry.logprob) for token, entry in positions[index].items()}
            for index in range(first_scored, len(tokens))
        ]
        return collect(entries_T, tokens[first_scored:])

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        requests: Mapping[int, Mapping[str, Any]],
        parallel: int,
    ) -> Generator[tuple[int, Any]]:
        """Run some of the prompts; index and vLLM's output of each, as they end.

        `requests` holds sampling parameters by the index of the prompt. What is under way is
        aborted when the generator is closed.
        """
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        engine = self._engine
        waiting = list(requests.items())[::-1]
        running: dict[str, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    index, sampling = waiting.pop()
                    # Numbers that never come again: what was aborted may still be reported.
                    request_id, self._n_requests = str(self._n_requests), self._n_requests + 1
                    tokens = TokensPrompt(prompt_token_ids=list(prompts[index]))
                    with _failures_of_running():
                        # Text is made of the ids here, by the same tokenizer for all runtimes.
                        parameters = SamplingParams(
                            detokenize=False,
                            skip_special_tokens=False,
                            output_kind=RequestOutputKind.FINAL_ONLY,
                            **sampling,
                        )
                        engine.add_request(request_id, tokens, parameters)
                    running[request_id] = index
                with _failures_of_running():
                    outputs: list[Any] = engine.step()
                for output in outputs:
                    if output.finished and output.request_id in running:
                        yield running.pop(output.request_id), output
        finally:
            if running:
                engine.abort_request(list(running))

    @property
    def _engine(self) -> Any:
        self._check_open()
        return self._llm.llm_engine

    def _check_open(self) -> None:
        if self._llm is None:
            raise RuntimeFailureError(f"vLLM's engine of {self.name} was closed")

    def _check_tokens(self, tokens: Sequence[int], most: int) -> None:
        check_tokens(tokens, context_tokens=most, vocab_size=self.vocab_size, file_name=self.name)


def _load(model: str, **options: Any) -> Any:
    from vllm import LLM

    try:
        return LLM(model=model, **options)
    except Exception as error:  # vLLM raises nothing of its own: ValueError, OSError, RuntimeError
        raise RuntimeFailureError(
            f"vLLM does not load {model}: {error}",
            hint="its log above says why; with too little memory ask for a shorter context or "
            "more GPUs",
        ) from error


@contextmanager
def _failures_of_running() -> Generator[None]:
    """Whatever vLLM raises as our own error: a refused request, or an engine that died."""
    try:
        yield
    except Exception as error:  # it raises nothing of its own: ValueError, RuntimeError
        raise RuntimeFailureError(
            f"vLLM failed while it ran: {error!r}", hint="its log above says why"
        ) from error


def _system_info(config: Any, context_tokens: int, gpus: int) -> SystemInfo:
    """All sequences share one cache in vLLM: there is no size of one, and 0 stands for it."""
    import torch
    import vllm

    return SystemInfo(
        label=f"vLLM {vllm.__version__}, torch {torch.__version__}",
        device=torch.cuda.get_device_name(),
        threads=0,
        context_tokens=context_tokens,
        kv_type="auto",
        kv_bytes=0,
        facts={
            "gpus": gpus,
            "dtype": str(config.dtype).removeprefix("torch."),
            "quantization": str(config.quantization or "none"),
        },
    )
