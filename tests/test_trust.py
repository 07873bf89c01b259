"""A checkpoint of a stranger runs no code, whatever way it comes in; ordinary ones load without a flag."""
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matrix import CASES, build
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleLR
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from tiny_task import write_task

from mmprovpt import tuned_state_dict
from mmprovpt.cli.runner import build_model
from mmprovpt.errors import ConfigError
from mmprovpt.trust import check_only_weights, only_weights, trust_checkpoints

ROOT = Path(__file__).parents[1]
MARKER = 'marker'
SCORE = """
import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

@METRICS.register_module(force=True)
class Score(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(score=np.round(np.mean(results), 2))
"""


class Hostile:
    """Whoever unpickles it opens a file for writing."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, 'w')


class Reduced:
    """Whoever unpickles it calls a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def run(folder, tool, *args):
    return subprocess.run([sys.executable, str(ROOT / f'tools/{tool}.py'), *map(str, args)], capture_output=True,
                          text=True, cwd=folder, env={**os.environ, 'PYTHONPATH': f'{ROOT}:{folder}'})


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with a task and what one real run of it wrote: all that an ordinary run puts into a checkpoint."""
    folder = tmp_path_factory.mktemp('trust')
    task = write_task(folder)
    task.write_text(task.read_text().replace('optimizer=dict(', 'optimizer=dict(momentum=0.9, ') + """
