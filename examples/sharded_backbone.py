"""A backbone that is larger than a device: its frozen blocks in pieces (FSDP2), prompts and head whole (DDP).

    torchrun --nproc_per_node=2 examples/sharded_backbone.py [CHECKPOINT]

On GPUs over NCCL, else on CPUs over gloo. PyTorch does all of it; relocation and small checkpoints are as always.
"""
import os
import sys

import timm
import torch
import torch.nn.functional as F
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mmprovpt import inject_prompts, tuned_state_dict
from mmprovpt.attention import PromptedBlock
from mmprovpt.relocation import RelocationSession


def shard(model, mesh):
    """Each process keeps a piece of each block's weights, and gets the rest for the time of its forward and backward.

    Args:
        model: With prompts, and with its weights: small checkpoints name those that were loaded before.
        mesh: One-dimensional ``DeviceMesh``.

    Returns:
        DistributedDataParallel: It averages the gradients of prompts and head, and leaves the frozen weights alone.
    """
    for block in [module for module in model.modules() if isinstance(module, PromptedBlock)]:
        fully_shard(block, mesh=mesh)
    model.to(mesh.device_type)  # what is in no block
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
    return DistributedDataParallel(model)


def train(model, prompts, batches, periods, lr=0.01):
    """Tune what is not frozen; after each pass over ``batches``, those of this process, an idle prompt moves.

    Returns:
        The list of periods on rank 0; elsewhere of None.
    """
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=lr, momentum=0.9)
    session = RelocationSession(prompts, optimizer)
    model.train()
    closed = []
    for period in range(periods):
        for images, labels in batches:
            session.begin_iteration()
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            session.end_iteration(loss)
            optimizer.step()
        closed.append(session.close_period() if period + 1 < periods else session.finish())
    session.close()
    return closed


def main(checkpoint=None):
    kind, backend = ('cuda', 'nccl') if torch.cuda.is_available() else ('cpu', 'gloo')
    dist.init_process_group(backend)
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, num_classes=10)
    weights = torch.load(checkpoint) if checkpoint else model.state_dict()
    prompts = inject_prompts(model, dict(type='StaticPrompts', num_tokens=5))
    model.head.requires_grad_(True)  # before loading, so that it is not among the frozen weights that are named
    model.load_state_dict(weights, strict=False)  # prompts are new
    if kind == 'cuda':
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    wrapped = shard(model, dist.init_device_mesh(kind, (dist.get_world_size(), )))
    torch.manual_seed(rank)
    data = [(torch.randn(8, 3, 32, 32).to(kind), torch.randint(10, (8, )).to(kind)) for _ in range(10)]
    for period in filter(None, train(wrapped, prompts, data, periods=6)):
        print(f'period {period.number}: loss {period.loss:.4f}, moves {[tuple(move[:3]) for move in period.moves]}')
    if rank == 0:
        torch.save(tuned_state_dict(model), 'small.pth')  # no weight is gathered for it
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
