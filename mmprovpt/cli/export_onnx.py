"""A classifier, segmentor or backbone as an ONNX graph, in which its prompts are constants, or inputs."""
import json
import logging
import os
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmprovpt.attention import running
from mmprovpt.backbones import folded
from mmprovpt.backbones.folding import Fold
from mmprovpt.errors import ConfigError
from mmprovpt.files import write_atomically
from mmprovpt.prompts import PromptSet, find_prompts
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
                'exported. Detectors cannot: ONNX lacks operators for their boxes, RoIAlign and NMS. Their backbone '
                'can: --backbone-only')
        self.model = model
        self.is_segmentor = 'BaseSegmentor' in parents
        self.metas = [dict(img_shape=shape, ori_shape=shape, pad_shape=shape, padding_size=[0] * 4)]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to (B, classes), or of a segmentor (B, classes, H, W): resized as in testing."""
        logits = self.model.encode_decode(image, self.metas) if self.is_segmentor else self.model(image, mode='tensor')
        if not isinstance(logits, Tensor):
            raise ConfigError(f'the head gives a {type(logits).__name__}, not one tensor of logits')
        return (logits, )

    def names(self, outputs: tuple) -> list[str]:
        """Of what the graph gives."""
        return ['logits']


class Features(nn.Module):
    """What a graph of the backbone alone computes, of any model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to the backbone's outputs."""
        outputs = self.backbone(image)
        return (outputs, ) if isinstance(outputs, Tensor) else tuple(outputs)

    def names(self, outputs: tuple) -> list[str]:
        """Of what the graph gives."""
        return [f'features_{number}' for number in range(len(outputs))]


