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
from tightfit.targets.job_needs import JobSize, fitting_group, peak_memory_bytes

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
    group = fitting_group(size, request.max_memory_bytes)
    calibrated = size.n_tokens is not None
    count = request.workers
    if count is None:
        # Calibrated work is matrix products, which use all cores from one process.
        large = count_parameters(size.shapes) >= _POOL_FROM_PARAMETERS
        pool = size.streamed or (large and not calibrated)
        count = len(os.sched_getaffinity(0)) if pool else 1
        if request.max_memory_bytes is not None:
            most = request.max_memory_bytes // peak_memory_bytes(size, group)
            count = max(1, min(count, most - 1 if count > 1 else 1))
    elif request.max_memory_bytes is not None:
        needed = peak_memory_bytes(size, group) * (count + 1 if count > 1 else 1)
        if needed > request.max_memory_bytes:
            raise UsageError(
                f"--workers {count} do not fit in --max-memory: they need {needed / 2**30:.1f} GiB",
                allowed="fewer workers, or more memory",
                hint="leave --workers out: as many are started as fit",
            )
    return Workers(
        device=request.device,
        threads=torch.get_num_threads() if calibrated else 1,
        count=count,
        ray_address=request.ray_address,
        experts_at_once=group,
    )
