"""Runs a notebook in a real kernel, tells on the terminal what goes on, and writes it with its outputs beside itself.

    python notebooks/run.py [NOTEBOOK]          quickstart.ipynb, unless another is named

One line a cell as it starts, a line every few seconds while a cell takes its time, the answers of every cell that
predicts. The exit status is 0 if all cells ran, 1 if one failed, 130 if Ctrl-C ended it; the executed notebook is
written each time. Nothing is known here of training: what a notebook does is in its cells.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionComplete, CellExecutionError, DeadKernelError
from nbclient.util import ensure_async
from nbformat import NotebookNode

QUICKSTART = Path(__file__).with_name("quickstart.ipynb")
PREDICTS = re.compile(r"^%%?gpt_predict\b|\bgptx_nb\.predict\(", re.MULTILINE)
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
QUIET_SECONDS = 8.0  # the longest silence on the terminal
WIDTH = 110
LONGEST_ERROR = 30  # lines


class Client(NotebookClient):
    """A NotebookClient that also takes in what threads of earlier cells display, and remembers the latest text.

    A run's progress comes from such a thread. nbclient drops every message that does not belong to the cell that is
    running, so an earlier cell would keep the first line of its progress for ever.
    """

    latest = ""

    async def _async_poll_output_msg(self, parent_msg_id: str, cell: NotebookNode, cell_index: int) -> None:
        assert self.kc is not None
        while True:
            message = await ensure_async(self.kc.iopub_channel.get_msg(timeout=None))
            ours = message["parent_header"].get("msg_id") == parent_msg_id
            if ours or message["msg_type"] in ("update_display_data", "comm_open", "comm_msg", "comm_close"):
                try:
                    self.process_message(message, cell, cell_index)
                except CellExecutionComplete:
                    return

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            data = msg["content"]["data"]
            if "application/vnd.jupyter.widget-view+json" not in data:
                self.latest = plain(data.get("text/plain", "")) or self.latest
        elif msg["msg_type"] == "stream":
            self.latest = plain(msg["content"]["text"]) or self.latest
        return super().process_message(msg, cell, cell_index)


class Show:
    """Runs one notebook and prints as it goes."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.executed = path.with_name(f"{path.stem}-executed.ipynb")
        self.notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        self.numbers = {
            index: number
            for number, index in enumerate(
                (i for i, cell in enumerate(self.notebook.cells) if cell.cell_type == "code" and cell.source.strip()), 1
            )
        }
        self.answers: list[tuple[str, str]] = []
        self.began = self.cell_began = self.spoke = time.monotonic()
        self.number = 0
        self.interrupted = False
        self.client = Client(
            self.notebook,
            timeout=None,
            record_timing=False,
            extra_arguments=[
                "--log-level=ERROR"
            ],  # ipykernel warns of TCP at each start; all of it stays on this machine
            resources={"metadata": {"path": str(path.parent)}},
            on_notebook_start=self.notebook_starts,
            on_cell_execute=self.cell_starts,
            on_cell_executed=self.cell_ends,
        )

    async def run(self) -> int:
        """Run all cells, write the executed notebook, print the answers; return the exit status."""
        self.say(f"Running {self.name} in a real kernel. Cells: {len(self.numbers)}")
        self.task = asyncio.ensure_future(self.client.async_execute())
        ticking = asyncio.ensure_future(self.tick())
        status = 1
        try:
            await self.task
            status = 0
        except CellExecutionError as error:
            self.say_error(f"{error.ename}: {error.evalue}")
        except (DeadKernelError, asyncio.CancelledError):
            if not self.interrupted:
                self.say_error("The kernel died. Its memory may have run out: see what else runs here.")
            else:
                self.say("\nInterrupted. A run that had begun goes on by itself: `gptx-nb runs` lists it.")
                status = 130
        finally:
            ticking.cancel()
            nbformat.write(self.notebook, self.executed)  # type: ignore[no-untyped-call]
        self.say_end(status)
        return status

    def notebook_starts(self, notebook: NotebookNode) -> None:
        # nbclient's own handler, set just before, ends in an AssertionError instead of a saved notebook.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self.interrupt)

    def interrupt(self) -> None:
        self.interrupted = True
        self.client.shutdown_kernel = "immediate"
        self.task.cancel()

    def cell_starts(self, cell: NotebookNode, cell_index: int) -> None:
        self.number = self.numbers[cell_index]
        self.cell_began = time.monotonic()
        self.client.latest = ""
        since = self.cell_began - self.began
        self.say(f"[{self.number:2d}/{len(self.numbers)}] {since:6.1f} s  {first_line(cell.source)}")

    def cell_ends(self, cell: NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
        if PREDICTS.search(cell.source) and execute_reply["content"]["status"] == "ok":
            answer = result_of(cell)
            self.answers.append((one_line(cell.source.strip().splitlines()[-1]), answer))
            self.say(indented(answer))

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            if self.number and time.monotonic() - self.spoke >= QUIET_SECONDS:
                since = time.monotonic() - self.cell_began
                self.say(f"        {since:6.0f} s  {one_line(self.client.latest)}".rstrip())

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.spoke = time.monotonic()

    def say_error(self, summary: str) -> None:
        """Print the cell that failed and what it said: a message of the user's own mistake, else the traceback."""
        cell = next(
            (self.notebook.cells[index] for index, number in self.numbers.items() if number == self.number), None
        )
        if cell is None:
            self.say(f"\nNo cell ran: {summary}")
            return
        said = [output.text for output in cell.outputs if output.get("name") == "stderr"]
        said += ["\n".join(output.traceback) for output in cell.outputs if output.output_type == "error"]
        lines = plain("\n".join(said)).splitlines()
        if len(lines) > LONGEST_ERROR:
            lines = ["...", *lines[-LONGEST_ERROR:]]
        if summary.splitlines()[0] not in "\n".join(lines):
            lines.append(summary)
        after = time.monotonic() - self.cell_began
        self.say(f"\nCell {self.number} of {len(self.numbers)} failed after {after:.1f} s:\n{indented(cell.source)}\n")
        self.say("\n".join(lines))

    def say_end(self, status: int) -> None:
        if self.answers:
            self.say("\nPredictions")
            for line, answer in self.answers:
                self.say(f"  {line}\n{indented(answer)}")
        which = "The executed notebook" if status == 0 else "The notebook as far as it ran"
        here = Path.cwd()
        path = self.executed.relative_to(here) if self.executed.is_relative_to(here) else self.executed
        self.say(f"\n{which}: {path}   ({time.monotonic() - self.began:.0f} s)")
        if self.name == QUICKSTART.name:
            self.say("Open it in JupyterLab: make lab")


def first_line(source: str) -> str:
    """Return the first line that is code; if all are comments, the first."""
    lines = [line for line in source.splitlines() if line.strip()]
    return one_line(next((line for line in lines if not line.startswith("#")), lines[0]))


def result_of(cell: NotebookNode) -> str:
    """Return what a person reads below the cell, as plain text: its result, else what it displayed or printed."""
    results = [output for output in cell.outputs if output.output_type == "execute_result"]
    texts = []
    for output in results or cell.outputs:
        texts.append(output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", ""))
    return "\n".join(filter(None, map(plain, texts)))


def plain(text: str) -> str:
    """Return the text without colours, and of a line that was overwritten the last state."""
    return "\n".join(line.rstrip().rpartition("\r")[2] for line in ANSI.sub("", text).splitlines()).strip("\n")


def one_line(text: str) -> str:
    """Return the text in one line that fits on a terminal."""
    joined = " · ".join(line.strip() for line in text.splitlines() if line.strip())
    return joined if len(joined) <= WIDTH else joined[: WIDTH - 1] + "…"


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else QUICKSTART
    if not path.is_file():
        print(f"There is no notebook {path}.", file=sys.stderr)
        return 2
    return asyncio.run(Show(path.absolute()).run())


if __name__ == "__main__":
    sys.exit(main())
