"""Points the Hub's client at the loopback Hub, in this process or in one that is started.

The client reads its environment when it is imported; in this process it already is.
"""

import os
import types
from pathlib import Path

import huggingface_hub.constants as hub_constants
import huggingface_hub.file_download as hub_download
import huggingface_hub.utils._http as hub_http
import pytest

from support.hub_state import Hub


def use_hub(
    monkeypatch: pytest.MonkeyPatch, hub: Hub, home: Path, token: str | None
) -> list[float]:
    """All of this process talks to `hub`, and waits between retries are no waits.

    Returns the list into which the seconds of those waits go.
    """
    monkeypatch.setattr(hub_constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(hub_constants, "AGENT_HARNESSES_PATH", str(home / "agents.json"))
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    waits: list[float] = []
    for module in (hub_http, hub_download):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(sleep=waits.append))
    return waits


def hub_environment(hub: Hub, home: Path, token: str | None) -> dict[str, str]:
    """For a process that is to talk to `hub`."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **({"HF_TOKEN": token} if token is not None else {}),
    }
