"""examples/serve.py: a real process, and clients that ask for several tasks at once, or send what they should not."""
import base64
import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from serving import apart, ask, serving
from tasks_toy import build, joined

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    """(address, model, config) of a process that serves three tiny tasks; few samples may wait."""
    pytest.importorskip('aiohttp', reason='make serve-check brings it')
    folder = tmp_path_factory.mktemp('served')
    cfg = joined(str(folder))
    model = build(cfg).eval()
    torch.save(dict(state_dict=model.state_dict()), folder / 'model.pth')
    cfg.dump(folder / 'config.py')
    with serving(folder / 'config.py', folder / 'model.pth', '--queue', '12', '--wait-ms', '50', '--patience',
                 '5') as process:
        yield process.address, model, cfg


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


def drawn(size, kind='PNG', mode='RGB', **options):
    """A file of an image of one colour."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize('query, content, status, said', [
    ('?tasks=count', b'x', 400, "no task 'count'; there are classify, detect, segment"),
    ('', b'', 400, 'no image of JPEG, PNG, '),
    ('', b'\x89PNG\r\n\x1a\n' + bytes(40), 400, 'no image of JPEG, PNG, '),
    ('', picture(0)[1][:200], 400, 'no whole image: '),
    ('', drawn((32, 32), 'EPS'), 400, 'no image of JPEG, PNG, '),  # Pillow would start Ghostscript
    ('', bytes(17 << 20), 413, 'Maximum request body size'),
    ('', drawn((9000, 9000), mode='1'), 400, '9000 x 9000 pixels are more than 16777216'),  # of 10 kB
    ('?tasks=detect,classify', drawn((2000, 2000)), 400, 'classify would take 2000 x 2000 pixels, and takes 2097152'),
    ('?tasks=classify', drawn((1, 1)), 422, 'classify fails on an image of 1 x 1 pixels'),
], ids=['task', 'empty', 'header', 'cut', 'PostScript', 'large file', 'bomb', 'large for a task', 'too small'])
def test_what_is_refused(server, query, content, status, said):
    got, body = ask(f'{server[0]}/predict{query}', content)
    assert got == status and said in body.decode()
    assert ask(f'{server[0]}/predict?tasks=classify', picture(0)[1])[0] == 200  # it goes on


def test_one_clients_image_is_not_the_others(server):
    """In one batch with an image on which the model fails, the others have their answers."""
    files = [picture(0)[1], drawn((1, 1))] * 4
    with ThreadPoolExecutor(len(files)) as clients:
        found = list(clients.map(lambda file: ask(f'{server[0]}/predict?tasks=segment', file)[0], files))
    assert found == [200, 422] * 4


def test_photographs_are_upright(server):
    """As OpenCV read the images of the training, and as browsers show them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    status, body = ask(f'{server[0]}/predict?tasks=detect', drawn((48, 32), 'JPEG', exif=exif))
    assert status == 200 and json.loads(body)['size'] == [32, 48]


def test_slow_and_vanishing_clients_hold_up_nobody(server):
    """Forty send a part of an image; half of them go away, the others are told after the 5 s that this server waits."""
    host, port = server[0].removeprefix('http://').split(':')
    head = b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n' + bytes(10)
    clients = [socket.create_connection((host, int(port)), timeout=60) for _ in range(40)]
    for client in clients:
        client.sendall(head)
    assert ask(f'{server[0]}/predict?tasks=classify', picture(0)[1])[0] == 200
    for client in clients[::2]:
        client.close()
    for client in clients[1::2]:
        assert client.recv(1000).startswith(b'HTTP/1.1 408 ')
        client.close()
    assert ask(f'{server[0]}/predict?tasks=classify', picture(0)[1])[0] == 200


def test_too_many_at_once_are_told_so(server):
    with ThreadPoolExecutor(40) as clients:
        found = list(clients.map(lambda seed: ask(f'{server[0]}/predict', picture(0)[1])[0], range(40)))
    assert set(found) == {200, 503}
    assert ask(f'{server[0]}/predict', picture(0)[1])[0] == 200


def test_the_page(server):
    status, body = ask(f'{server[0]}/')
    assert status == 200 and b'Drop an image here' in body
    assert ask(f'{server[0]}/../serve.py')[0] == 404


def test_the_benchmarks_single_models_are_the_same(tmp_path):
    """Those that benchmarks/serving.py has one server against."""
    cfg = joined()
    model = build(cfg).eval()
    for task, (config, checkpoint) in apart(cfg, model.state_dict(), tmp_path).items():
        alone = build(Config.fromfile(config), seed=1).eval()
        alone.load_state_dict(torch.load(checkpoint)['state_dict'])
        assert list(alone.tasks) == [task]
        maps = [each.tasks[task].backbone(torch.ones(1, 3, 32, 32)) for each in (model, alone)]
        assert all(map(torch.equal, *maps))
        for key, value in alone.tasks[task].state_dict().items():
            assert torch.equal(value, model.tasks[task].state_dict()[key])
