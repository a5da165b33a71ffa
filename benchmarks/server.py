"""Measure the server extension: how fast a list of many runs is answered, and what an idle server costs.

    python benchmarks/server.py [--runs 500] [--steps 1000] [--repeats 20] [--out server.json]

Starts a real Jupyter Server on a home of its own with that many runs, each with so many steps of metrics. Prints:

- milliseconds to the first answer after the start, which reads every run;
- milliseconds to a whole list, to what has changed, and after a run has changed: medians and the slowest;
- milliseconds until eight at once have their whole list;
- processor time that the server takes while nobody asks, as a share of one core.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import report

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

LIMIT = 200.0  # milliseconds for the list of 500 runs
IDLE_SECONDS = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from servers import JupyterServer

    with tempfile.TemporaryDirectory() as place:
        server = JupyterServer(Path(place), "jupyter_server")
        os.environ["GPTX_HOME"] = str(server.home)
        make_runs(given.runs, given.steps)
        server.start()
        try:
            found = measure(server, given.repeats)
        finally:
            server.end()
    report.figures({"runs": given.runs, "steps": given.steps, **found}, given.out)
    slow = found["list, slowest, ms"] >= LIMIT
    sys.exit(f"The list took {found['list, slowest, ms']:.0f} ms, and {LIMIT:.0f} are allowed" if slow else 0)


def make_runs(count: int, steps: int) -> None:
    """Write finished runs, one in fifty still training, with `steps` lines of metrics each."""
    import made_runs

    for number in range(count):
        outcome = None if number % 50 == 49 else made_runs.FINISHED
        scores = made_runs.SCORES if outcome else None
        made_runs.make(f"run-{number:04}", steps=steps, phase="training", scores=scores, outcome=outcome)


def measure(server: Any, repeats: int) -> dict[str, Any]:
    import made_runs

    first, answer = ask(server, "runs")
    whole = [ask(server, "runs") for _ in range(repeats)]
    changed = [ask(server, f"runs?since={answer['revision']}")[0] for _ in range(repeats)]
    after = []
    for _ in range(repeats):
        made_runs.make("other", steps=10, phase="training", outcome=made_runs.FINISHED)
        after.append(ask(server, f"runs?since={answer['revision']}")[0])
    together: list[float] = []
    threads = [threading.Thread(target=lambda: together.append(ask(server, "runs")[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = [milliseconds for milliseconds, _ in whole]
    return {
        "first answer, ms": first,
        "list, median, ms": statistics.median(times),
        "list, slowest, ms": max(times),
        "list, bytes": len(json.dumps(whole[0][1])),
        "changes, median, ms": statistics.median(changed),
        "after a new run, median, ms": statistics.median(after),
        "eight at once, slowest, ms": max(together),
        "idle, % of a core": idle(server),
    }


def ask(server: Any, path: str) -> tuple[float, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    began = time.perf_counter()
    connection.request("GET", f"{server.base}gptx_nb/{path}", headers={"Authorization": f"token {server.token}"})
    content = connection.getresponse().read()
    took = 1000 * (time.perf_counter() - began)
    connection.close()
    return took, json.loads(content)


def idle(server: Any) -> float:
    before = server.processor_seconds()
    time.sleep(IDLE_SECONDS)
    return float(100 * (server.processor_seconds() - before) / IDLE_SECONDS)


if __name__ == "__main__":
    main()
