"""Small files that others look for beside the artifacts.

* `params`: what Ollama takes from a repository of GGUF files on the Hub: sampling, stop tokens and
  context, as JSON by Ollama's names. The Hub itself turns R1's chat template into Ollama's, so no
  `template` is written. Source: huggingface.co/docs/hub/ollama, and `ollama-utils` of
  huggingface.js, whose stop tokens for R1 are these.
* `.eval_results/NAME.yaml`: accuracy on a benchmark that the Hub has registered (`results`).
* `LICENSE`: the MIT licence asks that its text goes with every copy.
* `NOTICE`: the line that the Llama licences ask for (section 1.b.iii), and where the base of a
  distill comes from.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]
from huggingface_hub import eval_result_entries_to_yaml

from tightfit.export.manifest import Manifest
from tightfit.publish.card.layout import (
    chat_template,
    is_split,
    of_format,
    sampling,
    small_file,
)
from tightfit.publish.card.model import BaseModel, base_model
from tightfit.publish.card.results import TASKS, read_drift, registered_results

GENERATED: Final = (
    "params",
    "LICENSE",
    "NOTICE",
    *(f".eval_results/{name}.yaml" for name in TASKS),
)
"""All that `companion_texts` may give."""
_TURNS: Final = ("<｜User｜>", "<｜Assistant｜>")
"""R1's marks of a turn: an answer that writes one has gone on into the next turn."""


def companion_texts(manifest: Manifest, folder: Path, repo: str) -> Mapping[str, str]:
    """Text by path in the repository; none that the manifest lists already.

    `folder` holds the artifact's small files. Raises `DriftError` for a damaged drift report.
    """
    base = base_model(manifest.input)
    texts = {
        "params": _ollama_params(manifest, folder),
        "LICENSE": _license(base),
        "NOTICE": _notice(base),
        **{
            f".eval_results/{name}.yaml": yaml.safe_dump(
                eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True
            )
            for name, entries in registered_results(read_drift(manifest), repo).items()
        },
    }
    listed = {record.name for record in manifest.companions}
    return {path: text for path, text in texts.items() if text and path not in listed}


def _ollama_params(manifest: Manifest, folder: Path) -> str:
    """Empty without a GGUF that Ollama pulls: it takes none that is split."""
    artifact = of_format(manifest, "gguf")
    if artifact is None or is_split(artifact):
        return ""
    parameters: dict[str, Any] = {
        "num_ctx": manifest.context_tokens,
        **sampling(manifest, folder),
    }
    stop = _stop_tokens(manifest, folder)
    if stop:
        parameters["stop"] = stop
    return json.dumps(parameters, indent=2, ensure_ascii=False) + "\n"


def _stop_tokens(manifest: Manifest, folder: Path) -> list[str]:
    values = small_file(manifest, folder, "tokenizer_config.json")
    ends = [_token(values.get(key)) for key in ("bos_token", "eos_token")]
    template = chat_template(manifest, folder)
    turns = [mark for mark in _TURNS if mark in template]
    return list(dict.fromkeys([*filter(None, ends), *turns]))


def _token(value: Any) -> str:
    """A special token, which tokenizer_config.json may wrap in a record."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _license(base: BaseModel) -> str:
    if base.copyright is None:
        return ""
    template = files("tightfit.publish.card") / "templates" / "mit.txt"
    return template.read_text(encoding="utf-8").replace("@COPYRIGHT@", base.copyright)


def _notice(base: BaseModel) -> str:
    if base.terms is None:
        return ""
    lines = [base.terms.notice] if base.terms.notice else []
    lines.append(
        f"{base.id} was trained from {base.derived_from}, which is under the {base.terms.name}: "
        f"{base.terms.url}"
    )
    lines.append("Its weights were quantized by tightfit.")
    return "\n\n".join(lines) + "\n"
