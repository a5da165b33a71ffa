"""What an attempt does to take less memory, over all attempts of a run: `levers-N.json`.

A learner has levers that let its steps take less at the same result: smaller micro-batches, then one at a time, then
activations that are computed twice. They are pulled one by one where memory runs out (`pull`). Where that came as an
error, the step is taken again and nothing is lost. Where the system killed the process, or the error came from a place
that cannot be begun again (scoring, an optimiser that was half through), the next attempt begins at the last checkpoint
with more levers pulled (`begin`): 1, 3, 7, ..., so that a few attempts are enough for all.

What one attempt has pulled the next one begins with, whatever ended it: so it repeats the steps of the first bit by
bit. Only where the user has set `tokens_at_once` otherwise meanwhile, or trains on another device, all begins anew.

    {"device", "asked": tokens_at_once of the recipe, "pulled": how many, "ways": what each of them was, "left": whether
    there may be more, "token_budget": tokens at once, "room": bytes that this process could have, or None}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from gptx_nb import files, metrics
from gptx_nb.supervisor import NEAR

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from gptx_nb.runs import Run


class Learner(Protocol):
    """What is asked of whoever learns."""

    token_budget: int

    def need_less_memory(self) -> str | None: ...
    def longest(self) -> Any: ...  # the step that takes most memory


class Levers:
    """The levers of one attempt, as one of its processes pulls them; `note` tells the user."""

    def __init__(self, run: Run, attempt: int, rank: int, note: Callable[[str], None]) -> None:
        self._run, self._attempt, self._rank, self._note = run, attempt, rank, note
        self._learner: Learner | None = None
        self._needed = 0  # levers that any learner of this attempt has needed
        self._state: dict[str, Any] = {}

    @property
    def state(self) -> dict[str, Any] | None:
        """What the file holds; None before it is there."""
        return self._state or None

    def begin(self, learner: Learner, device: torch.device, asked: int | None) -> None:
        """Pull what the attempt before had pulled, and more if it ran out of memory."""
        from gptx_nb.engine import memory

        self._learner = learner
        free, held = memory.available(device), memory.taken(device)
        self._state = {
            "device": device.type,
            "asked": asked,
            "pulled": 0,
            "ways": [],
            "left": True,
            "token_budget": learner.token_budget,
            "room": None if free is None or held is None else free + held,
        }
        before = self._before()
        same = before is not None and (before["device"], before["asked"]) == (device.type, asked)
        starved = same and self._ran_out()
        if before is not None and same:
            self._pull_until(2 * before["pulled"] + 1 if starved else before["pulled"])
        told = self._run.levers_file(self._attempt).exists()  # it waited in line, and begins anew
        self._write()
        if starved and self._state["ways"] and self._rank == 0 and not told:
            self._tell(f"in attempt {self._attempt - 1}", ", ".join(self._state["ways"]))

    def follow(self, learner: Learner, device: torch.device, asked: int | None) -> None:
        """Pull for one more learner of this attempt, of the same rows, what the one before it has needed."""
        if not self._state:
            self.begin(learner, device, asked)
            return
        self._learner = learner
        self._state |= {"pulled": 0, "ways": [], "left": True, "token_budget": learner.token_budget}
        self._pull_until(self._needed)
        self._write()

    def release(self) -> None:
        """Hold the learner no longer, and with it its model: `follow` brings another one."""
        self._learner = None

    def pull(self, step: int) -> bool:
        """Let the learner take less memory, which ran out at `step` (-1: before the first); False if it cannot."""
        before = self._state["pulled"]
        self._pull_until(before + 1)
        self._write()
        if self._state["pulled"] == before:
            return False
        self._tell(f"at step {step + 1}" if step >= 0 else "before the first step", self._state["ways"][-1])
        return True

    def _tell(self, when: str, how: str) -> None:
        budget = f"`tokens_at_once: {self._state['token_budget']}`"
        # No setting asks for the other ways: a run finds them by itself.
        begins = "begins so" if all(_is_size(way) for way in self._state["ways"]) else "comes nearest to it"
        same = "the result stays the same, but for rounding and for what dropout draws"
        self._note(f"memory ran out {when}: going on with {how}; {same}. {budget} {begins}")

    def _pull_until(self, number: int) -> None:
        assert self._learner is not None
        while self._state["left"] and self._state["pulled"] < number:
            before = _largest(self._learner)
            how = self._learner.need_less_memory()
            if how is None:
                self._state["left"] = False
                return
            self._state["token_budget"] = self._learner.token_budget
            if _is_size(how) and _largest(self._learner) == before:
                continue  # no step has had so many tokens
            kept = [way for way in self._state["ways"] if not (_is_size(way) and _is_size(how))]  # the last size counts
            self._state |= {"pulled": self._state["pulled"] + 1, "ways": [*kept, how]}
            self._needed = max(self._needed, self._state["pulled"])

    def _write(self) -> None:
        files.write_json(self._run.of_rank(self._run.levers_file(self._attempt), self._rank), self._state)

    def _before(self) -> dict[str, Any] | None:
        """Return the levers of the latest attempt that had any: of its ranks, the one that needed most."""
        for attempt in range(self._attempt - 1, 0, -1):
            file = self._run.levers_file(attempt)
            found: list[dict[str, Any]] = []
            while (state := files.read_json(self._run.of_rank(file, len(found)))) is not None:
                found.append(state)
            if found:
                return max(found, key=lambda state: int(state["pulled"]))
        return None

    def _ran_out(self) -> bool:
        """Whether the attempt before ended for want of memory.

        One that is gone together with its supervisor has left no outcome: a container can be killed as a whole. Then
        the memory that it recorded last has to tell.
        """
        run, attempt = self._run, self._attempt - 1
        levers = files.read_json(run.levers_file(attempt))
        outcome = run.outcome(attempt)
        if outcome is None or levers is None:
            return False
        if outcome["reason"] != "lost" or levers["room"] is None:
            return bool(outcome["reason"] == "out of memory")
        records, _ = metrics.read(run.metrics_file(attempt))
        held = next((each["memory"] for each in reversed(records) if each.get("memory") is not None), 0)
        return bool(held >= NEAR * levers["room"])


def _largest(learner: Learner) -> int:
    """Return the tokens of the largest micro-batch, padding included."""
    return max(int(tensors["input_ids"].numel()) for tensors in learner.longest().micro)


def _is_size(way: str) -> bool:
    return way.endswith("tokens at once")
