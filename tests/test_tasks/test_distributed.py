"""Real processes: one task that trains beside frozen ones, and two that train in turns, equal one process."""
import pytest
import torch
from tasks_worker import RUNS, train, worker
from torch import multiprocessing

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')


def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(worker, (str(tmp_path), ), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    for trained in RUNS:
        alone = train(trained, [0, 2, 1, 3])
        parts = {f'tasks.{task}' for task in trained} | {f'backbone.prompts.{task}' for task in trained}
        assert {'.'.join(key.split('.')[:3 if key.startswith('backbone') else 2]) for key in alone} == parts
        assert alone.keys() == first[trained].keys() == second[trained].keys()
        for key, value in alone.items():
            assert torch.equal(first[trained][key], second[trained][key]), key
            torch.testing.assert_close(first[trained][key], value, rtol=1e-4, atol=1e-6)
