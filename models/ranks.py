"""The processes that train one ranker together: who does which rows, and sums that are the same bits in each.

A batch is the same rows however many processes share it. Each adds up the loss of its own rows over the weight of the
whole batch (`batch_loss`), so summed gradients are those of the batch: no mean of means, whatever the shares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from dynamix.errors import EnvironmentTrouble, GuardError


class PeerLost(EnvironmentTrouble):
    """Another process of the training died, or did not answer in time (exit 5)."""


@dataclass(frozen=True)
class Ranks:
    """Rank of this process among `size`; as it stands here, one process alone, which changes no bit of anything."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True in the process that speaks and writes."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes, the same bits in each."""
        return values

    def least(self, values: Tensor) -> Tensor:
        """Minimum over the processes."""
        return values

    def begin(self, module: nn.Module) -> None:
        """Every process takes the weights of the first."""

    def share(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's rows of a batch: consecutive ones, as many as the others have, or one more."""
        return np.array_split(at, self.size)[self.rank]

    def add_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Put the sum over the processes in place of each gradient; None stays where no process has one."""
        if self.size == 1:
            return
        all_weights = list(weights)
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in all_weights]
        has = torch.tensor([float(w.grad is not None) for w in all_weights]).to(grads[0])
        summed = self.total(torch.cat([*(g.flatten() for g in grads), has]))
        sizes = [g.numel() for g in grads]
        *parts, found = torch.split(summed, [*sizes, len(sizes)])
        for weight, part, any_has in zip(all_weights, parts, found.tolist(), strict=True):
            weight.grad = part.view_as(weight) if any_has else None

    def add_terms(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum of each named scalar over the processes; every process holds the same names."""
        if self.size == 1:
            return dict(terms)
        names = sorted(terms)
        return dict(zip(names, self.total(torch.stack([terms[n] for n in names])).unbind(), strict=True))

    def check_agreement(self, module: nn.Module) -> None:
        """GuardError (exit 4) unless every weight has the same sum in all processes: they must never train apart."""
        if self.size == 1:
            return
        sums = torch.stack([w.detach().double().sum() for w in module.parameters()])
        low, high = self.least(sums), -self.least(-sums)
        if not torch.equal(low, high) and bool(torch.isfinite(sums).all()):
            raise GuardError(
                f"{self.size} training processes hold different weights; a plugin draws by process, or the machines "
                "compute differently: set train.launcher=inline"
            )


ALONE = Ranks()


class ProcessRanks(Ranks):
    """The processes that torchrun started: gloo on the CPU, NCCL where each has a CUDA device of its own.

    PeerLost (exit 5) where another process is gone, or lets this one wait longer than the group's timeout.
    """

    @classmethod
    def join(cls, device: torch.device, *, timeout_s: float) -> ProcessRanks:
        """Meet the others at the address that torchrun put into the environment."""
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.set_device(dist.get_node_local_rank())
        try:
            dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s))
        except RuntimeError as trouble:
            said = str(trouble).split("\n")[0]
            raise PeerLost(f"a training process met no others within {timeout_s:g} s: {said}") from trouble
        return cls(dist.get_rank(), dist.get_world_size())

    def leave(self) -> None:
        """Close the group once all is done; a process that fails leaves by its death."""
        dist.destroy_process_group()

    def total(self, values: Tensor) -> Tensor:
        return self._reduced(values, dist.ReduceOp.SUM)

    def least(self, values: Tensor) -> Tensor:
        return self._reduced(values, dist.ReduceOp.MIN)

    def begin(self, module: nn.Module) -> None:
        for value in module.state_dict().values():
            self._meet(partial(dist.broadcast, value, src=0))

    def _reduced(self, values: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        on_gpu = dist.get_backend() == "nccl"
        own = values.detach().to("cuda" if on_gpu else "cpu", copy=True)
        self._meet(partial(dist.all_reduce, own, op=op))
        return own.to(values.device)

    def _meet(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as trouble:  # of the backend: a closed connection, or the timeout
            said = str(trouble).split("\n")[0]
            raise PeerLost(
                f"training process {self.rank} of {self.size} lost the others: {said}"
            ) from trouble
