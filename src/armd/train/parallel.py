"""The processes of a run: who they are, which rows are theirs, how they agree. No other file knows ranks.

torchrun --nproc-per-node 4            one global batch, the same function of (seed, step) for any number of processes
    process   0    1    2    3
    rows     0-3  4-7  8-11 12-15      gradients are averaged, losses summed, the first process writes

none    one process
ddp     every process holds the whole model; gradients are averaged while the backward pass runs
fsdp    weights, gradients and optimiser state are cut into as many shares as there are processes (ZeRO); a layer's
        weights are gathered before its first use in a step and dropped after the last backward pass of the step
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from armd.baselines import Draw, nats, training_loss
from armd.errors import TrainingStopped, UserError
from armd.model import Transformer
from armd.train.config import TrainConfig

TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others. One that dies closes its connections and is noticed at once; one that hangs,
or a machine that vanishes, after this time."""

T = TypeVar("T")


class LostProcess(TrainingStopped):
    """Another process of the run died or does not answer."""


class Ranks:
    """One process among `size`. All methods but `rows` and `device` are met by all processes, in the same order."""

    def __init__(self, rank: int, size: int, local: int) -> None:
        self.rank, self.size, self.local = rank, size, local

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def __str__(self) -> str:
        return f" on {self.size} processes" if self.size > 1 else ""

    def rows(self, batch: int) -> range:
        """The rows of a global batch that are this process's; the shares differ by one row at most."""
        return range(batch * self.rank // self.size, batch * (self.rank + 1) // self.size)

    def device(self, wanted: torch.device) -> torch.device:
        """The device of this process: on GPUs the one of its number on its machine."""
        if self.size == 1 or wanted.type == "cpu":
            return wanted
        if wanted.index is not None:
            raise UserError(f"device={wanted} is one GPU, but {self.size} processes train; use --device cuda")
        count = torch.cuda.device_count()
        if self.local >= count:
            raise UserError(f"{self.local + 1} processes or more on a machine of {count} GPUs; start one for each GPU")
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def sum(self, *values: float) -> list[float]:
        """Sums over all processes, in float64; what is not finite anywhere is not finite in the sum."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def check(self, error: UserError | None = None, stop: bool = False) -> bool:
        """Meet the others. Raises on all what any of them brings; returns whether any of them wants to stop.

        A process that fails elsewhere comes here from `joined`: so between two meetings a process may fail alone
        wherever the others enter no other collective.
        """
        if self.size == 1 or (error is not None and error.agreed):
            if error is not None:
                raise error
            return stop
        flags = torch.tensor([error is not None, stop], dtype=torch.int32)
        messages: list[str | None] = [None] * self.size
        try:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
            if flags[0]:
                dist.all_gather_object(messages, error and str(error))
        except RuntimeError:
            if error is not None:  # nobody is left to hear it
                raise error from None
            raise
        for message in messages:
            if message is not None:
                agreed = UserError(message)
                agreed.agreed = True
                raise agreed from error
        return bool(flags[1])

    def attempt(self, action: Callable[[], T]) -> T:
        """Run it on every process; a UserError of one is that of all."""
        try:
            result = action()
        except UserError as failed:
            self.check(failed)
            raise
        self.check()
        return result

    def on_first(self, action: Callable[[], T]) -> T:
        """Run it on the first process; its result, or its UserError, is that of all."""
        result = [self.attempt(lambda: action() if self.first else None)]
        if self.size > 1:
            dist.broadcast_object_list(result, src=0)
        return result[0]  # type: ignore[return-value]


ALONE = Ranks(0, 1, 0)


def tells(error: UserError | TrainingStopped) -> bool:
    """Whether this process, which is about to end with an error, prints its line.

    torchrun ends all processes as soon as one has: they ignore its signal from here on, to end with their own status.
    """
    if "LOCAL_RANK" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return not error.agreed or os.environ.get("RANK", "0") == "0"


# ---- meeting and parting ---------------------------------------------------------------------------------------------


@contextmanager
def joined(parallel: str = "auto") -> Iterator[Ranks]:
    """Within the context the processes that `torchrun` started know each other; a UserError of one is raised by all.

    Raises:
        LostProcess: another process died, hangs or never came.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    mine = not dist.is_initialized() and (size > 1 or parallel != "auto")
    ranks = ALONE
    try:
        with agreeing(ALONE):
            if mine:
                _join(size)
        if dist.is_initialized():
            ranks = Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
        with agreeing(ranks):
            yield ranks
    finally:
        if mine and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def agreeing(ranks: Ranks) -> Iterator[None]:
    """A UserError of one process leaves this context on all; the death of another leaves it as a LostProcess."""
    try:
        yield
    except UserError as error:
        ranks.check(error)
    except TrainingStopped as stopped:  # all come to it from the same figures
        stopped.agreed = ranks.size > 1 and not isinstance(stopped, LostProcess)
        raise
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        reason = re.sub(r"^\[.*?\] |\. This is typically.*", "", str(error).strip().splitlines()[0])
        raise LostProcess(f"process {ranks.rank} lost another process ({reason}); go on with --resume") from error


def _join(size: int) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if size > 1:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:  # ddp or fsdp on one process
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def _is_lost(error: RuntimeError) -> bool:
    """Gloo raises plain RuntimeErrors; what it says of a closed or silent connection names it."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def leave(status: int) -> int:
    """The exit status of a process; one of several ends here and now.

    What torch 2.13 tears down at the end may abort a process that has done its work, or wait for one that died (gloo).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


# ---- the model of a process ------------------------------------------------------------------------------------------


class Objective(nn.Module):
    """The loss as a module: a call of it is what DDP and FSDP hook into."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, draw: Draw, weighting: str | None) -> Tensor:
        """The training loss of a weighting; without one, nats by token: (B, N)."""
        if weighting is None:
            return nats(self.model, tokens, draw)
        return training_loss(self.model, tokens, draw, weighting)


class Replica:
    """A process's copy or share of the model, and how its losses and gradients become those of the global batch.

    Raises:
        UserError: the batch cannot be cut evenly.
    """

    def __init__(self, model: Transformer, config: TrainConfig, ranks: Ranks = ALONE) -> None:
        self.model, self.ranks = model, ranks
        if config.batch_size % ranks.size:
            raise UserError(f"batch_size={config.batch_size} cannot be divided by {ranks.size} processes")
        self.rows = ranks.rows(config.batch_size)
        self.micro = min(config.micro_batch_size or len(self.rows), len(self.rows))
        if len(self.rows) % self.micro:
            raise UserError(f"micro_batch_size={self.micro} must divide the {len(self.rows)} texts of a process")
        mode = ("none" if ranks.size == 1 else "ddp") if config.parallel == "auto" else config.parallel
        self._call: nn.Module = Objective(model)
        if mode == "ddp":
            self._call = DistributedDataParallel(
                self._call,
                device_ids=[model.device] if model.device.type == "cuda" else None,
                forward_sync_buffers=False,  # they are tables that never change
                gradient_as_bucket_view=True,
            )
        elif mode == "fsdp":
            _shard(self._call, model, config.precision)

    def __call__(self, tokens: Tensor, draw: Draw, weighting: str | None = None) -> Tensor:
        return self._call(tokens, draw, weighting)

    @property
    def sharded(self) -> bool:
        return isinstance(self._call, FSDPModule)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around forward and backward pass of a micro-batch: the processes meet in the last one of a step."""
        if isinstance(self._call, FSDPModule):
            self._call.set_requires_gradient_sync(last)
        skip = isinstance(self._call, DistributedDataParallel) and not last
        with self._call.no_sync() if skip else nullcontext():  # type: ignore[operator]
            yield
        if last:
            self.release()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the context dropout is off; afterwards gathered weights are dropped."""
        self.model.eval()
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Drop gathered weights, so that the parameters are the shares the optimiser works on."""
        for module in self._call.modules() if self.sharded else ():
            if isinstance(module, FSDPModule):
                module.reshard()

    @torch.no_grad()
    def clip(self, most: float) -> float:
        """Scale the gradients to a global norm of at most `most`; returns the norm before."""
        return whole(nn.utils.clip_grad_norm_(self.model.parameters(), most)).item()


def _shard(root: nn.Module, model: Transformer, precision: str) -> None:
    """`fully_shard` each layer, then the rest."""
    bf16 = precision == "bf16" and model.device.type == "cuda"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # rotary angles stay float32
    )
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    sharded = fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    sharded.set_reshard_after_backward(False)


# ---- whole tensors and shares ----------------------------------------------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shares of all processes put together. They all have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, cut as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def own(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What of the tensors lies in this process, without gradients; writing to it writes to them."""
    return [(t.to_local() if isinstance(t, DTensor) else t).detach() for t in tensors]
