"""Fixtures that every test may use. No test reaches a hub."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$GPTX_HOME`."""
    folder = tmp_path / "home"
    monkeypatch.setenv("GPTX_HOME", str(folder))
    return folder
