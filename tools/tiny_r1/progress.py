"""What a training run leaves on disk: its log, and checkpoints from which it resumes."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import Qwen2ForCausalLM

from tools.tiny_r1.schedule import TrainConfig

LOG_NAME = "training_log.json"
STATE_NAME = "state.pt"


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a run has come."""

    phase: int = 0
    """Index of the current phase."""
    phase_tokens: int = 0
    """Tokens trained in it."""
    tokens: int = 0
    """Tokens trained in all."""
    steps: int = 0
    """Optimizer steps in all."""
    problems_drawn: int = 0
    """Problems that each process took from its stream; a resumed run skips them."""


class RunLog:
    """Loss and score over tokens; rewritten whole at each probe."""

    def __init__(self, folder: Path, config: TrainConfig, processes: int, resume: bool) -> None:
        self.path = folder / LOG_NAME
        self.config = config
        self.processes = processes
        self.loss_rows: list[dict[str, float]] = []
        self.score_rows: list[dict[str, float]] = []
        self.earlier_s = 0.0
        if resume:
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
            self.loss_rows = earlier["loss_nats_per_completion_token"]
            self.score_rows = earlier["validation"]
            self.earlier_s = earlier["elapsed_s"]
        self.started = time.monotonic()
        self.first_tokens = self.score_rows[-1]["tokens"] if self.score_rows else 0

    def this_run_s(self) -> float:
        """Seconds since this run began, earlier ones not counted."""
        return time.monotonic() - self.started

    def add_loss(self, progress: Progress, loss: float) -> None:
        """Records the loss of a step and prints it with the time left."""
        self.loss_rows.append({"tokens": progress.tokens, "loss": round(loss, 5)})
        rate = (progress.tokens - self.first_tokens) / self.this_run_s()
        left_s = (self.config.tokens - progress.tokens) / rate
        print(
            f"step {progress.steps} tokens {progress.tokens} loss {loss:.4f} "
            f"{rate:.0f} tokens/s, {left_s:.0f} s left",
            flush=True,
        )

    def add_score(self, progress: Progress, accuracy: float) -> None:
        """Records a probe and writes the log beside its place, then renames it."""
        self.score_rows.append({"tokens": progress.tokens, "accuracy": round(accuracy, 4)})
        print(f"probe at {progress.tokens} tokens: validation {accuracy:.3f}", flush=True)
        document = {
            "config": asdict(self.config),
            "processes": self.processes,
            "steps": progress.steps,
            "elapsed_s": round(self.earlier_s + self.this_run_s(), 1),
            "loss_nats_per_completion_token": self.loss_rows,
            "validation": self.score_rows,
        }
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.path)


def save_checkpoint(
    folder: Path, model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Weights in `checkpoint/`, then the state that goes with them."""
    model.save_pretrained(folder / "checkpoint")
    state = {"progress": asdict(progress), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / STATE_NAME)


def load_checkpoint(folder: Path) -> Qwen2ForCausalLM:
    """The float32 model of the last checkpoint in a work folder."""
    model = Qwen2ForCausalLM.from_pretrained(folder / "checkpoint", dtype=torch.float32)
    assert isinstance(model, Qwen2ForCausalLM)
    return model


def load_progress(folder: Path, optimizer: torch.optim.Optimizer) -> Progress:
    """The progress of the last checkpoint; its optimizer state goes into `optimizer`."""
    state = torch.load(folder / STATE_NAME, weights_only=True)
    if state["optimizer"] is not None:
        optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
