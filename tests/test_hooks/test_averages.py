"""MMEngine's EMAHook beside relocation: owners and rows of the average, while it is swapped, saved and resumed."""
import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from test_hooks.test_survival import VALIDATION, Crash
from test_hooks.toy_run import ToyModel, make_runner, read_rows, relocation_hook

ANY = dict(pruner=dict(type='RandomPruner'), allocator=dict(type='UniformAllocator'))
WIDTHS = (4, 6, 8)


def average_of(runner):
    """The prompts of the averaged model."""
    return next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module.prompts


class Compare(Hook):
    """Compares average and model where each iteration starts, after relocation, and in validation."""
    priority = 'LOWEST'

    def __init__(self):
        self.owners, self.swapped, self.crossed = None, [], 0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        mine, average = runner.model.prompts, average_of(runner)
        assert torch.equal(mine.block_index, average.block_index)
        if self.owners is not None:
            for prompt in (self.owners != mine.block_index).nonzero().flatten().tolist():
                assert torch.equal(mine.tokens[prompt], average.tokens[prompt])
                self.crossed += 1
        self.owners = mine.block_index.clone()

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        mine, average = runner.model.prompts, average_of(runner)
        assert torch.equal(mine.block_index, average.block_index)
        self.swapped.append(not torch.equal(mine.tokens, average.tokens))


def ema(update_buffers):
    return dict(type='EMAHook', momentum=0.001, update_buffers=update_buffers)


def saved(folder, epoch):
    return torch.load(folder / f'epoch_{epoch}.pth', weights_only=False)


@pytest.mark.parametrize('update_buffers', [False, True])
@pytest.mark.parametrize('first', ['average', 'relocation'])
def test_average_follows(tmp_path, update_buffers, first):
    """Whichever hook comes first."""
    compare = Compare()
    runner = make_runner(tmp_path, ANY, model=ToyModel(WIDTHS), epochs=8, val_interval=2,
                         optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-4)),
                         hooks=[ema(update_buffers), compare], **VALIDATION)
    if first == 'relocation':
        runner._hooks.sort(key=lambda hook: isinstance(hook, EMAHook))
    runner.train()
    assert compare.crossed >= 3 and len(compare.swapped) > 0 and all(compare.swapped)
    checkpoint = saved(tmp_path, 8)
    one, other = (checkpoint['state_dict'], {key.removeprefix('module.'): value
                                             for key, value in checkpoint['ema_state_dict'].items()})
    assert torch.equal(one['prompts.block_index'], other['prompts.block_index'])
    assert torch.equal(one['prompts.block_index'], runner.model.prompts.block_index)
    assert not torch.equal(one['prompts.tokens'], other['prompts.tokens'])
    # A momentum of 0.001 would leave an old row, of another width, as it was.
    cosines = torch.cosine_similarity(one['prompts.tokens'], other['prompts.tokens'])
    assert cosines.min() > 0.99


@pytest.mark.parametrize('update_buffers', [False, True])
def test_resumed_average_equals_the_uninterrupted_one(tmp_path, update_buffers):
    options = dict(epochs=6, hooks=[ema(update_buffers)])
    make_runner(tmp_path / 'whole', ANY, model=ToyModel(WIDTHS), **options).train()
    with pytest.raises(KeyboardInterrupt):
        make_runner(tmp_path / 'part', ANY, model=ToyModel(WIDTHS), epochs=6,
                    hooks=[ema(update_buffers), Crash(21)]).train()
    resumed = make_runner(tmp_path / 'part', ANY, model=ToyModel(WIDTHS, seed=1), resume=True, **options)
    resumed.train()
    whole, part = saved(tmp_path / 'whole', 6), saved(tmp_path / 'part', 6)
    for key in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(whole[key][name], part[key][name]) for name in whole[key])
    assert read_rows(tmp_path / 'whole') == read_rows(tmp_path / 'part')
    assert torch.equal(average_of(resumed).block_index, relocation_hook(resumed).session.prompts.block_index)
