"""Shard weights over the processes (FSDP2), for encoders too large for one device.

Each process holds a share of every weight, gradient and moment; a block is put together only while
it computes. To the loop such a model is what any other is: the backward pass averages gradients,
and parameters are `DTensor`s of whole shape. Checkpoints hold whole tensors: `whole` makes them,
`shared_out` takes them.
"""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from msn.runtime import collectives
from msn.runtime.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(model: nn.Module, networks: Iterable[Any], device: torch.device) -> None:
    """Shard a model's weights in place, block by block; each shard goes to its device.

    Args:
        model: equal on all processes, on the CPU, so that no device ever holds the whole.
        networks: of the model, see `msn.models.encoder.Staged`.
        device: of this process.

    Raises:
        UserError: there is one process only.
    """
    processes = collectives.world_size()
    if processes == 1:
        raise UserError(
            "meta.shard: true shares weights out over processes, but there is one only; start"
            " several (--devices, torchrun, srun) or set it to false"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (processes,))
    for network in networks:
        for block in network.stages()[1:]:
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        for entry in network.ENTRIES:
            register_fsdp_forward_method(network, entry)
    fully_shard(model, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Tell whether each process holds only a shard of the weights."""
    library = sys.modules.get("torch.distributed.fsdp")  # not imported to learn that nothing is
    return library is not None and isinstance(module, library.FSDPModule)


def full(tensor: Tensor) -> Tensor:
    """Gather a full tensor on every process; all of them call this."""
    return tensor.full_tensor() if _is_share(tensor) else tensor


def whole(value: Any) -> Any:
    """Gather the full tensors of a nested state: those that are sharded, on the CPU of rank 0.

    All processes call this; to the others such a tensor is empty.
    """
    if _is_share(value):
        gathered = full(value.detach())
        return gathered.cpu() if dist.get_rank() == 0 else torch.empty(0)
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return value


def shared_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, which every process has, as `like` is; leave it full if `like` is."""
    if not _is_share(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


def _is_share(value: Any) -> "TypeGuard[DTensor]":
    library = sys.modules.get("torch.distributed.tensor")  # likewise
    return library is not None and isinstance(value, library.DTensor)
