"""Counts what torch does, operation by operation."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = {
    *("view", "slice", "select", "t", "transpose", "expand", "unsqueeze", "as_strided", "permute"),
    *("_unsafe_view", "detach", "alias", "squeeze", "split", "empty", "empty_like", "new_empty"),
}
"""Operations without a kernel."""


class CountedOperations(TorchDispatchMode):
    """`counts`: how often each operation ran; `nbytes`: what all together read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.nbytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        output = function(*arguments, **(options or {}))
        name = function.overloadpacket.__name__
        if name not in _VIEWS:
            self.counts[name] += 1
            self.nbytes[name] += _nbytes(arguments) + _nbytes(output)
        return output


def _nbytes(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_nbytes, value)) if isinstance(value, list | tuple) else 0
