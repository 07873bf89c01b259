"""The simulated task of benchmarks/simulated_blocks.py, in short."""
import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / 'benchmarks' / 'simulated_blocks.py'
spec = importlib.util.spec_from_file_location('simulated_blocks', PATH)
simulated_blocks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simulated_blocks)


def lead(method, noise=0.1):
    curves = [simulated_blocks.play(method, seed, noise=noise, task='still') for seed in range(5)]
    return simulated_blocks.lead(curves, 70, 100)[0]


def test_uniform_has_no_lead():
    assert abs(lead('uniform')) < 0.2


@pytest.mark.parametrize('method,least', [('Thompson', 0.4), ('Thompson + mean', 0.6), ('Thompson, r = 3 + mean', 0.6)])
def test_thompson_beats_uniform_within_100_periods(method, least):
    assert lead(method) > least


def test_the_best_block_changes_half_way():
    generator = simulated_blocks.torch.Generator().manual_seed(0)
    values = simulated_blocks.values_of('switch', 10, generator)
    assert values[0].equal(values[4]) and values[5].equal(values[9]) and not values[4].equal(values[5])