custom_hooks.append(dict(type='EMAHook'))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, save_best='score', rule='greater'))
val_evaluator = dict(type='Score')
test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, val_cfg
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
param_scheduler = dict(type='MultiStepLR', milestones=[1])
data_preprocessor = dict(num_classes=2)
custom_imports['imports'].append('score')
""")
    (folder / 'score.py').write_text(SCORE)
    result = run(folder, 'train', 'task.py')
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def inside(trained, monkeypatch):
    """Within that folder, with hostile files beside what the run wrote."""
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(trained)
    Path(MARKER).unlink(missing_ok=True)
    hostile = dict(read('work_dirs/task/epoch_1.pth'), more=Hostile(trained / MARKER))
    torch.save(hostile, 'hostile.pth')
    model = build_model(Config.fromfile('task.py'))
    DefaultScope._instance_dict.clear()
    model.load_state_dict(hostile['state_dict'])
    small = tuned_state_dict(model)
    small._metadata['backbone']['frozen_init_cfg'] = dict(
        type='Pretrained', checkpoint='hostile.pth', prefix='backbone.')
    torch.save(dict(meta=hostile['meta'], state_dict=small), 'small.pth')
    Path('auto').mkdir(exist_ok=True)
    Path('auto/last_checkpoint').write_text(str(trained / 'hostile.pth'))
    text = Path('task.py').read_text().replace("default_scope = 'mmpretrain'", "default_scope = 'mmdet'")
    text = text.replace("type='ImageClassifier'", "_scope_='mmpretrain', type='ImageClassifier'")
    Path('detector.py').write_text(text)
    return trained


def read(path):
    return torch.load(path, weights_only=False)


INIT = ['--cfg-options', 'model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=hostile.pth',
        'model.backbone.init_cfg.prefix=backbone.']
WAYS = dict(
    resume=['train', 'task.py', '--resume', 'hostile.pth'],
    resume_auto=['train', 'task.py', '--resume', '--work-dir', 'auto'],
    load_from=['train', 'task.py', '--work-dir', 'a', '--cfg-options', 'load_from=hostile.pth'],
    init_cfg=['train', 'task.py', '--work-dir', 'b', *INIT],
    test=['test', 'task.py', 'hostile.pth', '--work-dir', 'c'],
    frozen_init_cfg=['test', 'task.py', 'small.pth', '--work-dir', 'd'],
    export_prompts=['export_prompts', 'hostile.pth', 'out.pth'],
    merge=['export_prompts', 'small.pth', 'out.pth', '--merge'],
    export_onnx=['export_onnx', 'task.py', 'hostile.pth', 'out.onnx'],
    to_mmpretrain=['model_converters/to_mmpretrain', 'hostile.pth', 'out.pth'],
    visualize=['visualize', 'detector.py', 'hostile.pth', '--out', 'e'],
    plot_attention=['analysis_tools/plot_attention', 'task.py', 'hostile.pth', 'images/0/0.png'])
# What comes after reading cannot work here: the file's layout, a data set, a package.
READ_ONLY = 'to_mmpretrain', 'visualize', 'export_onnx'


@pytest.mark.parametrize('way', WAYS)
def test_no_way_in_runs_code(way, inside, call):
    before, files = torch.load, set(inside.rglob('*'))
    with pytest.raises(SystemExit) as stop:
        call(*WAYS[way])
    assert not Path(MARKER).exists() and {path for path in inside.rglob('*') if path.suffix != '.pyc'} <= files
    message = stop.value.code
    assert message.startswith('error: ') and 'hostile.pth' in message and '--trust-checkpoint' in message
    assert '\n' not in message and torch.load is before


@pytest.mark.parametrize('way', WAYS)
def test_the_flag_lifts_that_for_one_run(way, inside, call):
    try:
        call(*WAYS[way], '--trust-checkpoint')
    except (SystemExit, AttributeError, ImportError, KeyError):
        assert way in READ_ONLY
    assert Path(MARKER).exists()
    Path(MARKER).unlink()
    with pytest.raises(SystemExit, match='--trust-checkpoint'):
        call(*WAYS['test'])
    assert not Path(MARKER).exists()


@pytest.mark.parametrize('way', ['resume_auto', 'test', 'merge'])
def test_as_users_run_it(way, inside):
    result = run(inside, *WAYS[way])
    assert result.returncode == 1 and not Path(MARKER).exists()
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ') and 'hostile.pth' in last and 'Traceback' not in result.stderr


def test_resumes_what_it_wrote(inside):
    """In real processes; the checkpoint has all that an ordinary run puts there."""
    saved = read('work_dirs/task/epoch_2.pth')
    assert {'optimizer', 'param_schedulers', 'message_hub', 'ema_state_dict', 'prompt_relocation'} <= set(saved)
    assert isinstance(saved['message_hub']['runtime_info']['best_score'], np.floating)
    assert isinstance(saved['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
    result = run(inside, 'train', 'task.py', '--resume', '--cfg-options', 'train_cfg.max_epochs=3')
    assert result.returncode == 0, result.stderr
    resumed = read('work_dirs/task/epoch_3.pth')
    assert resumed['meta']['epoch'] == 3
    history = resumed['message_hub']['log_scalars']['train/loss']
    assert history.data[0][:4].tolist() == saved['message_hub']['log_scalars']['train/loss'].data[0].tolist()
    assert history.mean() == history.data[0].mean() and len(history.data[0]) == 6


@pytest.mark.parametrize('name', ['core', '_core'])
def test_arrays_of_either_numpy_are_read(name, tmp_path):
    arrays = dict(a=np.arange(3), b=np.float32(2), c=np.array(['x', None], object), d=np.array([True]))
    torch.save(arrays, tmp_path / 'x.pth', _use_new_zipfile_serialization=False)  # which is not compressed, nor summed
    data = (tmp_path / 'x.pth').read_bytes()
    for other in ('core', '_core'):
        data = data.replace(f'numpy.{other}.multiarray'.encode(), f'numpy.{name}.multiarray'.encode())
    (tmp_path / 'x.pth').write_bytes(data)
    with only_weights():
        loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'))
    assert loaded['a'].tolist() == [0, 1, 2] and loaded['b'] == 2 and loaded['d'].tolist() == [True]


@pytest.mark.parametrize('curve', ['cos', 'linear'])
def test_one_cycle_schedules_are_resumed(curve, tmp_path):
    """Their state holds a function."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.)
    one, other = (OneCycleLR(optimizer, eta_max=1., total_steps=9, anneal_strategy=way) for way in (curve, 'cos'))
    torch.save(one.state_dict(), tmp_path / 'x.pth')
    with only_weights():
        other.load_state_dict(CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth')))
    assert other.anneal_func is getattr(OneCycleParamScheduler, f'_annealing_{curve}')


@pytest.mark.parametrize('call', [
    (getattr, (OneCycleParamScheduler, '__init__')), (getattr, (np.ndarray, 'tofile')), (getattr, ([], 'append')),
    (getattr, (HistoryBuffer, '__init__')), (getattr, (HistoryBuffer, '__dict__')), (eval, ('1', )),
    (os.getcwd, ()), (pickle.loads, (b'N.', ))])
@pytest.mark.parametrize('zipped', [True, False])
def test_what_is_refused(call, zipped, tmp_path):
    """Also getattr, which MMEngine's own loader allows."""
    torch.save(dict(x=Reduced(*call)), tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    with only_weights():
        for weights_only in (None, True, False):
            with pytest.raises(ConfigError, match='x.pth holds more than weights.*--trust-checkpoint'):
                torch.load(tmp_path / 'x.pth', weights_only=weights_only)
        with pytest.raises(ConfigError), torch.serialization.safe_globals([getattr, eval, os.getcwd, pickle.loads]):
            CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'))
    with pytest.raises(ConfigError):
        check_only_weights(tmp_path / 'x.pth')


def test_callers_get_their_globals_and_their_load_back(tmp_path):
    torch.save(dict(x=1), tmp_path / 'x.pth')
    before = torch.load
    with torch.serialization.safe_globals([HistoryBuffer]):
        with pytest.raises(KeyError), only_weights(), only_weights():
            trust_checkpoints()
            raise KeyError
        theirs = set(torch.serialization.get_safe_globals())
        check_only_weights(tmp_path / 'x.pth')
        assert set(torch.serialization.get_safe_globals()) == theirs and HistoryBuffer in theirs
    assert torch.load is before
    torch.save(Hostile(tmp_path / MARKER), tmp_path / 'x.pth')
    with pytest.raises(ConfigError):  # trust ended with the block
        check_only_weights(tmp_path / 'x.pth')


@pytest.mark.parametrize('name', ['mmdet-swin', 'mmpretrain-vit', 'mmseg-vit'])
def test_backbones_check_their_init_cfg_in_any_program(name, tmp_path):
    """Not within a tool: MMEngine itself would fall back to executing it."""
    case = CASES[name]
    torch.save(dict(state_dict=build(case).state_dict(), more=Hostile(tmp_path / MARKER)), tmp_path / 'x.pth')
    cfg = ConfigDict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))
    backbone = build(case, dict(num_tokens=2), init_cfg=cfg)
    with pytest.raises(ConfigError, match='x.pth holds more than weights'):
        backbone.init_weights()
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize('source, message', [
    (dict(type='Pretrained', checkpoint='https://example.com/x.pth'), 'https://example.com/x.pth.*no file here'),
    (dict(type='Pretrained', checkpoint='openmmlab://x'), 'openmmlab://x.*no file here'),
    (dict(type='builtins.open', file=MARKER, mode='w'), 'None.*no file here'),
    (dict(type='builtins.open', file=MARKER, checkpoint='x.pth'), "cannot be read from.*'type': 'Pretrained'"),
])
def test_a_checkpoint_names_local_files_only(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = CASES['mmpretrain-vit']
    small = tuned_state_dict(build(case, dict(num_tokens=2)))
    small._metadata['']['frozen_init_cfg'] = source
    target = build(case, dict(num_tokens=2))
    torch.nn.init.ones_(target.cls_token)
    with pytest.raises((ConfigError, RuntimeError), match=f'(?s){message}'):
        target.load_state_dict(small)
    assert not Path(MARKER).exists()


def test_the_users_own_config_may_name_an_address(monkeypatch):
    case = CASES['mmpretrain-vit']
    weights = build(case).state_dict()
    small = tuned_state_dict(build(case, dict(num_tokens=2)))
    small._metadata['']['frozen_init_cfg'] = dict(type='Pretrained', checkpoint='https://example.com/theirs.pth')
    target = build(case, dict(num_tokens=2), init_cfg=ConfigDict(
        type='Pretrained', checkpoint='https://example.com/mine.pth', prefix='backbone.'))
    torch.nn.init.ones_(target.cls_token)
    asked = []

    def load(address, **kwargs):
        asked.append(address)
        return dict(state_dict={f'backbone.{key}': value for key, value in weights.items()})

    monkeypatch.setattr('mmengine.runner.checkpoint.load_url', load)
    target.load_state_dict(small)
    assert asked == ['https://example.com/mine.pth'] and torch.equal(target.cls_token, weights['cls_token'])


CALL = f"open({MARKER!r}, 'w')"


def carry(text, model=''):
    """A checkpoint that carries another config."""
    checkpoint = read('work_dirs/task/epoch_1.pth')
    own = checkpoint['meta']['cfg']
    checkpoint['meta']['cfg'] = own.replace("type='LinearClsHead'", model or "type='LinearClsHead'") + text
    torch.save(checkpoint, 'carrying.pth')


@pytest.mark.parametrize('text, model', [
    (f'\nx = {CALL}\n', ''), (f'\n{CALL}\n', ''), (f'\nx = dict(a=[1, {CALL}])\n', ''), (f'\nx = {{1: {CALL}}}\n', ''),
    (f'\nx = dict({CALL})\n', ''), (f'\nx = dict(**{{1: {CALL}}})\n', ''), ("\nx = f'{" + CALL + "}'\n", ''),
    (f'\nimport os\nx = {CALL}\n', ''), ('', f"type='LinearClsHead', x={CALL}"),
    ('', f"type='builtins.open', file={MARKER!r}, mode='w'"), ('', f"type='io.open', file={MARKER!r}, mode='w'"),
    ('', f"type='mmengine.utils.path.osp.os.system', command='touch {MARKER}'"),
    ('\nx = dict(trust_remote_code=True)\n', '')])
def test_carried_config_is_read_and_not_executed(text, model, inside, call):
    carry(text, model)
    with pytest.raises(SystemExit) as stop:
        call('export_prompts', 'carrying.pth', 'out2.pth')
    assert not Path(MARKER).exists() and not Path('out2.pth').exists()
    assert stop.value.code.startswith('error: the config in the checkpoint') and '--trust-checkpoint' in stop.value.code
    call('export_prompts', 'carrying.pth', 'out3.pth', '--config', 'task.py')
    assert not Path(MARKER).exists()


def test_carried_config_initialises_by_what_is_registered(inside, call):
    """--merge initialises the backbone, by its init_cfg."""
    small = read('small.pth')
    small['state_dict']._metadata['backbone'].pop('frozen_init_cfg')
    initialise = f"init_cfg=dict(type='io.open', file={MARKER!r}, mode='w'), type='mmprovpt.Prompted"
    small['meta']['cfg'] = small['meta']['cfg'].replace("type='mmprovpt.Prompted", initialise)
    torch.save(small, 'initialising.pth')
    with pytest.raises(SystemExit, match="^error: the config in the checkpoint has type='io.open'"):
        call('export_prompts', 'initialising.pth', 'out5.pth', '--merge')
    assert not Path(MARKER).exists()


def test_carried_config_imports_nothing(inside, call):
    Path('side_effect.py').write_text(CALL)
    carry("\ncustom_imports = dict(imports=['side_effect'])\n")
    call('export_prompts', 'carrying.pth', 'out4.pth')
    assert not Path(MARKER).exists() and 'head.fc.weight' in read('out4.pth')['state_dict']
    call('export_prompts', 'carrying.pth', 'out4.pth', '--trust-checkpoint')
    assert Path(MARKER).exists()


def test_carried_config_is_the_config(inside):
    """As MMEngine writes it and executes it, of every kind of value."""
    from mmprovpt.cli.carried_config import parse_config
    cfg = Config(dict(
        a=dict(b=[1, -2.5, None, True, (3, ), dict(c='it\'s "x"\n')], d={'e-f': 1, 2: [dict()]}), g=(), h=1e-8,
        i=[[1, (2, )], []], j='ü', k={1, 2}))
    for text in (cfg.pretty_text, read('work_dirs/task/epoch_1.pth')['meta']['cfg']):
        expected = Config.fromstring(text.replace("'score'", "'mmprovpt'"), '.py').to_dict()
        assert parse_config(text.replace("'score'", "'mmprovpt'")).to_dict() == expected
