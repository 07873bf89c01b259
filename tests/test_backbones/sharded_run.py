"""What each process of test_packed_weights.py's shards does: write a small checkpoint. Arguments: folder and way."""
import os
import sys

import torch
import torch.distributed as dist
from test_packed_weights import vit
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from mmprovpt import tuned_state_dict


def main(folder, way):
    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    net = vit(1)
    whole = net.blocks[0].attn.qkv.weight.numel()
    if way == 'fully_shard':
        mesh = torch.distributed.device_mesh.init_device_mesh('cpu', (2, ))
        fully_shard(net, mesh=mesh)
        piece = net.blocks[0].attn.qkv.weight.to_local().numel()
    else:
        net = FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device('cpu'))
        piece = sum(parameter.numel() for parameter in net.parameters())
        whole = sum(parameter.numel() for parameter in vit().parameters())
    assert piece < whole
    full = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
    small = tuned_state_dict(net, full)
    if dist.get_rank() == 0:
        torch.save(small, f'{folder}/small.pth')
    dist.barrier()
    os._exit(0)  # at the interpreter's end gloo's threads now and then abort it


if __name__ == '__main__':
    main(*sys.argv[1:])
