import json
from pathlib import Path

from tightfit.export.gguf.sampling import sampling_entries


def test_recommended_sampling(tmp_path: Path) -> None:
    assert sampling_entries(tmp_path) == ()
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}))
    values = {entry.key: entry.value for entry in sampling_entries(tmp_path)}
    assert values == {
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.95,
        "general.sampling.temp": 0.6,
    }
    path.write_text(json.dumps({"temperature": 0.6}))
    assert sampling_entries(tmp_path) == ()
