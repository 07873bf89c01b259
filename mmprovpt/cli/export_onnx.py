"""A classifier or segmentor as an ONNX graph, in which its prompts are constants."""
import json
import logging
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from mmprovpt.backbones import folded
from mmprovpt.errors import ConfigError
from mmprovpt.shipped import shipped

# Of ONNX Runtime's logits against PyTorch's, relative to the largest logit.
TOLERANCE = 1e-4
# The graph's batch axis is free; sizes that it is checked with.
BATCHES = (1, 3)


class Logits(nn.Module):
    """What the graph computes, of images that are normalised already.

    Args:
        model: A classifier of MMPretrain or a segmentor of MMSegmentation.
        shape: Height and width of the images.

    Raises:
        ConfigError: If the model is neither.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int]) -> None:
        super().__init__()
        # By name, so that nothing is imported that is not installed.
        parents = {parent.__name__ for parent in type(model).__mro__}
        if not parents & {'BaseClassifier', 'BaseSegmentor'}:
            what = 'a detector' if 'BaseDetector' in parents else 'neither a classifier nor a segmentor'
            raise ConfigError(
                f'{type(model).__name__} is {what}: classifiers of MMPretrain and segmentors of MMSegmentation can be '
                'exported. Detectors cannot: ONNX lacks operators for their boxes, RoIAlign and NMS')
        self.model = model
        self.is_segmentor = 'BaseSegmentor' in parents
        self.metas = [dict(img_shape=shape, ori_shape=shape, pad_shape=shape, padding_size=[0] * 4)]

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, classes), or of a segmentor (B, classes, H, W): resized as in testing."""
        if self.is_segmentor:
            return self.model.encode_decode(image, self.metas)
        return self.model(image, mode='tensor')


def export_onnx(model: nn.Module, out: Path, shape: tuple[int, int], opset: int | None = None) -> float:
    """Write a model as ONNX, if ONNX Runtime then computes what PyTorch does.

    The graph has one input, ``image`` (B, 3, H, W) float32, B free, and one output, ``logits``. Images are to be
    normalised before, by what :func:`normalisation` says, which also is in the file's metadata. Neither dropout nor
    test-time augmentation nor sliding windows are in the graph.

    Args:
        model: With its weights. Its prompts become constants: it is of no use for training afterwards.
        out: The file. Weights of more than 2 GB are written beside it.
        shape: Height and width of images.
        opset: Version of ONNX's operators; by default the one that PyTorch recommends.

    Returns:
        The largest absolute difference on random images, divided by the largest absolute logit.

    Raises:
        ConfigError: If the model cannot be exported, or not in this opset, or the difference is greater than
            ``TOLERANCE``. There is no file then.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is missing: pip install 'mmprovpt[onnx]', or onnx, onnxruntime and "
                          'onnxscript') from error
    graph = Logits(model, shape).eval().requires_grad_(False)
    images = [torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(batch)) for batch in BATCHES]
    with torch.no_grad():
        expected = [graph(image) for image in images]
        if not isinstance(expected[0], Tensor):
            raise ConfigError(f'the head gives a {type(expected[0]).__name__}, not one tensor of logits')
        with folded(model):
            program = _trace(graph, images[-1], opset)
    written = program.model.opset_imports['']
    if opset not in (None, written):  # the exporter itself gives up silently
        raise ConfigError(f'opset {opset}: PyTorch writes this graph as opset {written}. Take {written}; older ones: '
                          'torch.onnx.export(..., dynamo=False) of the backbone, see '
                          + shipped('docs/how-to/deployment.md'))
    program.model.metadata_props.update({key: json.dumps(value) for key, value in normalisation(model).items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        program.save(Path(folder, out.name))
        difference = _difference(Path(folder, out.name), images, expected)
        if not difference <= TOLERANCE:
            raise ConfigError(f'ONNX Runtime computes other logits than PyTorch, by {difference:.1e} of the largest '
                              f'(allowed: {TOLERANCE:.0e}): {out} is not written')
        for path in Path(folder).iterdir():
            os.replace(path, out.parent / path.name)
    return difference


def normalisation(model: nn.Module) -> dict[str, object]:
    """What images are to go through before the graph: (image - mean) / std, channel by channel, in this order."""
    steps = model.data_preprocessor
    # MMPretrain's name and MMSegmentation's. Both codebases load images as BGR.
    converts = getattr(steps, 'to_rgb', False) or getattr(steps, '_channel_conversion', False)
    mean, std = [0.] * 3, [1.] * 3
    if getattr(steps, '_enable_normalize', False):
        mean, std = ([round(number, 4) for number in numbers.flatten().tolist()] for numbers in (steps.mean, steps.std))
    return dict(channels='RGB' if converts else 'BGR', mean=mean, std=std)


def _trace(graph: nn.Module, image: Tensor, opset: int | None):
    """The exported program, constants folded.

    By torch.export: PyTorch's older exporter, which needs no onnxscript, is deprecated. Not strictly, which is slower
    and stumbles over MMPretrain's drop path.
    """
    from onnxscript import optimizer
    for module in graph.modules():
        if hasattr(module, 'window_reverse'):
            module.window_reverse = _window_reverse
    # They warn of every constant that is left, e.g. because a Split has several outputs.
    for name in ('torch.onnx', 'onnxscript'):
        logging.getLogger(name).setLevel(logging.ERROR)
    exported = torch.export.export(
        graph, (image, ), dynamic_shapes=({0: torch.export.Dim('batch')}, ), strict=False)
    program = torch.onnx.export(
        exported, dynamo=True, optimize=False, verbose=False, opset_version=opset, input_names=['image'],
        output_names=['logits'])
    # Its limits would spare whatever is larger than a few thousand numbers, and so the projections of prompts.
    no_limit = 1 << 62
    optimizer.optimize(program.model, input_size_limit=no_limit, output_size_limit=no_limit)
    return program


def _window_reverse(windows: Tensor, height: int, width: int, *_) -> Tensor:
    """Swin's, (B * windows, n, n, C) to (B, H, W, C), without the ``int()`` that would make the batch size constant."""
    size, channels = windows.shape[2:]
    x = windows.view(-1, height // size, width // size, size, size, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def _difference(path: Path, images: list[Tensor], expected: list[Tensor]) -> float:
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    pairs = [(torch.from_numpy(session.run(['logits'], {'image': image.numpy()})[0]), logits)
             for image, logits in zip(images, expected)]
    return float(max((got - logits).abs().max() for got, logits in pairs)
                 / max(logits.abs().max() for _, logits in pairs))
