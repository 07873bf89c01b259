"""examples/serve.py: a real process, and clients that ask for several tasks at once, or send what they should not."""
import base64
import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tasks_toy import build, joined

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
ROOT = Path(__file__).parents[1]


def ask(address, content=None):
    """(status, body) of a request; a body is sent by POST."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, content), timeout=120) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    """(address, model, config) of a process that serves three tiny tasks; few samples may wait."""
    pytest.importorskip('aiohttp', reason='make serve-check brings it')
    folder = tmp_path_factory.mktemp('served')
    cfg = joined(str(folder))
    model = build(cfg).eval()
    torch.save(dict(state_dict=model.state_dict()), folder / 'model.pth')
    cfg.dump(folder / 'config.py')
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, ROOT / 'examples/serve.py', folder / 'config.py', folder / 'model.pth', '--port', str(port),
         '--queue', '12', '--wait-ms', '50'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding='utf-8')
    address = f'http://localhost:{port}'
    try:
        for _ in range(240):
            try:
                ask(f'{address}/about')
                break
            except OSError:
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.5)
        yield address, model, cfg
    finally:
        process.terminate()
        process.wait(30)


def picture(seed):
    """(pixels (32, 32, 3) RGB, the file)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return pixels, file.getvalue()


def expected(model, cfg, task, pixels):
    """What the model says of an image by itself, without the server's code for samples."""
    from mmdet.structures import DetDataSample
    from mmpretrain.structures import DataSample
    from mmseg.structures import SegDataSample
    kind = dict(detect=DetDataSample, segment=SegDataSample, classify=DataSample)[task]
    sample = kind(metainfo=dict(img_shape=(32, 32), ori_shape=(32, 32), scale_factor=(1., 1.)))
    image = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)
    result, = model.test_step(dict(inputs=[image], data_samples=[sample], task=task))
    return result


def test_clients_at_once_get_what_is_computed_alone(server):
    address, model, cfg = server
    asked = [('detect,classify', 0), ('segment', 1), ('classify', 2), ('detect', 3), ('segment,detect', 4)]
    with ThreadPoolExecutor(len(asked)) as clients:
        answers = list(clients.map(lambda each: ask(f'{address}/predict?tasks={each[0]}', picture(each[1])[1]), asked))
    for (names, seed), (status, body) in zip(asked, answers):
        assert status == 200, body
        answer = json.loads(body)
        assert answer.pop('size') == [32, 32] and list(answer) == names.split(',')
        for task, got in answer.items():
            result = expected(model, cfg, task, picture(seed)[0])
            if task == 'classify':
                assert got['label'] == str(int(result.pred_score.argmax()))
                assert got['score'] == pytest.approx(float(result.pred_score.max()), abs=1e-4)
            elif task == 'segment':
                labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(got['labels']))))
                assert (labels == result.pred_sem_seg.data[0].numpy()).mean() > 0.99  # rounding may change a pixel
            else:
                found = result.pred_instances
                np.testing.assert_allclose(got['boxes'], found.bboxes.numpy(), rtol=1e-3, atol=1e-2)
                np.testing.assert_allclose(got['scores'], found.scores.numpy(), rtol=1e-3, atol=1e-4)
    about = json.loads(ask(f'{address}/about')[1])
    assert about['batches'] < about['samples'] == 7 and set(about['tasks']) == {'detect', 'segment', 'classify'}


@pytest.mark.parametrize('query, content, status, said', [
    ('?tasks=count', b'x', 400, "no task 'count'; there are classify, detect, segment"),
    ('', b'', 400, 'no image: '),
    ('', b'\x89PNG\r\n\x1a\n' + bytes(40), 400, 'no image: '),
    ('', picture(0)[1][:200], 400, 'no image: '),
    ('', bytes(17 << 20), 413, 'Maximum request body size'),
])
def test_what_is_refused(server, query, content, status, said):
    got, body = ask(f'{server[0]}/predict{query}', content)
    assert got == status and said in body.decode()
    assert ask(f'{server[0]}/predict?tasks=classify', picture(0)[1])[0] == 200  # it goes on


def test_an_image_of_too_many_pixels_is_not_decoded(server):
    file = io.BytesIO()
    Image.new('1', (9000, 9000)).save(file, 'PNG')
    status, body = ask(f'{server[0]}/predict', file.getvalue())
    assert status == 400 and '9000 x 9000 pixels are more than 16777216' in body.decode()


def test_too_many_at_once_are_told_so(server):
    with ThreadPoolExecutor(40) as clients:
        found = list(clients.map(lambda seed: ask(f'{server[0]}/predict', picture(0)[1])[0], range(40)))
    assert set(found) == {200, 503}
    assert ask(f'{server[0]}/predict', picture(0)[1])[0] == 200


def test_the_page(server):
    status, body = ask(f'{server[0]}/')
    assert status == 200 and b'Drop an image here' in body
    assert ask(f'{server[0]}/../serve.py')[0] == 404
