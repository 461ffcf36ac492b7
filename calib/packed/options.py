"""What `quantization_config` may say, and the refusal of what is not read."""

from collections.abc import Sequence
from typing import TypeVar

from tightfit.calib.config import ModelConfig
from tightfit.errors import CheckpointError

GROUP_SIZES = (32, 64, 128)
PER_CHANNEL = 0
"""Group size that stands for one scale per row."""
_WHOLE_ROWS = -1  # how configs spell it
GIVE_ORIGINAL = "give the model that it was made from: see `tightfit models`"

Option = TypeVar("Option", int, str)


def one_of(section: ModelConfig, key: str, value: Option, allowed: Sequence[Option]) -> Option:
    """The value of a key, when it is one that is read; raises `CheckpointError`."""
    if value in allowed:
        return value
    raise unread(section, key, value, ", ".join(map(str, allowed)))


def group_size(section: ModelConfig, key: str) -> int:
    """A group size, `PER_CHANNEL` for -1; raises `CheckpointError`."""
    value = section.values.get(key)
    if isinstance(value, bool) or value not in (_WHOLE_ROWS, *GROUP_SIZES):
        raise unread(section, key, value, "32, 64, 128, or -1 for one scale per row")
    assert isinstance(value, int)
    return PER_CHANNEL if value == _WHOLE_ROWS else value


def refuse_overrides(section: ModelConfig) -> None:
    """Raise `CheckpointError` where `dynamic` gives some modules another scheme.

    A pattern behind `-:` leaves modules as floats, which the files show by themselves.
    """
    dynamic = section.values.get("dynamic") or {}
    patterns = dynamic if isinstance(dynamic, dict) else {str(dynamic): None}
    others = [pattern for pattern in patterns if not pattern.startswith("-:")]
    if others:
        raise unread(section, "dynamic", others[0], "one scheme for all, or patterns behind `-:`")


def unread(section: ModelConfig, key: str, value: object, allowed: str) -> CheckpointError:
    """The refusal of a value that the format knows and we do not read."""
    return CheckpointError(
        f"{section.origin}: {key!r} is {value!r}", allowed=f"allowed: {allowed}", hint=GIVE_ORIGINAL
    )
