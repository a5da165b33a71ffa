"""Makes a plain model of an adapter and its base, for `gptx_nb.merge`. Prints its size in bytes as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from gptx_nb.errors import UsageError


def carry_out(folder: Path, target: Path) -> int:
    """Return the exit status: 0, or 2 for the user's mistake."""
    from gptx_nb.engine import models

    try:
        models.merge(folder, target)
    except UsageError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return 2
    print(json.dumps({"bytes": sum(file.stat().st_size for file in target.iterdir())}))
    return 0
