"""What each process of tests/test_backbones/test_distributed.py does (new processes import it by name)."""
import torch
import torch.distributed as dist
from matrix import CASES, build, images, loss
from torch.nn.parallel import DistributedDataParallel

COUNTS = dict(vit=[0, 3, 0], swin=[0, 3, 0, 1, 2, 0])
MOVES = {1: (0, 2), 2: (1, 1)}  # before which step which prompt goes where
STEPS = 4


def prompted(name, with_cp):
    torch.manual_seed(0)
    counts = COUNTS[name.rpartition('-')[2]]
    return build(CASES[name], dict(num_tokens=counts, carry='project'), with_cp=with_cp).train()


def train(model, pool, name, batches, scale=1.):
    """A few steps of SGD with momentum; ``batches`` are the seeds of the images that a step sees."""
    optimizer = torch.optim.SGD([pool.tokens], lr=5., momentum=0.9)
    for step in range(STEPS):
        if step in MOVES:
            pool.relocate(*MOVES[step])
        optimizer.zero_grad()
        for seed in batches:
            (loss(model, images(CASES[name], seed=10 * step + seed)) * scale).backward()
        optimizer.step()
    return pool.tokens.detach().clone()


def worker(rank, names, path):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{path}/rendezvous', rank=rank, world_size=2)
    results = {}
    for name, with_cp in names:
        backbone = prompted(name, with_cp)
        model = DistributedDataParallel(backbone, find_unused_parameters=False)
        results[name, with_cp] = train(model, backbone.prompts, name, [rank]), backbone.prompts.distribution
    torch.save(results, f'{path}/{rank}.pth')
    dist.destroy_process_group()
