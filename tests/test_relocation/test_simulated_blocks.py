"""The simulated task of benchmarks/simulated_blocks.py, in short."""
import importlib.util
import statistics
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


@pytest.mark.parametrize('method,margin', [('PPO', 0.5), ('Thompson + mean', 0.55)])
def test_margin_over_uniform_where_the_best_block_changes(method, margin):
    """Mean of 20 seeds, less two standard errors; 1 would be the best block of every period."""
    def of(name):
        return [statistics.fmean(simulated_blocks.play(name, seed)[70:]) for seed in range(20)]
    margins = [mine - other for mine, other in zip(of(method), of('uniform'))]
    assert statistics.fmean(margins) - 2 * statistics.stdev(margins) / 20**.5 > margin


def test_the_best_block_changes_half_way():
    generator = simulated_blocks.torch.Generator().manual_seed(0)
    values = simulated_blocks.values_of('switch', 10, generator)
    assert values[0].equal(values[4]) and values[5].equal(values[9]) and not values[4].equal(values[5])