class _Inputs:
    """Keys and values that are inputs of a graph, in place of a :class:`~mmprovpt.backbones.folding.Fold`."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self._projected = [(None, k, v) for k, v in zip(keys, values)]

    def of_forward(self) -> list[running.Projected]:
        return self._projected


class _WithInputs(nn.Module):
    """A graph whose blocks read keys and values that it is given."""

    def __init__(self, computes: nn.Module, prompts: PromptSet) -> None:
        super().__init__()
        self.computes = computes
        self.place = (prompts, )  # not a child

    def forward(self, image: Tensor, keys: list[Tensor], values: list[Tensor]) -> tuple[Tensor, ...]:
        with running.folding(self.place[0], _Inputs(keys, values)):
            return self.computes(image)


@torch.no_grad()
def prompt_inputs(model: nn.Module) -> dict[str, Tensor]:
    """What a graph with inputs is given of a model's prompts; the model is in eval mode then.

    Returns:
        For each block, ``keys_<block>`` and ``values_<block>``, (n, heads, channels of a head) float32; n may be 0.

    Raises:
        ConfigError: The model has not one set of prompts, or they follow from the image or are tokens.
    """
    prompts = find_prompts(model)
    if prompts.keeps_outputs or any(map(prompts.depends_on_input, range(prompts.num_blocks))):
        raise ConfigError(f'{type(prompts).__name__} cannot be inputs of a graph, for they follow from the image or '
                          'from the block before: --prompts-as-inputs is for StaticPrompts')
    if not len(prompts.tokens):
        raise ConfigError('--prompts-as-inputs needs a model with prompts, but num_tokens is 0')
    found = Fold(model.eval().backbone, prompts).of_forward()
    if any(each is None for each in found):
        raise ConfigError('--prompts-as-inputs needs a backbone all of whose blocks read prompts')
    return {f'{name}_{number}': each[index].detach().float() for index, name in ((1, 'keys'), (2, 'values'))
            for number, each in enumerate(found)}


def export_onnx(model: nn.Module, out: Path, shape: tuple[int, int], opset: int | None = None,
                backbone_only: bool = False, prompts_as_inputs: bool = False) -> float:
    """Write a model as ONNX, if ONNX Runtime then computes what PyTorch does.

    The graph's input is ``image`` (B, 3, H, W) float32, B free, and its output ``logits``. Images are to be
    normalised before, by what :func:`normalisation` says, which also is in the file's metadata. Neither dropout nor
    test-time augmentation nor sliding windows are in the graph.

    Args:
        model: With its weights. It is of no use for training afterwards.
        out: The file. Weights of more than 2 GB are written beside it.
        shape: Height and width of images.
        opset: Version of ONNX's operators; by default the one that PyTorch recommends.
        backbone_only: The outputs are the backbone's, ``features_0``, ...; of any model.
        prompts_as_inputs: The graph has :func:`prompt_inputs` as further inputs, of any numbers of prompts; else
            prompts are constants.

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
    graph = (Features(model) if backbone_only else Logits(model, shape)).eval().requires_grad_(False)
    images, expected = _examples(graph, shape)
    with torch.no_grad():
        given = prompt_inputs(model) if prompts_as_inputs else {}
        with nullcontext() if given else folded(model):
            program = _trace(graph, images[-1], given, graph.names(expected[0]), opset)
    written = program.model.opset_imports['']
    if opset not in (None, written):  # the exporter itself gives up silently
        raise ConfigError(f'opset {opset}: PyTorch writes this graph as opset {written}. Take {written}; older ones: '
                          'torch.onnx.export(..., dynamo=False) of the backbone, see '
                          + shipped('docs/how-to/deployment.md'))
    program.model.metadata_props.update({key: json.dumps(value) for key, value in normalisation(model).items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        program.save(Path(folder, out.name))
        difference = _difference(_open(Path(folder, out.name)), images, expected, given)
        if not difference <= TOLERANCE:
            raise ConfigError(f'ONNX Runtime computes other {"features" if backbone_only else "logits"} than PyTorch, '
                              f'by {difference:.1e} of the largest (allowed: {TOLERANCE:.0e}): {out} is not written')
        for path in Path(folder).iterdir():
            os.replace(path, out.parent / path.name)
    return difference


def export_prompts(model: nn.Module, out: Path, graph: Path) -> float:
    """Write what a graph with inputs is given of a model's prompts (.npz), if it then computes what PyTorch does.

    Args:
        model: With its weights, which but for prompts are those that the graph was made of. It is of no use for
            training afterwards.
        out: The file.
        graph: Written by :func:`export_onnx` with ``prompts_as_inputs``.

    Returns:
        The largest absolute difference on random images, divided by the largest absolute output.

    Raises:
        ConfigError: The graph has no such inputs, or computes something else with these. There is no file then.
    """
    given = prompt_inputs(model)
    try:
        session = _open(graph)
    except Exception as error:  # it has many
        raise ConfigError(f'{graph} cannot be read as an ONNX graph: {error}') from error
    shapes = {each.name: each.shape for each in session.get_inputs()}
    if set(shapes) != {'image', *given} or any(
            shapes[name][1:] != list(value.shape[1:]) for name, value in given.items()):
        raise ConfigError(f'{graph} has the inputs {", ".join(shapes)}, not those for the prompts of this model: write '
                          'it by --prompts-as-inputs, of the same backbone')
    shape = tuple(shapes['image'][2:])
    backbone_only = session.get_outputs()[0].name != 'logits'
    images, expected = _examples((Features(model) if backbone_only else Logits(model, shape)).eval(), shape)
    difference = _difference(session, images, expected, given)
    if not difference <= TOLERANCE:
        raise ConfigError(f'with these prompts {graph} computes something else than PyTorch, by {difference:.1e} of '
                          f'the largest (allowed: {TOLERANCE:.0e}): its backbone or head has other weights. {out} is '
                          'not written')
    write_prompts(given, out)
    return difference


def write_prompts(given: dict[str, Tensor], out: Path) -> None:
    """Write :func:`prompt_inputs` as .npz."""
    arrays = {name: value.numpy() for name, value in given.items()}
    write_atomically(lambda file: np.savez(file, **arrays), out)


@torch.no_grad()
def _examples(graph: nn.Module, shape: tuple[int, int]) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
    """Random images, and what PyTorch makes of them."""
    images = [torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(batch)) for batch in BATCHES]
    return images, [graph(image) for image in images]


def normalisation(model: nn.Module) -> dict[str, object]:
    """What images are to go through before the graph: (image - mean) / std, channel by channel, in this order."""
    steps = model.data_preprocessor
    # MMPretrain's name and MMSegmentation's. Both codebases load images as BGR.
    converts = getattr(steps, 'to_rgb', False) or getattr(steps, '_channel_conversion', False)
    mean, std = [0.] * 3, [1.] * 3
    if getattr(steps, '_enable_normalize', False):
        mean, std = ([round(number, 4) for number in numbers.flatten().tolist()] for numbers in (steps.mean, steps.std))
    return dict(channels='RGB' if converts else 'BGR', mean=mean, std=std)


def _trace(graph: nn.Module, image: Tensor, given: dict[str, Tensor], outputs: list[str], opset: int | None):
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
    arguments: tuple = (image, )
    shapes: tuple = ({0: torch.export.Dim('batch')}, )
    if given:
        # Of any number: sizes 0 and 1 would become constants, so others are traced. What is computed is the same.
        keys = [each.new_zeros(2 + block, *each.shape[1:]) for block, each in enumerate(given.values())
                if block < len(given) // 2]
        numbers = [{0: torch.export.Dim.DYNAMIC}] * len(keys)
        arguments, shapes = (image, keys, list(map(torch.clone, keys))), (*shapes, numbers, numbers)
        graph = _WithInputs(graph, find_prompts(graph))
    exported = torch.export.export(graph, arguments, dynamic_shapes=shapes, strict=False)
    program = torch.onnx.export(
        exported, dynamo=True, optimize=False, verbose=False, opset_version=opset, input_names=['image', *given],
        output_names=outputs)
    # Its limits would spare whatever is larger than a few thousand numbers, and so the projections of prompts.
    no_limit = 1 << 62
    optimizer.optimize(program.model, input_size_limit=no_limit, output_size_limit=no_limit)
    return program


def _window_reverse(windows: Tensor, height: int, width: int, *_) -> Tensor:
    """Swin's, (B * windows, n, n, C) to (B, H, W, C), without the ``int()`` that would make the batch size constant."""
    size, channels = windows.shape[2:]
    x = windows.view(-1, height // size, width // size, size, size, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def _open(path: Path):
    """ONNX Runtime's session of a graph."""
    import onnxruntime
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])


def _difference(session, images: list[Tensor], expected: list[tuple[Tensor, ...]], given: dict[str, Tensor]) -> float:
    """Of each output, relative to its largest number; the worst of all."""
    prompts = {name: value.numpy() for name, value in given.items()}
    worst = 0.
    for wanted, got in zip(zip(*expected), zip(*(session.run(None, dict(image=each.numpy(), **prompts))
                                                 for each in images))):
        largest = max(float(each.abs().max()) for each in wanted)
        worst = max(worst, *(float((torch.from_numpy(mine) - each).abs().max()) / largest
                             for mine, each in zip(got, wanted)))
    return worst
