"""Measure JupyterLab's sidebar with many runs in it: does its list scroll smoothly, and how fast is it there?

    python benchmarks/sidebar.py [--runs 500] [--steps 200] [--seconds 8] [--out sidebar.json]

Opens a real JupyterLab in Chromium, on a home of its own with that many runs; one in fifty still trains, and writes a
step every half second meanwhile. Prints:

- milliseconds until the list stands in the first tab, and in each of eight tabs, in sight one after the other;
- the time between frames while the mouse wheel turns over the list: median, 99 of 100, and the longest;
- tasks that kept the page from drawing for more than 50 ms meanwhile, in all and by scripts of this extension;
- processor time that the page's main thread takes for a frame, which other load of the machine does not change;
- the same while nothing scrolls, and while the filter is typed.

It ends with an error where a script of this extension held up a frame for more than 50 ms.
"""

from __future__ import annotations

import argparse
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

LIMIT = 50.0  # milliseconds: a frame that takes longer is seen as a jerk
TABS = 8
WHEEL = 100  # pixels, as one notch of a mouse

# Watches frames and what delays them, until it is asked. `scripts` are those that ran for long in a late frame.
WATCH = """() => {
    const seen = {frames: [], tasks: [], scripts: []};
    window.seen = seen;
    seen.tasked = new PerformanceObserver(list => list.getEntries().forEach(each => seen.tasks.push(each.duration)));
    seen.tasked.observe({type: 'longtask'});
    seen.late = new PerformanceObserver(list => list.getEntries().forEach(frame =>
        frame.scripts.forEach(each => seen.scripts.push([each.sourceURL || each.invoker, each.duration]))));
    seen.late.observe({type: 'long-animation-frame'});
    let last = performance.now();
    const frame = now => {
        seen.frames.push(now - last);
        last = now;
        seen.next = requestAnimationFrame(frame);
    };
    seen.next = requestAnimationFrame(frame);
}"""
SEEN = """async () => {
    await new Promise(later => setTimeout(later, 300));
    cancelAnimationFrame(seen.next);
    seen.tasked.disconnect();
    seen.late.disconnect();
    return {frames: seen.frames.slice(1), tasks: seen.tasks, scripts: seen.scripts};
}"""
LISTED = "count => document.querySelectorAll('.gptx-Card').length === count"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    import browsers
    from server import make_runs

    with tempfile.TemporaryDirectory() as place:
        lab = browsers.make_lab(Path(place))
        os.environ["GPTX_HOME"] = str(lab.home)
        make_runs(given.runs, given.steps)
        lab.start()
        over = threading.Event()
        trains = threading.Thread(target=go_on, args=(over,))
        trains.start()
        try:
            found = measure(lab, given.runs, given.seconds)
        finally:
            over.set()
            trains.join()
            lab.end()
    report.figures({"runs": given.runs, "steps": given.steps, **found}, given.out)
    slow = max(value for name, value in found.items() if name.endswith("own scripts, longest, ms"))
    sys.exit(f"A script of this extension held up a frame for {slow:.0f} ms" if slow > LIMIT else 0)


def go_on(over: threading.Event) -> None:
    """Let the runs that train write steps until `over`."""
    import made_runs

    from gptx_nb.metrics import MetricsWriter
    from gptx_nb.runs import RunStore

    writers = [MetricsWriter(run.metrics_file(1)) for run in RunStore().runs() if run.active]
    step = 10_000
    while not over.wait(0.5):
        step += 1
        for writer in writers:
            writer.append(made_runs.step_record(step))
    for writer in writers:
        writer.close()


def measure(lab: Any, runs: int, seconds: float) -> dict[str, Any]:
    from browsers import chromium

    found: dict[str, Any] = {}
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 1300, "height": 900})
        context.set_default_timeout(120_000)
        pages, took = [], []
        for number in range(TABS):
            pages.append(context.new_page())
            took.append(opened(pages[-1], lab, f"tab{number}", runs))
        found["until the list stands, first tab, ms"] = took[0]
        found["until the list stands, slowest of 8 tabs, ms"] = max(took)
        page = pages[0]
        page.bring_to_front()
        for page_ in pages[1:]:
            page_.close()
        page.wait_for_timeout(2000)
        tools = context.new_cdp_session(page)
        tools.send("Performance.enable", {"timeDomain": "threadTicks"})
        for what, act in (("scrolling", scroll), ("at rest", rest), ("filtering", type_filter)):
            page.evaluate(WATCH)
            before = processor_ms(tools)
            act(page, seconds)
            took = processor_ms(tools) - before
            found |= told(what, page.evaluate(SEEN), took)
    return found


def processor_ms(tools: Any) -> float:
    """Return the processor time of the page's main thread so far."""
    metrics = {each["name"]: each["value"] for each in tools.send("Performance.getMetrics")["metrics"]}
    return 1000 * float(metrics["TaskDuration"])


def opened(page: Any, lab: Any, workspace: str, runs: int) -> float:
    """Open JupyterLab in `page`; return how long its list took once it was asked for."""
    from browsers import command, visit

    visit(page, lab, workspace)
    began = time.perf_counter()
    command(page, "gptx-nb:show-runs")
    page.wait_for_function(LISTED, arg=runs)
    return 1000 * (time.perf_counter() - began)


def scroll(page: Any, seconds: float) -> None:
    """Turn the wheel over the list, down and up again."""
    box = page.locator(".gptx-List").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        page.mouse.wheel(0, WHEEL if left > seconds / 3 else -WHEEL)


def rest(page: Any, seconds: float) -> None:
    page.wait_for_timeout(1000 * seconds)


def type_filter(page: Any, seconds: float) -> None:
    field = page.get_by_label("Filter runs")
    field.press_sequentially("run-04", delay=150)
    for _ in range(6):
        field.press("Backspace")
        page.wait_for_timeout(150)


def told(what: str, seen: dict[str, Any], took: float) -> dict[str, Any]:
    frames = sorted(seen["frames"])
    own = [took for source, took in seen["scripts"] if "gptx-nb" in source]
    return {
        f"{what}: frames": len(frames),
        f"{what}: frame, median, ms": statistics.median(frames),
        f"{what}: frame, 99 of 100, ms": frames[int(0.99 * len(frames))],
        f"{what}: frame, longest, ms": frames[-1],
        f"{what}: frames over {LIMIT:.0f} ms": sum(each > LIMIT for each in frames),
        f"{what}: main thread for a frame, processor ms": took / len(frames),
        f"{what}: tasks over 50 ms": len(seen["tasks"]),
        f"{what}: task, longest, ms": max(seen["tasks"], default=0.0),
        f"{what}: own scripts, longest, ms": max(own, default=0.0),
    }


if __name__ == "__main__":
    main()
