"""The recommended sampling of generation_config.json, in the keys that llama.cpp reads.

R1's recommendation is temperature 0.6 and top-p 0.95; a runtime that takes its defaults from the
file then needs no options.
"""

from pathlib import Path

from gguf import GGUFValueType

from tightfit.calib.json_file import read_json
from tightfit.export.gguf.entry import Entry, f32


def sampling_entries(folder: Path) -> tuple[Entry, ...]:
    """`general.sampling.*` of a checkpoint folder; none where it does not sample."""
    config = read_json(folder / "generation_config.json")
    if not config.get("do_sample"):
        return ()
    entries = []
    if config.get("top_k") is not None:
        entries.append(
            Entry(key="general.sampling.top_k", value=config["top_k"], type=GGUFValueType.INT32)
        )
    for name, key in (("top_p", "top_p"), ("temperature", "temp")):
        if config.get(name) is not None:
            entries.append(f32(f"general.sampling.{key}", config[name]))
    return tuple(entries)
