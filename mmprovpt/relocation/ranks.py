"""What the processes of a distributed training tell each other, whatever its backend; nothing in a single one."""
from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist


def is_first() -> bool:
    """Whether this process decides: rank 0, or the only one."""
    return not _several() or dist.get_rank() == 0


def add_up(sums: Tensor) -> None:
    """Move what every rank has summed to rank 0, in place; the others start again at 0, so it may be repeated."""
    if not _several():
        return
    sent = sums.to(_device(sums))
    dist.all_reduce(sent)
    sums.copy_(sent if dist.get_rank() == 0 else torch.zeros_like(sent))


def broadcast(values: Tensor) -> None:
    """Overwrite a tensor on every rank by that of rank 0."""
    if _several():
        sent = values.to(_device(values)).contiguous()
        dist.broadcast(sent, 0)
        values.copy_(sent)


def from_first(decide: Callable[[], Tensor], size: int, device: torch.device) -> Tensor:
    """What rank 0 decides, on all ranks; if it fails, all ranks do, and say why.

    Args:
        decide: Returns (size,) int64; called on rank 0 only.
        size: How many numbers.
        device: Of the model, over which the backend communicates.

    Returns:
        Tensor: (size,) int64 on the CPU.

    Raises:
        Exception: On rank 0 that of ``decide``; on the others a RuntimeError with its message.
    """
    if not _several():
        return decide()
    # The first number: 0, or the length of a message that follows.
    decision, error = torch.zeros(1 + size, dtype=torch.int64, device=device), None
    if dist.get_rank() == 0:
        try:
            decision[1:] = decide()
        except Exception as exception:
            error = exception
            message = torch.tensor(list(f'{type(error).__name__}: {error}'.encode()), dtype=torch.uint8, device=device)
            decision[0] = len(message)
    broadcast(decision)
    length = int(decision[0])
    if length == 0:
        return decision[1:].cpu()
    if error is None:
        message = torch.zeros(length, dtype=torch.uint8, device=device)
    broadcast(message)
    if error is not None:
        raise error
    raise RuntimeError(f'rank 0 failed: {bytes(message.tolist()).decode()}')


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device(values: Tensor) -> torch.device:
    return torch.device('cpu') if dist.get_backend() == 'gloo' else values.device
