"""Several processes of one run on one machine, one a device, each with a share of every step's rows (data parallel).

`launch` starts them with torchrun; in each, a `Ranks` says which one it is and brings them together. Where all hold the
whole model, gradients are summed once a step, so that all take the same step; sharding.py has the other way. Ranks
tell each other JSON through a file, and tensors through gloo or NCCL on the loopback interface: no port is open to the
network. torchrun's own state of the meeting, which it pickles, lies in a folder that this user alone can open, and is
removed when they have ended.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore

from gptx_nb.errors import RunFailed

FOLDER = "GPTX_RANKS"  # environment: where the ranks of a run meet
LONGEST = timedelta(days=7)  # of a wait for another rank, which may score meanwhile; torchrun ends those of the dead
BUCKET = 8_000_000  # gradients that are summed at once, in numbers: copies of 32 MB


@dataclass(frozen=True)
class Failure:
    """A rank that ended badly: `status` is its exit status, or the negative number of the signal that ended it."""

    rank: int
    status: int

    def __str__(self) -> str:
        how = f"was ended by {signal.Signals(-self.status).name}" if self.status < 0 else f"gave status {self.status}"
        return f"rank {self.rank} {how}, and the others were ended with it"


def launch(count: int, module: str, arguments: Sequence[str]) -> list[Failure]:
    """Run `python -m module arguments` in `count` ranks with torchrun until all have ended; return what failed.

    Where one fails, torchrun ends the others. A SIGTERM is handed on to the ranks.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    folder = tempfile.mkdtemp(prefix="gptx-ranks-")
    loopback = "lo0" if platform.system() == "Darwin" else "lo"
    variables = {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # of the ways in which ranks meet, a file alone opens no port
        FOLDER: folder,
        "PYTHONSAFEPATH": "1",
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        # Until each rank sets its own; else torchrun says so in the log.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    options = [
        "--nnodes=1",
        f"--nproc-per-node={count}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={folder}/rendezvous",
        "--rdzv-conf=store_type=file",
        "--rdzv-id=run",
        "--local-addr=127.0.0.1",
        "--max-restarts=0",
        "--shutdown-timeout=60",
        f"--log-dir={folder}/log",
    ]
    before = dict(os.environ)
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    os.environ.update(variables)  # ranks inherit it; torchrun has no other way
    try:
        torchrun.run(torchrun.parse_args([*options, "-m", module, *arguments]))
    except ChildFailedError as error:
        return [Failure(rank, failure.exitcode) for rank, failure in sorted(error.failures.items())]
    except SignalException:  # the ranks have been told, and have answered
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # torchrun leaves variables and handlers of its own behind.
        os.environ.clear()
        os.environ.update(before)
        for number, handler in handlers.items():
            if handler is not None:  # not one that no Python has set
                signal.signal(number, handler)
    return []


class Alone:
    """A process that trains by itself, or that stands for one of `count` which would."""

    rank = 0

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def gather(self, name: str, value: Any) -> list[Any]:
        """Return what each process gives: there is but one."""
        return [value]

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` gives."""
        return make()

    def meet(self, name: str) -> None:
        """Go on at once: nobody else is to come."""


ALONE = Alone()


class Ranks:
    """The ranks of one run, seen by one of them, which `launch` has started: `rank` of `count`."""

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.parent = os.getppid()
        self._store = FileStore(f"{os.environ[FOLDER]}/store", self.count)
        self._store.set_timeout(LONGEST)
        self._device = torch.device("cpu")

    def gather(self, name: str, value: Any) -> list[Any]:
        """Return what each rank gives as `name`, in the order of ranks. Plain values only; once for each name."""
        self._store.set(f"{name}/{self.rank}", json.dumps(value))
        return [json.loads(self._store.get(f"{name}/{rank}")) for rank in range(self.count)]

    def tell(self, name: str, value: Any) -> None:
        """Let the other ranks `hear` a plain value."""
        self._store.set(name, json.dumps(value))

    def hear(self, name: str) -> Any:
        """Wait for what a rank tells as `name`, and return it."""
        return json.loads(self._store.get(name))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` gives in the first rank, in every rank. Plain values only; once for each name."""
        if self.rank == 0:
            self.tell(name, make())
        return self.hear(name)  # in the first one too: all have the same after its way through JSON

    def meet(self, name: str) -> None:
        """Return when every rank has come here; once for each name."""
        self.gather(name, None)

    def join(self, device: torch.device) -> None:
        """Bring all ranks together, each with its `device`; returns when all are there."""
        self._device = device
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "nccl"
        store = PrefixStore("group", self._store)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.count, timeout=LONGEST)

    def leave(self) -> None:
        """Part again, when all has been computed."""
        dist.destroy_process_group()

    def agree(self, yes: bool) -> bool:
        """Return whether any rank says yes: the same to all. Raises RunFailed where what started them is gone."""
        if os.getppid() != self.parent:
            raise RunFailed(
                f"the process that started rank {self.rank} is gone: another attempt may go on with the run"
            )
        said = torch.tensor([int(yes)], device=self._device)
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        return bool(said)

    def most(self, count: int) -> int:
        """Return the largest of the numbers that the ranks give."""
        said = torch.tensor([count], device=self._device)
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        return int(said)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
        """Put the sum over all ranks in the place of each gradient, and return the sum of their losses (a scalar).

        A gradient that a rank lacks, having had no rows, counts as zero. All get the same numbers to the last bit.
        """
        for bucket in _buckets(parameters):
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            # In float32, whatever the weights are: a sum of many small numbers.
            flat = torch.cat([parameter.grad.float().flatten() for parameter in bucket if parameter.grad is not None])
            dist.all_reduce(flat)
            for parameter, total in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(total.view_as(parameter))
        summed = loss.detach().clone().reshape(1)
        dist.all_reduce(summed)
        return summed[0]


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(each.numel() for each in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def share(lengths: Sequence[int], rank: int, count: int) -> list[int]:
    """Return the places of the rows that `rank` of `count` takes of a step: about as many tokens as any other.

    `lengths` are in tokens. Every row is taken by one rank; with fewer rows than ranks some take none.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    # Dealt out to and fro, so that no rank gets the longer one of every round.
    turns = [*range(count), *reversed(range(count))]
    return [place for turn, place in enumerate(order) if turns[turn % len(turns)] == rank]
