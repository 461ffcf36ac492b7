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
class LicenseTerms:
    """A licence of a base model, and what it asks of whoever passes the model on."""

    name: str
    url: str
    """Of its text."""
    display: str = ""
    """To be shown in the documentation; empty: nothing."""
    notice: str = ""
    """To be kept in a file `NOTICE`; empty: nothing."""


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
    hub_license: str
    """The Hub's identifier of the licence that a model made from it declares."""
    terms: LicenseTerms | None
    """Of the base model's licence; None when it adds none."""
    weights_dtype: WeightsDtype
    n_parameters: int
    """Weights that the model runs with."""
    dimensions: ModelDimensions


def load_models(path: Path) -> dict[str, KnownModel]:
    """The models of a TOML file by Hub id, in the file's order."""
    models: dict[str, KnownModel] = {}
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    terms = {fields.pop("id"): LicenseTerms(**fields) for fields in document["terms"]}
    for entry in document["model"]:
        model = KnownModel(
            id=entry["id"],
            name=entry["name"],
            base_model=entry["base_model"],
            license=entry["license"],
            base_terms=entry["base_terms"],
            hub_license=entry["hub_license"],
            terms=terms[entry["terms"]] if "terms" in entry else None,
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
