"""What a run tells of its relocations: scalars, lines of the log, a picture; and where they cannot be written."""
import io

import numpy as np
import pytest
from mmengine.hooks import Hook
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_hooks.toy_run import make_runner, read_rows, relocation_hook

from mmprovpt.relocation import RelocationLog
from mmprovpt.visualization import read_log, relocation_image


def test_scalars_reach_tensorboard_and_the_log(tmp_path):
    backends = [dict(type='TensorboardVisBackend'), dict(type='LocalVisBackend')]
    runner = make_runner(tmp_path, dict(), epochs=6,
                         visualizer=dict(type='Visualizer', vis_backends=backends))
    runner.train()
    rows = read_rows(tmp_path)
    events, = tmp_path.glob('*/vis_data/events*')
    reader = EventAccumulator(str(events), dict(images=0))  # all of them
    reader.Reload()
    logged = {tag.rsplit('/')[-1]: {e.step: e.value for e in reader.Scalars(tag)}
              for tag in reader.Tags()['scalars'] if tag.startswith('train/relocation/')}
    assert logged['loss'] == pytest.approx({row['iter']: row['loss'] for row in rows}, rel=1e-5)
    assert logged['idleness'] == pytest.approx(
        {row['iter']: row['idleness'] for row in rows if row['idleness'] is not None}, rel=1e-5)
    # A reward is known, and so logged, when the next period has closed.
    assert logged['reward'] == pytest.approx(
        {row['iter']: row['previous_reward'] for row in rows if row['previous_reward'] is not None}, rel=1e-5)
    assert {'entropy', 'approx_kl', 'clip_fraction', 'explained_variance'} <= set(logged)
    images = reader.Images('train/relocation/distribution')
    assert [image.step for image in images] == [row['iter'] for row in rows]
    with Image.open(io.BytesIO(images[-1].encoded_image_string)) as image:
        pixels = np.asarray(image.convert('RGB'))
    np.testing.assert_array_equal(pixels, relocation_image(read_log(next(tmp_path.glob('*/relocations.jsonl')), '')))
    log, = tmp_path.glob('*/*.log')
    assert log.read_text().count('Relocation, period ') == 6
    assert 'train/relocation/idleness' in next(tmp_path.glob('*/vis_data/scalars.json')).read_text()


def test_heat_map_is_drawn(tmp_path):
    make_runner(tmp_path, dict()).train()
    path, = tmp_path.glob('*/prompt_distribution.png')
    with Image.open(path) as image:
        image.verify()
    log, = tmp_path.glob('*/*.log')
    assert str(path) in log.read_text()


class Broken(Hook):
    """A visualisation backend that fails."""

    def before_train(self, runner):
        add_scalars = runner.visualizer.add_scalars

        def failing(scalars, **kwargs):
            if 'train/relocation/loss' in scalars:
                raise ConnectionError('no network')
            add_scalars(scalars, **kwargs)

        runner.visualizer.add_scalars = failing


def test_what_cannot_be_written_warns_and_ends_nothing(tmp_path, monkeypatch):
    append = RelocationLog.append

    def full(*args):
        raise OSError(28, 'No space left on device')

    def append_but_one(log, rows):
        return full() if rows[0]['period'] == 2 else append(log, rows)

    monkeypatch.setattr(RelocationLog, 'append', append_but_one)
    monkeypatch.setattr('mmprovpt.visualization.plot_relocation', full)
    runner = make_runner(tmp_path, dict(), hooks=[Broken()])
    runner.train()
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert runner.epoch == 4 and relocation_hook(runner).session.period == 4
    assert text.count('will lack period 2: [Errno 28]') == text.count('could not be drawn: [Errno 28]') == 1
    assert text.count('could not be written: no network') == 4
    assert [row['period'] for row in read_rows(tmp_path)] == [1, 3, 4]
