"""The model that was quantized: its name on the Hub, its licence, what is known of the family."""

import re
from dataclasses import dataclass
from typing import Final

from tightfit.calib.locate import EMBEDDED_NAME, locate_model
from tightfit.calib.models import MODELS, LicenseTerms
from tightfit.export.manifest import InputRecord, hash_file

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_WEIGHTS: Final = "model.safetensors"
_DEEPSEEK_COPYRIGHT: Final = "Copyright (c) 2023 DeepSeek"
"""First line of the LICENSE in DeepSeek's repositories of R1 and its distills."""
_OUR_COPYRIGHT: Final = "Copyright (c) 2026 the tightfit authors"


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """What the manifest's input is to a reader of the card."""

    id: str
    hub_id: str | None
    """None: a folder, which no link leads to."""
    short_name: str | None
    """What `tightfit export` calls it; None: its Hub id, or a folder."""
    license: str | None
    """The Hub's identifier; None: not known."""
    copyright: str | None
    """Line of the MIT licence that goes with it; None: not known."""
    terms: LicenseTerms | None
    """What the base of a distill adds."""
    derived_from: str | None
    """Hub id of the model that it was trained from."""
    language: str | None
    """ISO 639-1; None: not known."""
    embedded: bool

    @property
    def is_r1(self) -> bool:
        """Whether it has R1's format, and DeepSeek's advice on sampling holds."""
        return self.embedded or self.copyright is not None


def base_model(record: InputRecord) -> BaseModel:
    """The model of a manifest's input."""
    embedded = _is_embedded(record)
    known = MODELS.get(record.id) if record.revision else None
    on_hub = record.revision is not None and _HUB_ID.fullmatch(record.id) is not None
    return BaseModel(
        id=record.id,
        hub_id=record.id if on_hub else None,
        short_name=EMBEDDED_NAME if embedded else known.name if known else None,
        license="mit" if embedded else known.hub_license if known else None,
        copyright=_OUR_COPYRIGHT if embedded else _DEEPSEEK_COPYRIGHT if known else None,
        terms=known.terms if known else None,
        derived_from=known.base_model if known else None,
        language="en" if embedded else None,
        embedded=embedded,
    )


def _is_embedded(record: InputRecord) -> bool:
    """Whether it is tightfit's own model, and not just a folder of that name."""
    if record.id != EMBEDDED_NAME or record.revision is not None:
        return False
    own = hash_file(locate_model(None).path / _WEIGHTS)
    return own in record.files
