"""Real processes: DDP from the first iteration, without looking for unused parameters."""
import pytest
import torch
from ddp_worker import prompted, train, worker
from torch import multiprocessing


def test_two_processes_equal_one(tmp_path):
    names = [('mmseg-vit', False), ('mmseg-vit', True), ('mmdet-swin', False), ('mmdet-swin', True)]
    multiprocessing.spawn(worker, (names, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    for key in names:
        assert torch.equal(first[key][0], second[key][0]), key
        assert torch.equal(first[key][1], second[key][1]), key
        alone = prompted(*key)
        tokens = train(alone, alone.prompts, key[0], [0, 1], scale=0.5)
        torch.testing.assert_close(first[key][0], tokens, rtol=1e-4, atol=1e-5)
        assert first[key][1].tolist() == alone.prompts.distribution.tolist()


@pytest.mark.parametrize('name', ['mmseg-vit', 'mmdet-swin'])
def test_training_moves_every_prompt(name):
    """Else the comparison above would compare nothing."""
    backbone = prompted(name, False)
    before = backbone.prompts.tokens.detach().clone()
    assert ((train(backbone, backbone.prompts, name, [0, 1]) - before).abs().amax(1) > 1e-4).all()
