"""Real processes: DDP from the first iteration, without looking for unused parameters."""
import pytest
import torch
from ddp_worker import prompted, train, worker
from matrix import KINDS
from torch import multiprocessing


def test_two_processes_equal_one(tmp_path):
    names = [(name, with_cp, kind) for name in ('mmseg-vit', 'mmdet-swin') for with_cp in (False, True)
             for kind in KINDS]
    multiprocessing.spawn(worker, (names, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    for key in names:
        assert torch.equal(first[key][0], second[key][0]), key
        assert torch.equal(first[key][1], second[key][1]), key
        alone = prompted(*key)
        tokens = train(alone, alone.prompts, key[0], [0, 1], scale=0.5)
        torch.testing.assert_close(first[key][0], tokens, rtol=1e-4, atol=1e-5)
        assert first[key][1].tolist() == alone.prompts.distribution.tolist()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', ['mmseg-vit', 'mmdet-swin'])
def test_training_moves_every_prompt(name, kind):
    """Else the comparison above would compare nothing."""
    backbone = prompted(name, False, kind)
    before = {key: value.detach().clone() for key, value in backbone.prompts.named_parameters()}
    train(backbone, backbone.prompts, name, [0, 1])
    for key, value in backbone.prompts.named_parameters():
        assert ((value - before[key]).abs().flatten(1).amax(1) > 1e-4).all() if key == 'tokens' else \
            not torch.equal(value, before[key]), key
