"""What older releases of PyTorch lack."""
from collections.abc import Sequence

import torch
from torch import Tensor

# Whether what runs is being traced by torch.compile. Dynamo knows the function itself, by whatever name.
is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._dynamo.is_compiling


def mark_unbacked(tensor: Tensor, dim: int) -> None:
    """Have one compilation serve all sizes of a dimension, 0 included; without the mark there is one for each."""
    mark = getattr(torch._dynamo.decorators, 'mark_unbacked', None)
    if mark:
        mark(tensor, dim)


def total_norm(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """The norm of all numbers of some tensors, one element on their device; ``torch.nn.utils.get_total_norm``."""
    if hasattr(torch.nn.utils, 'get_total_norm'):
        return torch.nn.utils.get_total_norm(tensors, order)
    norms = [torch.linalg.vector_norm(tensor, order) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms) if norms else torch.zeros(1), order)
