"""The page of examples/serve.py in a real headless browser, against what the server says (`make browser-check`)."""
import base64
import colorsys
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from serving import ask, serving

from mmprovpt.cli.runner import build_model

DEMO = Path(__file__).parents[1] / 'configs/demo/multi_swin_mini_vpt_digits.py'
HELP = 'Debian: apt-get install chromium chromium-driver; elsewhere Chrome and its chromedriver, both on the PATH'
SURE, BOXES = 0.3, 3


@pytest.fixture(scope='module', autouse=True)
def webdriver():
    return pytest.importorskip('selenium.webdriver', reason='make browser-check brings it')


def certain(cfg):
    """The demo's model before any training, made sure of some things, so that there is something to draw."""
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    heads = model.tasks['detect'].roi_head
    for layer, values in ((heads.bbox_head.fc_cls, {3: 4.}), (heads.mask_head.conv_logits, {3: 4.}),
                          (model.tasks['classify'].head.fc, {7: 3.})):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        for number, value in values.items():
            layer.bias.data[number] = value
    return model


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    """Address of a process that serves the demo's three tasks."""
    folder = tmp_path_factory.mktemp('served')
    cfg = Config.fromfile(DEMO)
    cfg.model.tasks.detect.test_cfg.rcnn.max_per_img = BOXES
    torch.save(dict(state_dict=certain(cfg).state_dict()), folder / 'model.pth')
    cfg.dump(folder / 'config.py')
    with serving(folder / 'config.py', folder / 'model.pth') as process:
        yield process.address


@pytest.fixture(scope='module')
def browser(webdriver):
    found = [shutil.which(name) for name in ('chromium', 'google-chrome')]
    driver = shutil.which('chromedriver')
    if not any(found) or not driver:
        pytest.fail(f'no Chromium with its driver here. {HELP}')
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, found))
    options.set_capability('goog:loggingPrefs', dict(browser='ALL'))
    for option in ('--headless=new', '--window-size=1000,800', '--disable-dev-shm-usage',
                   *(['--no-sandbox'] if os.geteuid() == 0 else [])):
        options.add_argument(option)
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    opened.set_script_timeout(60)
    yield opened
    opened.quit()


@pytest.fixture
def page(server, browser):
    """The browser with the page, which writes no error to its console."""
    browser.get(server)
    wait(browser, lambda: len(browser.find_elements('css selector', '#tasks input')) == 3)
    browser.get_log('browser')
    yield browser
    assert [each for each in browser.get_log('browser') if each['level'] == 'SEVERE'
            and 'Failed to load resource' not in each['message']] == []


@pytest.fixture(scope='module')
def photograph(tmp_path_factory):
    """(its path, the pixels (H, W, 3) RGB)."""
    path = tmp_path_factory.mktemp('images') / 'a photograph.png'
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(path)
    return path, pixels


def wait(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait
    WebDriverWait(browser, 60).until(lambda _: condition())


def drop(browser, *files):
    """Let files (name, content) fall on the page."""
    browser.execute_script("""
        const files = new DataTransfer()
        for (const [name, content] of arguments[0])
          files.items.add(new File([Uint8Array.from(atob(content), each => each.charCodeAt(0))], name))
        document.getElementById('drop').dispatchEvent(
          new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true}))
        """, [(name, base64.b64encode(content).decode()) for name, content in files])


def said(browser):
    return browser.find_element('id', 'said').text


def caption(browser, task):
    return browser.find_element('css selector', f'#{task} figcaption').text.removeprefix(task).strip()


def drawn(browser, task):
    """(pixels (H, W, 3) of a task's canvas, how many times as large as the image it is)."""
    url = browser.execute_script(f"return document.querySelector('#{task} canvas').toDataURL()")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(',')[2]))).convert('RGB')).astype(int)
    return pixels, pixels.shape[1] // 160


def colour(number):
    """The page's `hsl(number * 137 % 360, 80 %, 40 %)`."""
    return np.array(colorsys.hls_to_rgb(number * 137 % 360 / 360, 0.4, 0.8)) * 255


def numbers(png):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def close(got, expected, share=1.):
    """That so many pixels are those expected, to rounding."""
    assert (np.abs(got - expected).max(-1) <= 3).mean() >= share


