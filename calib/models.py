"""The checkpoints of the DeepSeek-R1 family, known offline: `models.toml` as typed data."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from tightfit.calib.config import ModelConfig
from tightfit.calib.dimensions import ModelDimensions, dimensions_of

WeightsDtype = Literal["bf16", "fp8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """One checkpoint of the family."""

    id: str
    """Hub id."""
    name: str
    """Short name on the command line, e.g. `r1-distill-qwen-7b`."""
    base_model: str
    """Hub id of the model that it was trained from."""
    license: str
    """Licence of the weights, as an SPDX identifier."""
    base_terms: str
    """Licence that the base model adds; empty when it is the same."""
    weights_dtype: WeightsDtype
    n_parameters: int
    """Weights that the model runs with."""
    dimensions: ModelDimensions


def load_models(path: Path) -> dict[str, KnownModel]:
    """The models of a TOML file by Hub id, in the file's order."""
    models: dict[str, KnownModel] = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["model"]:
        model = KnownModel(
            id=entry["id"],
            name=entry["name"],
            base_model=entry["base_model"],
            license=entry["license"],
            base_terms=entry["base_terms"],
            weights_dtype=cast(WeightsDtype, entry["dtype"]),
            n_parameters=entry["n_parameters"],
            dimensions=dimensions_of(
                ModelConfig(origin=f"{path.name}: {entry['id']}", values=entry["config"])
            ),
        )
        assert model.id not in models, f"{model.id} is registered twice"
        assert all(model.name != other.name for other in models.values()), model.name
        models[model.id] = model
    return models


MODELS: Mapping[str, KnownModel] = load_models(Path(__file__).with_name("models.toml"))
"""The family by Hub id, the full models first, then by size."""


def find_model(name: str) -> KnownModel | None:
    """The model of a Hub id, of its last part, or of a short name, in any case; None: unknown."""
    wanted = name.casefold()
    for model in MODELS.values():
        if wanted in (model.id.casefold(), model.id.split("/")[1].casefold(), model.name):
            return model
    return None
