"""Where a run's examples come from: what is known of a source before its rows are read. Reads no table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Source:
    """One table's origin. `path` is absolute, or relative to the run's folder for rows that came from memory."""

    kind: Literal["examples", "frame", "file", "folder", "hub"]
    shown: str
    fingerprint: str
    path: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Source:
        return cls(**value)
