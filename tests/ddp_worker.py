"""What each process of tests/test_backbones/test_distributed.py does (new processes import it by name)."""
import torch
import torch.distributed as dist
from matrix import CASES, KINDS, RELOCATING, build, images, loss
from torch.nn.parallel import DistributedDataParallel

COUNTS = dict(vit=[0, 3, 0], swin=[0, 3, 0, 1, 2, 0])
MOVES = {1: (0, 2), 2: (1, 1)}  # before which step which prompt goes where
STEPS = 4


def prompted(name, with_cp, kind='static'):
    torch.manual_seed(0)
    counts = COUNTS[name.rpartition('-')[2]]
    counts = counts if kind in RELOCATING else sum(counts)
    return build(CASES[name], dict(KINDS[kind], num_tokens=counts), with_cp=with_cp).train()


def train(model, pool, name, batches, scale=1.):
    """A few steps of SGD with momentum; ``batches`` are the seeds of the images that a step sees."""
    others = [parameter for name, parameter in pool.named_parameters() if name != 'tokens']
    optimizer = torch.optim.SGD([dict(params=[pool.tokens], lr=5.), dict(params=others)], lr=0.05, momentum=0.9)
    for step in range(STEPS):
        if step in MOVES and not pool.keeps_outputs:
            pool.relocate(*MOVES[step])
        optimizer.zero_grad()
        for seed in batches:
            (loss(model, images(CASES[name], seed=10 * step + seed)) * scale).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in pool.parameters()])


def worker(rank, names, path):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{path}/rendezvous', rank=rank, world_size=2)
    results = {}
    for key in names:
        backbone, name = prompted(*key), key[0]
        model = DistributedDataParallel(backbone, find_unused_parameters=False)
        results[key] = train(model, backbone.prompts, name, [rank]), backbone.prompts.distribution
    torch.save(results, f'{path}/{rank}.pth')
    dist.destroy_process_group()
