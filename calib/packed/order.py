"""The group of every column, which an act-order stores as `g_idx`.

Shape legend: I input columns.
"""

import torch
from torch import Tensor

from tightfit.errors import CheckpointError


def read_group_index(
    name: str, index_I: Tensor | None, group_size: int, *, act_order: bool
) -> Tensor | None:
    """int32 (I), or None where groups follow one another, stored as such or not at all.

    A group size of 0 is one group of all columns. Raises `CheckpointError` for groups of several
    sizes, and for an act-order that config.json denies: some readers follow `g_idx` then and others
    do not.
    """
    if index_I is None:
        return None
    n_columns = len(index_I)
    width = group_size or n_columns
    in_turn_I = torch.arange(n_columns, dtype=index_I.dtype) // width
    if index_I.equal(in_turn_I):
        return None
    if not index_I.sort().values.equal(in_turn_I):
        raise CheckpointError(
            f"{name}: not every one of its {n_columns // width} groups has {width} columns",
            allowed="g_idx names the group of each column, and all groups are of one size",
            hint="quantization_config and the weights do not belong together, or the file is "
            "damaged: download it again",
        )
    if not act_order:
        raise CheckpointError(
            f"{name}: g_idx reorders its columns, and config.json says that nothing is reordered",
            allowed="an act-order with desc_act (GPTQ) or actorder (compressed-tensors)",
            hint='write "desc_act": true or "actorder": "group" in its quantization_config, if '
            "the checkpoint was made so",
        )
    return index_I
