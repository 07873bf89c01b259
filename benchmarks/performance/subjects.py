"""What is measured: models of random weights, which do not change the work, and the ways to tune them."""
import copy
import io
import math
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import nn

import mmprovpt
from mmprovpt.relocation import RelocationSession

ROOT = Path(__file__).parents[2]
CLASSES = 100
# Backbones by library: arguments of timm.create_model, or of the class in MMPretrain.
TIMM = {
    'ViT-S': dict(model_name='vit_small_patch16_224'),
    'ViT-B': dict(model_name='vit_base_patch16_224'),
    'ViT-L': dict(model_name='vit_large_patch16_224'),
    'Swin-T': dict(model_name='swin_tiny_patch4_window7_224', drop_path_rate=0.),
    'Swin-B': dict(model_name='swin_base_patch4_window7_224', drop_path_rate=0.),
    'ViT-tiny': dict(model_name='vit_tiny_patch16_224', depth=4, embed_dim=64, num_heads=2),
}
SMALL = dict(embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536)
TINY = dict(embed_dims=64, num_layers=4, num_heads=2, feedforward_channels=256)
MMPRETRAIN = {
    'ViT-S': dict(type='VisionTransformer', arch=SMALL), 'ViT-B': dict(type='VisionTransformer', arch='base'),
    'ViT-L': dict(type='VisionTransformer', arch='large'), 'ViT-tiny': dict(type='VisionTransformer', arch=TINY),
    'Swin-T': dict(type='SwinTransformer', arch='tiny', drop_path_rate=0.),
    'Swin-B': dict(type='SwinTransformer', arch='base', drop_path_rate=0.),
}
# The config of full fine-tuning, height and width of an image, and of segmentors the classes.
DENSE = {'Mask R-CNN Swin-T': ('mask_rcnn_swin_t_full_coco', (800, 1216), None),
         'SETR ViT-B': ('setr_pup_vit_b_full_ade20k', (512, 512), 150),
         **{f'{head} ViT-S': (f'camvid/{head.lower()}_vit_s_full_camvid', (168, 224), 11)
            for head in ('UPerNet', 'Mask2Former')}}


def size_of(name):
    """Height and width of a model's images."""
    return DENSE[name][1] if name in DENSE else (224, 224)


class Classifier(nn.Module):
    """A backbone and a linear head on its pooled features."""

    def __init__(self, backbone, width):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        out = self.backbone(x)
        out = out[-1] if isinstance(out, tuple) else out
        return self.head(out.mean((2, 3)) if out.dim() == 4 else out)

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)


