"""Rows of a data set on the Hugging Face Hub, by the library `datasets`.

It honours HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE, and keeps what it has read: a data set
that was loaded once is there without a connection.
"""

from importlib.util import find_spec
from typing import Any

from tightfit.drift.data.rows import Row
from tightfit.errors import DriftError, MissingPackageError


def hub_rows(hub_id: str, config: str | None, split: str | None) -> list[Row]:
    """All rows of a split; `split` None: of the only one that there is.

    Raises `MissingPackageError` without `datasets`, and `DriftError` where the data set, its
    configuration or split do not exist, or cannot be reached and were never loaded before.
    """
    if find_spec("datasets") is None:
        raise MissingPackageError(
            f"{hub_id}: data sets of the Hub need the package datasets, which is not installed",
            hint="install it: pip install 'tightfit[drift]', or give a local file",
        )
    loaded = _load(hub_id, config, split)
    if split is None:
        if len(loaded) != 1:
            raise DriftError(
                f"{hub_id}: several splits, and none is named",
                allowed=f"splits: {', '.join(loaded)}",
                hint=f"name one: {hub_id}:{config or 'default'}/{next(iter(loaded))}",
            )
        (loaded,) = loaded.values()
    return [Row(where=f"row {number}", fields=fields) for number, fields in enumerate(loaded, 1)]


def _load(hub_id: str, config: str | None, split: str | None) -> Any:
    import datasets

    local = "or give a local copy: --dataset FILE.jsonl"
    try:
        return datasets.load_dataset(hub_id, config, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DriftError(
            f"{hub_id}: {error}",
            hint=f"check the name; if it is private or gated, set HF_TOKEN; {local}",
        ) from error
    except ConnectionError as error:
        raise DriftError(
            f"{hub_id}: the Hub cannot be reached, and the data set was never loaded here: {error}",
            hint=f"connect once (it is kept under HF_HOME; HF_HUB_OFFLINE must not be 1), {local}",
        ) from error
    except ValueError as error:  # an unknown configuration or split; the message lists those known
        raise DriftError(
            f"{hub_id}: {error}", hint=f"name both: {hub_id}:CONFIG/SPLIT, {local}"
        ) from error
    # Scripts are a RuntimeError; the HTTP library's errors reach us as OSError.
    except (datasets.exceptions.DatasetsError, OSError, RuntimeError) as error:
        raise DriftError(
            f"{hub_id}: cannot be loaded: {error}"
            + (f": {error.__cause__}" if error.__cause__ else ""),  # which says what is damaged
            hint=f"run the command again, check the free space under HF_HOME, {local}",
        ) from error
