"""A small real task for benchmarks: 1000 images of Fashion-MNIST, a real pre-trained ViT-S/14 (DINOv2), prompts.

Data: Debian's package dataset-fashion-mnist (or the same four .gz files elsewhere, ``--data``). Weights: a state dict
for timm's ``vit_small_patch14_dinov2`` (``--weights``), such as timm downloads.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprovpt import inject_prompts

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools/dataset_converters'))  # its images are drawn there
from draw_miniature import draw, load_articles  # noqa: E402

SIZE = 42
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--data', default='/usr/share/datasets/fashion-mnist', help='folder of the four .gz files')
    parser.add_argument('--weights', required=True, help="state dict of timm's vit_small_patch14_dinov2")
    parser.add_argument('--device', default='cpu')


def load(folder: str, split: str, count: int, seed: int = 0, task: str = 'category') -> tuple[Tensor, Tensor]:
    """Images (count, 3, 42, 42) float32, normalised, and labels (count,), equally many of each class (or nearly).

    Args:
        folder: Of the four files.
        split: 'train' or 'test'.
        count: A multiple of 10.
        seed: Of the choice.
        task: Of ``mmprovpt.datasets.miniature_tasks``; 'category' is taken from the files as it is.
    """
    if task != 'category':
        images, labels = zip(*(draw(task, split, number, folder, seed) for number in range(count)))
        return normalise(np.stack(images)), torch.tensor(labels)
    images, labels = load_articles(folder, split)
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:count // 10] for c in range(10)])
    return normalise(images[chosen]), torch.from_numpy(labels[chosen])


def normalise(images: np.ndarray) -> Tensor:
    """(N, h, w) uint8 to (N, 3, 42, 42) float32."""
    x = torch.from_numpy(images)[:, None].float().div(255).expand(-1, 3, -1, -1)
    x = F.interpolate(x, size=(SIZE, SIZE), mode='bilinear', align_corners=False, antialias=True)
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class Classifier(nn.Module):
    """Frozen ViT-S/14 with prompts, and a linear head on its class token."""

    def __init__(self, weights: str, num_tokens, dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone = timm.create_model('vit_small_patch14_dinov2', img_size=SIZE, num_classes=0)
        state = torch.load(weights, map_location='cpu', weights_only=True)
        state = timm.models.vision_transformer.checkpoint_filter_fn(state, self.backbone)
        self.backbone.load_state_dict({key: value.float() for key, value in state.items()})
        self.prompts = inject_prompts(
            self.backbone, dict(type='StaticPrompts', num_tokens=num_tokens, dropout=dropout))
        self.head = nn.Linear(self.backbone.num_features, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.head(self.backbone(x)), y)

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor, batch: int = 250) -> tuple[Tensor, float]:
        """Mean cross-entropy and per cent classified rightly over all of ``x``, in eval mode."""
        mode = self.training
        self.eval()
        logits = torch.cat([self.head(self.backbone(part)) for part in x.split(batch)])
        self.train(mode)
        return F.cross_entropy(logits, y), 100 * float((logits.argmax(1) == y).float().mean())


def optimizer(model: Classifier, lr: float = 1e-3) -> torch.optim.Optimizer:
    """AdamW, constant learning rate (PRO-VPT has no schedule)."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.01)


def epoch(model: Classifier, optim: torch.optim.Optimizer, x: Tensor, y: Tensor, generator: torch.Generator,
          batch: int = 64) -> None:
    """Train one epoch."""
    model.train()
    for index in torch.randperm(len(x), generator=generator).split(batch):
        loss = model.loss(x[index], y[index])
        loss.backward()
        optim.step()
        optim.zero_grad()
