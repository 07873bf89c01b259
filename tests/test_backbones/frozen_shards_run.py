"""What each process of test_frozen_shards.py does: train a share of each batch. Arguments: folder and model."""
import os
import sys

import torch
from test_frozen_shards import build, data, example, run
from torch import distributed as dist
from torch.distributed.tensor import DTensor

import mmprovpt
from mmprovpt.errors import ConfigError


def main(folder, name):
    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    rank, world = dist.get_rank(), dist.get_world_size()
    net = build(name)
    model = example().shard(net, dist.init_device_mesh('cpu', (world, )))
    pieces = [parameter for parameter in net.parameters() if isinstance(parameter, DTensor)]
    found = run(net, model, data(name, rank, world))
    found['share'] = sum(each.to_local().numel() for each in pieces) / sum(each.numel() for each in pieces)
    try:
        with mmprovpt.folded(net.eval()):
            pass
    except ConfigError as error:
        found['folded'] = str(error)
    torch.save(found, f'{folder}/{rank}.pth')
    dist.barrier()
    os._exit(0)  # at the interpreter's end gloo's threads now and then abort it


if __name__ == '__main__':
    main(*sys.argv[1:])
