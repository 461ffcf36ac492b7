"""Who does a job's work: this process, several on this machine, or a Ray cluster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tightfit.calib.shapes import count_parameters
from tightfit.errors import UsageError
from tightfit.pipeline.executors.base import Executor
from tightfit.pipeline.executors.processes import ProcessExecutor
from tightfit.pipeline.executors.serial import SerialExecutor
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.shared import Shared
from tightfit.targets.job_needs import (
    JobSize,
    fitting_group,
    peak_memory_bytes,
    streaming_memory_bytes,
)

_POOL_FROM_PARAMETERS = 500_000_000
"""Below, the work is done before worker processes have started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """The workers of one quantization; who they are never decides the bytes."""

    device: str
    threads: int
    """Of torch in each."""
    count: int
    """Processes on this machine, of what is streamed threads; 1: this process."""
    ray_address: str | None
    experts_at_once: int

    @contextmanager
    def executor(self, shared: Shared) -> Iterator[Executor[Shared]]:
        """What runs the tasks; workers end with the block."""
        if self.ray_address is not None:
            from tightfit.pipeline.executors.ray import RayExecutor

            gpus = 1 if self.device.startswith("cuda") else 0
            with RayExecutor(shared, self.ray_address, gpus_per_task=gpus) as executor:
                yield executor
        elif self.count > 1:
            with ProcessExecutor(shared, self.count) as executor:
                yield executor
        else:
            yield SerialExecutor(shared)


def choose_workers(request: ExportRequest, size: JobSize) -> Workers:
    """Workers for a job of this size; raises `UsageError` where memory does not allow one."""
    return Workers(
        device=request.device,
        threads=torch.get_num_threads() if size.n_tokens is not None else 1,
        count=count_workers(request, size),
        ray_address=request.ray_address,
        experts_at_once=fitting_group(size, request.max_memory_bytes),
    )


def count_workers(request: ExportRequest, size: JobSize) -> int:
    """Processes, or of what is streamed threads: as many as asked for, or as help and fit."""
    limit_bytes = request.max_memory_bytes
    group = fitting_group(size, limit_bytes)
    if request.workers is not None:
        needed = _needed_bytes(size, group, request.workers)
        if limit_bytes is not None and needed > limit_bytes:
            raise UsageError(
                f"--workers {request.workers} do not fit in --max-memory: they need "
                f"{needed / 2**30:.1f} GiB",
                allowed="fewer workers, or more memory",
                hint="leave --workers out: as many are started as fit",
            )
        return request.workers
    # Calibrated work is matrix products, which use all cores from one process.
    large = count_parameters(size.shapes) >= _POOL_FROM_PARAMETERS
    is_shared = size.streamed or (large and size.n_tokens is None)
    most = len(os.sched_getaffinity(0)) if is_shared else 1
    if limit_bytes is None:
        return most
    fitting = (n for n in range(most, 1, -1) if _needed_bytes(size, group, n) <= limit_bytes)
    return next(fitting, 1)


def _needed_bytes(size: JobSize, group: int, count: int) -> int:
    """Of all workers together; beside processes there is the one that gives them work."""
    if size.streamed:
        return streaming_memory_bytes(size, count)
    return peak_memory_bytes(size, group) * (count + 1 if count > 1 else 1)