def check(browser, server, path, pixels):
    """What is drawn of all tasks is what the server says."""
    wait(browser, lambda: said(browser) == f'{path.name}: 160 x 128 pixels')
    answer = json.loads(ask(f'{server}/predict', path.read_bytes())[1])
    found = answer['detect']
    assert found['labels'] == ['3'] * BOXES and min(found['scores']) > SURE
    got, scale = drawn(browser, 'detect')
    assert caption(browser, 'detect') == f'{BOXES} objects'
    x, y, right, bottom = np.array(found['boxes'][0]) * scale  # the surest lies on top
    for at in ((y, (x + right) / 2), ((y + bottom) / 2, x), (bottom, (x + right) / 2), ((y + bottom) / 2, right)):
        row, column = (min(int(value), size - 1) for value, size in zip(at, got.shape))
        close(got[row, column], colour(1))
    masks = numbers(found['masks'])
    inside = masks[..., None] > 0
    tinted = np.where(inside, (pixels + np.stack([colour(number) for number in range(BOXES + 1)])[masks]) / 2, pixels)
    middle = got[scale // 2::scale, scale // 2::scale]
    assert 0.1 < inside.mean()
    for part in (inside[..., 0], ~inside[..., 0]):
        close(middle[part], tinted[part], 0.6)  # the rest is below frames and words

    found = answer['segment']
    labels, (got, scale) = numbers(found['labels']), drawn(browser, 'segment')
    tinted = (pixels + np.stack([colour(number) for number in range(13)])[labels]) / 2
    close(got[scale // 2::scale, scale // 2::scale], tinted)
    shares = np.bincount(labels.ravel(), minlength=13) / labels.size
    for number, share in enumerate(shares):
        told = f'{found["classes"][number]}: {100 * share:.0f} %' in caption(browser, 'segment')
        assert told or share < 0.02

    assert answer['classify']['label'] == '7' and caption(browser, 'classify') == '7: 69 %'
    got, scale = drawn(browser, 'classify')
    close(got[1, 1], colour(0))
    close(got[scale // 2::scale, scale // 2::scale][16:], pixels[16:])


def test_an_image_is_chosen_or_dropped(page, server, photograph):
    path, pixels = photograph
    page.find_element('id', 'file').send_keys(str(path))
    check(page, server, path, pixels)
    page.refresh()
    wait(page, lambda: len(page.find_elements('css selector', '#tasks input')) == 3)
    drop(page, (path.name, path.read_bytes()))
    check(page, server, path, pixels)


def test_tasks_are_picked(page, photograph):
    """What is no longer picked goes away, also of the image that is there."""
    path, _ = photograph
    boxes = {box.get_attribute('value'): box for box in page.find_elements('css selector', '#tasks input')}
    assert boxes.keys() == {'detect', 'segment', 'classify'}
    boxes['detect'].click()
    drop(page, (path.name, path.read_bytes()))

    def shown():
        return sorted(each.get_attribute('id') for each in page.find_elements('css selector', '#answers figure'))

    wait(page, lambda: shown() == ['classify', 'segment'] and said(page).endswith('pixels'))
    boxes['segment'].click()
    wait(page, lambda: shown() == ['classify'])
    boxes['classify'].click()
    wait(page, lambda: shown() == [] and said(page) == 'Pick a task.')


@pytest.mark.parametrize('content, words', [
    (b'<script>document.title = "gone"</script>', 'no image of JPEG, PNG, WEBP, BMP, GIF'),
    (b'', 'no image of JPEG, PNG, WEBP, BMP, GIF')])
def test_what_is_no_image(page, photograph, content, words):
    """It says so, and no old picture stays."""
    path, _ = photograph
    drop(page, (path.name, path.read_bytes()))
    wait(page, lambda: said(page).endswith('pixels'))
    drop(page, ('<b>name</b>.png', content))
    wait(page, lambda: said(page) == words)
    assert not page.find_elements('css selector', '#answers figure') and page.title == 'One backbone, several tasks'


def test_the_last_image_counts(page, photograph, tmp_path):
    """Several at once: that of the last is shown, whichever answer comes last."""
    path, _ = photograph
    small = tmp_path / 'small.png'
    Image.new('RGB', (56, 56)).save(small)
    for each in (path, small, path, small):
        drop(page, (each.name, each.read_bytes()))
    wait(page, lambda: said(page) == 'small.png: 56 x 56 pixels')
    assert len(page.find_elements('css selector', '#answers figure')) == 3
