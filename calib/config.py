"""Typed access to a model's config.json (or to the same keys kept in the model registry)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tightfit.calib.json_file import read_json
from tightfit.errors import CheckpointError
from tightfit.records import shown

CONFIG_NAME = "config.json"
SEE_MODELS = "see `tightfit models` for the checkpoints that tightfit is made for"
"""The hint of every refusal of a model that is none of the family."""
_MAX_SIZE = 2**31 - 1
"""What 32-bit readers hold; the largest size in use is a context of 10 million tokens."""
_MAX_COUNTS = {"num_hidden_layers": 512, "n_routed_experts": 1024, "num_nextn_predict_layers": 16}
"""Of what has names of its own: a reader lists the tensors of all layers and experts. Four times
what the largest models have."""
_MAX_NUMBER = 1e18
"""No setting is near it, and products of two such numbers are still finite."""
_MAX_TEXT = 200
"""Characters of a word like `model_type`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The values of a config.json. A key that is null counts as absent, as in `transformers`."""

    origin: str
    """Where the values come from, for error messages."""
    values: Mapping[str, object]

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive whole number; without `default` the key is required."""
        return self._whole(key, default, 1)

    def count(self, key: str, default: int) -> int:
        """A whole number that may be 0."""
        return self._whole(key, default, 0)

    def optional_integer(self, key: str) -> int | None:
        """A positive whole number, or None where the key is absent."""
        return None if self.values.get(key) is None else self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; without `default` the key is required."""
        value = self._value(key, default)
        # Of two comparisons one is false for NaN.
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value <= _MAX_NUMBER
        ):
            raise self._refusal(key, value, "a number above 0")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A positive number, or None where the key is absent."""
        return None if self.values.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._refusal(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string; without `default` the key is required."""
        value = self._value(key, default)
        if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
            raise self._refusal(key, value, "a word")
        return value

    def section(self, key: str) -> "ModelConfig | None":
        """A nested object, or None where the key is absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._refusal(key, value, "an object")
        return ModelConfig(origin=f"{self.origin}: {key}", values=value)

    def _whole(self, key: str, default: int | None, least: int) -> int:
        value = self._value(key, default)
        most = _MAX_COUNTS.get(key, _MAX_SIZE)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._refusal(key, value, f"a whole number from {least} to {most}")
        return value

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(
                f"{self.origin}: {key!r} is missing",
                hint="the folder may hold an adapter or another kind of model, or config.json was "
                "cut: download it again",
            )
        return default

    def _refusal(self, key: str, value: object, allowed: str) -> CheckpointError:
        return CheckpointError(
            f"{self.origin}: {key!r} is {shown(value)}",
            allowed=f"allowed: {allowed}",
            hint="config.json is damaged or was edited by hand: download it again",
        )


def read_config(folder: Path) -> ModelConfig:
    """Read `folder`/config.json; raises `CheckpointError`."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        raise CheckpointError(
            f"{path}: no such file",
            allowed="a model folder holds config.json, *.safetensors and the tokenizer",
            hint=_hint_for(held),
        )
    return ModelConfig(origin=str(path), values=read_json(path))


def _hint_for(held: list[str]) -> str:
    gguf = [name for name in held if name.endswith(".gguf")]
    if gguf:
        return (
            f"the folder holds {gguf[0]}: a GGUF is already converted (and mostly already "
            "quantized); give the checkpoint that it was made from"
        )
    if "adapter_config.json" in held:
        return "the folder holds an adapter: merge it into its base model first"
    return "give the folder that holds config.json, or a Hub id: see `tightfit models`"