class Dense(nn.Module):
    """A detector or segmentor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    @property
    def backbone(self):
        return self.model.backbone

    def loss(self, batch):
        return self.model.parse_losses(self.model.loss(*batch))[0]


def build(name, library, size):
    """A model by its name, on the CPU. Raises whatever a missing library raises."""
    torch.manual_seed(0)
    if name in DENSE:
        from mmprovpt.cli.runner import build_model
        cfg = Config.fromfile(ROOT / f'configs/{DENSE[name][0]}.py')
        cfg.model.backbone.init_cfg = None
        if 'img_size' in cfg.model.backbone:
            cfg.model.backbone.img_size = size
        else:
            cfg.model.backbone.drop_path_rate = 0.
        return Dense(build_model(cfg))
    if library == 'timm':
        import timm
        backbone = timm.create_model(**TIMM[name], img_size=size[0], num_classes=0)
        return Classifier(backbone, backbone.num_features)
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS
    cfg = dict(MMPRETRAIN[name], img_size=size[0])
    if cfg['type'] == 'VisionTransformer':
        cfg.update(patch_size=16, out_type='cls_token')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(cfg)
    width = getattr(backbone, 'num_features', backbone.embed_dims)
    return Classifier(backbone, width[-1] if isinstance(width, list) else width)


def images(name, size, count, device):
    """A batch of noise, with labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, *size, generator=generator).to(device)
    if name not in DENSE:
        return x, torch.randint(CLASSES, (count, ), generator=generator).to(device)
    from mmengine.structures import InstanceData, PixelData
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1., 1.))
    if classes := DENSE[name][2]:
        from mmseg.structures import SegDataSample
        truth = torch.randint(classes, (count, 1, *size), generator=generator).to(device)
        return x, [SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=each)) for each in truth]
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    # Eight objects on a grid, each a full box.
    height, width = size
    corners = torch.tensor([[width * i // 4, height * j // 2] for i in range(4) for j in range(2)])
    boxes = torch.cat([corners, corners + torch.tensor([width // 5, height // 3])], 1).float()
    masks = torch.zeros(8, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    truth = InstanceData(bboxes=boxes.to(device), labels=torch.arange(8, device=device),
                         masks=BitmapMasks(masks.numpy(), height, width))
    return x, [DetDataSample(metainfo=meta, gt_instances=truth, ignored_instances=InstanceData(
        bboxes=boxes[:0].to(device), labels=torch.zeros(0, dtype=torch.long, device=device))) for _ in range(count)]


class Concatenating(nn.Module):
    """VPT-Deep as its authors write it, for a ViT: the rows are tokens of the block, and dropped after it."""

    def __init__(self, layer, num_tokens, width):
        super().__init__()
        self.layer = layer
        self.rows = nn.Parameter(torch.rand(1, num_tokens, width) - 0.5)

    def forward(self, x):
        rows = F.dropout(self.rows.expand(len(x), -1, -1), 0.1, self.training).to(x.dtype)
        x = self.layer(torch.cat([x[:, :1], rows, x[:, 1:]], 1))
        return torch.cat([x[:, :1], x[:, 1 + rows.shape[1]:]], 1)


class LowRank(nn.Module):
    """LoRA of rank 16 beside a linear layer."""

    def __init__(self, layer, rank=16):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def frozen(model):
    model.backbone.requires_grad_(False)
    model.backbone.eval()


def full(model):
    model.requires_grad_(True)  # its weights may be copies of frozen ones


def prompted(form, num_tokens):
    def tune(model):
        mmprovpt.inject_prompts(model.backbone, dict(type=form, num_tokens=num_tokens))
    return tune


def concatenating(num_tokens):
    def tune(model):
        frozen(model)
        name = 'layers' if hasattr(model.backbone, 'layers') else 'blocks'
        layers = getattr(model.backbone, name, None)
        width = getattr(model.backbone, 'embed_dims', getattr(model.backbone, 'embed_dim', None))
        if layers is None or not hasattr(model.backbone, 'cls_token'):
            raise NotImplementedError('for a plain ViT alone')
        setattr(model.backbone, name, nn.Sequential(*(Concatenating(layer, num_tokens, width) for layer in layers)))
        model.backbone.train()
    return tune


def low_rank(model):
    frozen(model)
    found = [(module, layer) for module in model.backbone.modules()
             if isinstance(layer := getattr(module, 'qkv', None), nn.Linear)]
    if not found:
        raise NotImplementedError('no linear layer called qkv')
    for module, layer in found:
        module.qkv = LowRank(layer)


METHODS = {
    'linear': frozen,
    **{f'VPT {n}': prompted('StaticPrompts', n) for n in (10, 50, 100)},
    **{f'PRO-VPT {n}': prompted('StaticPrompts', n) for n in (10, 100)},
    'VAPT 10': prompted('AdaptivePrompts', 10),
    'VPT-Shallow 10': prompted('ShallowPrompts', 10),
    'LoRA': low_rank,
    **{f'concatenated {n}': concatenating(n) for n in (10, 100)},
    'full': full,
}


class Subject:
    """A model tuned by a method: one step, one inference.

    Args:
        base (nn.Module): Its weights are shared where they are frozen.
        method (str): Of METHODS, or 'plain': a forward of the model as it is, without gradients. 'VPT 10 folded' is for
            inference; 'VPT 10 @bf16' has a precision of its own.
        precision (str): 'float32', 'tf32' or 'bf16'.
    """

    def __init__(self, base, method, precision, device):
        self.name = method
        method, _, own = method.partition(' @')
        precision = own or precision
        self.folded, method = method.endswith(' folded'), method.removesuffix(' folded')
        self.method, self.precision, self.device = method, precision, torch.device(device)
        shared = {} if method == 'full' else {id(each): each for each in base.backbone.parameters()}
        self.model = copy.deepcopy(base, shared)
        if method == 'plain':
            frozen(self.model)
        else:
            METHODS[method](self.model)
        self.model.to(device).train()
        if method in ('plain', 'linear'):
            self.model.backbone.eval()
        self.optimizer = self.session = None
        # A period of scoring is the least that is timed.
        self.iterations = 1

    def begin_training(self):
        """Make the optimizer, and the session of PRO-VPT."""
        self.model.train()
        if self.method in ('plain', 'linear'):
            self.model.backbone.eval()
        if self.optimizer is None and self.method != 'plain':
            # Nothing is learned, or a detector's work, which depends on what it finds, would change.
            self.optimizer = torch.optim.AdamW([each for each in self.model.parameters() if each.requires_grad], lr=0.)
            if self.method.startswith('PRO-VPT'):
                self.session = RelocationSession(self.model.backbone.prompts, self.optimizer)
                self.iterations = self.session.criterion.score_interval

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == 'bf16')

    def look(self, batch):
        """The loss, without gradients; what libraries allocate at their first call is there after it."""
        with torch.no_grad(), self._autocast():
            return self.model.loss(batch)

    def step(self, batch):
        """Forward, backward and the optimizer's step; of the plain model, the forward."""
        if self.method == 'plain':
            return self.look(batch)
        self.optimizer.zero_grad(set_to_none=True)
        if self.session is not None:
            self.session.begin_iteration()
        with self._autocast():
            loss = self.model.loss(batch)
        loss.backward()
        if self.session is not None:
            self.session.end_iteration(loss.detach())
        self.optimizer.step()
        return loss

    def training(self):
        """Gives the step."""
        return nullcontext(self.step)

    @contextmanager
    def inferring(self):
        """Gives a forward of a batch in eval mode, without gradients; its prompts are folded, if they are to be."""
        self.model.eval()
        with torch.no_grad(), self._autocast(), mmprovpt.folded(self.model) if self.folded else nullcontext():
            yield lambda batch: self.model(batch[0])

    def checkpoint_bytes(self):
        """Of a file with what was tuned, without the optimizer's state."""
        if self.method == 'plain':
            return math.nan
        trained = {name for name, each in self.model.named_parameters() if each.requires_grad}
        kept = {name: value for name, value in self.model.state_dict().items() if self.method == 'full'
                or name in trained or 'backbone.prompts.' in name or 'running_' in name}
        file = io.BytesIO()
        torch.save(kept, file)
        return file.tell()
