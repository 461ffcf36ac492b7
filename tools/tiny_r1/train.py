"""Training: two data-parallel processes of one torch thread each, in float32.

What: fresh problems on the fly, loss on the completion only (as in R1's own distillation), AdamW.
Each process sums the gradient of its problems in micro-batches sorted by length; one all-reduce
carries the flat gradient together with the counts that normalize it.
Why two processes: two torch threads inside one process are far slower on matrices this small;
bfloat16 is 80 times slower than float32 on CPUs without AVX512-BF16.
Deterministic: a seed and a token budget give the same weights on the same machine, because
the schedule counts tokens, never seconds. An interrupted run resumes at its last probe.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch.multiprocessing.spawn import spawn
from transformers import Qwen2ForCausalLM

from tools.tiny_r1.model import make_model
from tools.tiny_r1.problems import Problem, stream
from tools.tiny_r1.progress import (
    Progress,
    RunLog,
    load_checkpoint,
    load_progress,
    save_checkpoint,
)
from tools.tiny_r1.schedule import Phase, TrainConfig
from tools.tiny_r1.scoring import count_correct
from tools.tiny_r1.splits import Splits, make_splits
from tools.tiny_r1.tokenizer import EOS, prompt_text

PROCESSES = 2
IGNORED_LABEL = -100  # torch's cross-entropy skips it
LOG_EVERY_STEPS = 20
ADAM_BETAS = (0.9, 0.98)  # the shorter second moment suits runs of a few thousand steps


Sample = tuple[list[int], list[int]]  # token ids, labels


def encode_sample(tokenizer: Tokenizer, problem: Problem) -> Sample:
    """Ids of prompt, completion and end token; labels ignore the prompt."""
    prompt = tokenizer.encode(prompt_text(problem.text)).ids
    completion = tokenizer.encode(problem.completion + EOS).ids
    return prompt + completion, [IGNORED_LABEL] * len(prompt) + completion


def micro_batches(samples: list[Sample], size: int, pad_id: int) -> Iterator[torch.Tensor]:
    """Right-padded `[2, batch, length]` tensors of ids and labels, shortest samples first.

    Padding on the right needs no mask: causal attention hides it and its labels are ignored.
    """
    ordered = sorted(samples, key=lambda sample: len(sample[0]))
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        width = len(batch[-1][0])
        ids = [ids + [pad_id] * (width - len(ids)) for ids, _ in batch]
        labels = [labels + [IGNORED_LABEL] * (width - len(labels)) for _, labels in batch]
        yield torch.tensor([ids, labels])


def accumulate_gradient(
    model: Qwen2ForCausalLM, samples: list[Sample], phase: Phase, pad_id: int
) -> float:
    """Adds the gradient of the *summed* loss of `samples`; returns that loss in nats."""
    total = 0.0
    for ids, labels in micro_batches(samples, phase.micro_batch_problems, pad_id):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1),
            labels[:, 1:].flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="sum",
        )
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return total


def all_reduce_gradient(model: Qwen2ForCausalLM, counts: list[float]) -> list[float]:
    """Sums gradients and `counts` over the processes in one message; returns the counts."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([torch.tensor(counts), *(g.flatten() for g in gradients)])
    dist.all_reduce(flat)
    offset = len(counts)
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()
    return [float(value) for value in flat[: len(counts)]]


def make_optimizer(model: Qwen2ForCausalLM, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms and biases alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=ADAM_BETAS, fused=True)


def validation_accuracy(
    model: Qwen2ForCausalLM, tokenizer: Tokenizer, problems: tuple[Problem, ...], rank: int
) -> float:
    """Validation accuracy; each process answers its share."""
    correct = torch.tensor(float(count_correct(model, tokenizer, problems[rank::PROCESSES])))
    dist.all_reduce(correct)
    return float(correct) / len(problems)


class Trainer:
    """One data-parallel process's model, data and optimizer."""

    def __init__(self, rank: int, config: TrainConfig, folder: Path, resume: bool) -> None:
        self.rank = rank
        self.config = config
        self.folder = folder
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        pad_id = self.tokenizer.token_to_id(EOS)
        assert pad_id is not None
        self.pad_id = pad_id
        self.splits: Splits = make_splits(config.seed)
        self.problems = stream(f"{config.seed}:train:{rank}", self.splits.texts)
        self.model = load_checkpoint(folder) if resume else make_model(self.tokenizer, config.seed)
        self.model.train()
        self.optimizer = make_optimizer(self.model, config)
        self.progress = load_progress(folder, self.optimizer) if resume else Progress()
        for _ in islice(self.problems, self.progress.problems_drawn):
            pass
        self.log = RunLog(folder, config, PROCESSES, resume)

    def step(self, phase: Phase) -> float:
        """One update from both processes' problems; returns the mean loss in nats per token."""
        samples = [
            encode_sample(self.tokenizer, problem)
            for problem in islice(self.problems, phase.problems_per_step)
        ]
        self.optimizer.zero_grad(set_to_none=True)
        loss = accumulate_gradient(self.model, samples, phase, self.pad_id)
        seen = sum(len(ids) for ids, _ in samples)
        graded = sum(label != IGNORED_LABEL for _, labels in samples for label in labels)
        loss, all_seen, all_graded = all_reduce_gradient(self.model, [loss, seen, graded])
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad /= all_graded
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = phase.learning_rate(self.progress.phase_tokens)
        self.optimizer.step()
        self.progress.phase_tokens += int(all_seen)
        self.progress.tokens += int(all_seen)
        self.progress.steps += 1
        self.progress.problems_drawn += phase.problems_per_step
        return loss / all_graded

    def probe(self) -> None:
        """Scores the validation problems and writes checkpoint and log."""
        score = validation_accuracy(self.model, self.tokenizer, self.splits.validation, self.rank)
        if self.rank == 0:
            save_checkpoint(self.folder, self.model, self.optimizer, self.progress)
            self.log.add_score(self.progress, score)

    def run_phase(self, phase: Phase) -> None:
        """Steps until the phase's tokens are trained, with probes on the way and at the end."""
        every = self.config.probe_every_tokens
        while self.progress.phase_tokens < phase.tokens:
            probes_before = self.progress.tokens // every
            loss = self.step(phase)
            if self.rank == 0 and self.progress.steps % LOG_EVERY_STEPS == 0:
                self.log.add_loss(self.progress, loss)
            finished = self.progress.phase_tokens >= phase.tokens
            if finished or self.progress.tokens // every > probes_before:
                self.probe()

    def run(self) -> None:
        """The phases that are left."""
        while True:
            self.run_phase(self.config.phases[self.progress.phase])
            if self.progress.phase + 1 == len(self.config.phases):
                return
            self.progress.phase += 1
            self.progress.phase_tokens = 0
            self.optimizer = make_optimizer(self.model, self.config)


def worker(rank: int, config: TrainConfig, folder: Path, resume: bool) -> None:
    """One data-parallel process; rank 0 logs to stdout and writes checkpoints."""
    torch.set_num_threads(1)
    store = (folder / "rendezvous").resolve().as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    Trainer(rank, config, folder, resume).run()
    dist.destroy_process_group()


def train(
    config: TrainConfig, tokenizer: Tokenizer, folder: Path, *, resume: bool
) -> Qwen2ForCausalLM:
    """Trains in `folder`, from scratch or from its last checkpoint; returns the float32 model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    spawn(  # type: ignore[no-untyped-call]  # torch ships no types for it
        worker, args=(config, folder, resume), nprocs=PROCESSES
    )
    return load_checkpoint(folder)
