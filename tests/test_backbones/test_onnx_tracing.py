"""Prompted backbones through PyTorch's older ONNX exporter, as docs/how-to/deployment.md says."""
import re
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from matrix import CASES, KINDS, build, images, outputs, randomise

PAGE = Path(__file__).parents[2] / 'docs/how-to/deployment.md'
pytestmark = pytest.mark.filterwarnings('ignore')


def check(backbone, case, path, opset, export):
    """What is exported computes what PyTorch does, of images that were not seen in tracing."""
    backbone.prompts.tokens.data.normal_()
    backbone.eval()
    export(backbone, images(case), path, opset)
    assert {entry.domain: entry.version for entry in onnx.load(path).opset_import}[''] == opset
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    x = images(case, seed=7)
    with torch.no_grad():
        expected = outputs(backbone, x)
        with backbone.prompts.without(*range(len(backbone.prompts.tokens))):
            assert not torch.allclose(outputs(backbone, x)[-1], expected[-1], rtol=1e-3)  # prompts count
    got = session.run(None, {'images': x.numpy()})
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def plainly(backbone, x, path, opset):
    torch.onnx.export(backbone, (x, ), path, opset_version=opset, dynamo=False, input_names=['images'])


# The exporter makes graphs of these that ONNX Runtime refuses, of the plain backbones as well.
UPSTREAM_FAILS = ('timm-eva02', 'timm-rope-mixed')
EXPORTED = [name for name in CASES if name not in UPSTREAM_FAILS]


@pytest.mark.parametrize('name, opset', [
    *((name, opset) for name in EXPORTED for opset in (11, 18)),
    *((name, opset) for name in ('timm-vit', 'mmdet-swin', 'timm-dinov3') for opset in (13, 14, 17))])
def test_static(tmp_path, name, opset):
    backbone = randomise(build(CASES[name], dict(KINDS['static'], num_tokens=2)))
    backbone.prompts.relocate(0, 1)  # a block with more than others
    check(backbone, CASES[name], tmp_path / 'backbone.onnx', opset, plainly)


@pytest.mark.parametrize('name', [name for name in EXPORTED if not name.rpartition('-')[2].startswith('swin')])
def test_shallow(tmp_path, name):
    backbone = randomise(build(CASES[name], dict(KINDS['shallow'], num_tokens=2)))
    check(backbone, CASES[name], tmp_path / 'backbone.onnx', 14, plainly)


def test_as_printed(tmp_path, monkeypatch):
    section = PAGE.read_text(encoding='utf-8').partition('### Older opsets')[2]
    code = re.search('```python\n(.*?)```', section, re.S)[1]
    monkeypatch.chdir(tmp_path)

    def export(backbone, x, path, opset):
        exec(code, dict(backbone=backbone, images=x))

    check(build(CASES['mmdet-swin'], dict(KINDS['static'], num_tokens=2)), CASES['mmdet-swin'],
          'backbone.onnx', 11, export)
