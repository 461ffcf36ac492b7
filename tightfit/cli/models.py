"""`tightfit models`: the family, known offline."""

from dataclasses import asdict
from typing import Any

from tightfit.cli.options import JsonFlag, examples
from tightfit.cli.output import emit, table

EXAMPLES = examples(
    ("models", "all checkpoints with their sizes and licences"),
    ("models --json", "the same as JSON, with every dimension"),
)


def models_command(as_json: JsonFlag = False) -> None:
    """List the DeepSeek-R1 family.

    Any of the names, or a Hub id, or a local folder, is a MODEL of the other commands.
    """
    from tightfit.calib.config import read_config
    from tightfit.calib.dimensions import dimensions_of
    from tightfit.calib.locate import EMBEDDED_NAME, locate_model
    from tightfit.calib.models import MODELS

    embedded = dimensions_of(read_config(locate_model(None).path))
    documents: list[dict[str, Any]] = [
        {"name": EMBEDDED_NAME, "embedded": True, "dimensions": asdict(embedded)}
    ]
    rows = [
        [
            EMBEDDED_NAME,
            "(comes with tightfit)",
            "bf16",
            "MIT",
            _weights(_parameters(embedded)),
            str(embedded.max_position_embeddings),
        ]
    ]
    for model in MODELS.values():
        documents.append(asdict(model) | {"embedded": False})
        licence = f"{model.license} + {model.base_terms}" if model.base_terms else model.license
        rows.append(
            [
                model.name,
                model.id,
                model.weights_dtype,
                licence,
                _weights(model.n_parameters),
                str(model.dimensions.max_position_embeddings),
            ]
        )
    emit(
        {"models": documents},
        table(
            "",
            ("model", "Hub id", "dtype", "licence", "weights", "context"),
            rows,
            left=4,
        ),
        as_json=as_json,
    )


def _parameters(dimensions: Any) -> int:
    from tightfit.calib.architecture import architecture_of
    from tightfit.calib.shapes import count_parameters, tensor_shapes

    return count_parameters(tensor_shapes(architecture_of(dimensions.model_type), dimensions))


def _weights(n_parameters: int) -> str:
    billion, million = 10**9, 10**6
    if n_parameters >= billion:
        return f"{n_parameters / billion:.1f}B"
    return f"{n_parameters / million:.1f}M"
