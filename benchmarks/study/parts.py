"""What only the study needs: named by its configs, whose ``custom_imports`` imports this file."""
from collections import deque

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import DATASETS, METRICS, MODELS
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS as SEGMENTORS
from torch import Tensor

from mmprovpt.datasets.vtab1k import VTAB1k
from mmprovpt.prompts import PromptSet, find_prompts
from mmprovpt.registry import HOOKS
from mmprovpt.relocation import ALLOCATORS, ARRIVALS, PRUNERS, Allocator, IdlenessPruner
from mmprovpt.relocation.arrival import Keep, Shrink

BINS = 15  # of the calibration error


@MODELS.register_module()
class BFloat16Classifier(ImageClassifier):
    """In bfloat16 autocast, on whatever device it is."""

    def forward(self, *args, **kwargs):
        with torch.autocast(self.data_preprocessor.device.type, dtype=torch.bfloat16):
            return super().forward(*args, **kwargs)


@SEGMENTORS.register_module()
class BFloat16Segmentor(EncoderDecoder):
    """In bfloat16 autocast, on whatever device it is."""

    def forward(self, *args, **kwargs):
        with torch.autocast(self.data_preprocessor.device.type, dtype=torch.bfloat16):
            return super().forward(*args, **kwargs)


@DATASETS.register_module()
class CachedVTAB1k(VTAB1k):
    """Every image passes the pipeline once in a process, which must not draw anything; for loading without workers."""

    _images: dict[tuple[str, str, int], dict] = {}

    def __getitem__(self, index: int) -> dict:
        key = self.ann_file, str(self.pipeline.transforms), int(index)
        if key not in self._images:
            self._images[key] = super().__getitem__(index)
        image = self._images[key]
        return dict(image, data_samples=image['data_samples'].clone())  # a model writes into them


@METRICS.register_module()
class Calibration(BaseMetric):
    """Mean negative log-likelihood (nats) and expected calibration error (per cent) of a classifier."""

    default_prefix = 'calibration'

    def process(self, data_batch, data_samples) -> None:
        """Keep scores and labels."""
        self.results += [(sample['pred_score'].float().cpu(), int(sample['gt_label'])) for sample in data_samples]

    def compute_metrics(self, results: list) -> dict:
        """``nll`` and ``ece``."""
        scores, labels = torch.stack([score for score, _ in results]), torch.tensor([label for _, label in results])
        nll = F.nll_loss(scores.clamp_min(1e-12).log(), labels)
        return dict(nll=float(nll), ece=100 * calibration_error(scores, labels))


def calibration_error(scores: Tensor, labels: Tensor) -> float:
    """Expected calibration error in [0, 1]: mean distance of confidence and accuracy over equal bins of confidence.

    Args:
        scores: (N, classes) float, probabilities.
        labels: (N,) int64.
    """
    confidence, predicted = scores.max(1)
    right = (predicted == labels).float()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    differences = torch.zeros(BINS).index_add_(0, bins, confidence - right)
    return float(differences.abs().sum() / len(labels))


@PRUNERS.register
class LeastIdlePruner(IdlenessPruner):
    """A control: the prompt whose removal would cost most."""

    def prune(self, idleness: Tensor, eligible: Tensor | None = None) -> int | None:
        """Whatever its sign."""
        return self.pick(idleness, eligible)

    def pick(self, idleness: Tensor, eligible: Tensor | None = None) -> int | None:
        """The least idle."""
        return super().pick(-idleness, eligible)


@PRUNERS.register
class AnyIdlestPruner(IdlenessPruner):
    """A control: the idlest, also where it does no harm; as many moves as with a random one."""

    def prune(self, idleness: Tensor, eligible: Tensor | None = None) -> int | None:
        """Whatever its sign."""
        return self.pick(idleness, eligible)


@PRUNERS.register
class OraclePruner(IdlenessPruner):
    """A control that knows the best distribution: a prompt of the block that has most too many, the idlest of them."""

    def __init__(self, layout: list, criterion: str = 'gate_fisher', **kwargs) -> None:
        super().__init__(criterion, **kwargs)
        self.layout = torch.tensor(layout)

    def eligible(self, block_index: Tensor) -> Tensor:
        """Those of that block; none where all blocks have what they should."""
        surplus = torch.bincount(block_index.cpu(), minlength=len(self.layout)) - self.layout
        most = int(surplus.argmax())
        owned = (block_index == most).nonzero().flatten()
        return owned if surplus[most] > 0 else owned[:0]

    def prune(self, idleness: Tensor, eligible: Tensor | None = None) -> int | None:
        """Whatever its sign."""
        return self.pick(idleness, eligible)


@ALLOCATORS.register
class StayAllocator(Allocator):
    """A control: the prompt's own block. With an arrival that acts in place, a new birth and nothing else."""

    def act(self, state: Tensor, signals=None) -> int:
        """The block that the state's one-hot part names."""
        return int(state[2 * self.num_blocks:].argmax())


class Rebirth(Shrink):
    """A control: as the authors' arrival, and in the prompt's own block, too."""

    in_place = True

    def __init__(self, factor: float = 1e-3, forgets: bool = False) -> None:
        super().__init__(factor)
        self.forgets = forgets


class Reinit(Keep):
    """A control: the row is drawn anew, as one of its block is at the start, and nothing of it is remembered."""

    forgets = True
    in_place = True

    def row(self, prompts: PromptSet, prompt: int, block: int) -> Tensor:
        """Of the block's width."""
        return prompts.initial_row(block)


ARRIVALS.update(rebirth=Rebirth, reinit=Reinit)


@ALLOCATORS.register
class OracleAllocator(Allocator):
    """A control that knows the best distribution: the block that has most too few."""

    def __init__(self, num_blocks: int, layout: list) -> None:
        super().__init__(num_blocks)
        self.layout = torch.tensor(layout)

    def act(self, state: Tensor, signals=None) -> int:
        """From the counts in the state."""
        counts = (state[self.num_blocks:2 * self.num_blocks].cpu() + 1) * self.layout.sum() / self.num_blocks
        return int((self.layout - counts).argmax())


@HOOKS.register_module()
class ConstantLengthHook(Hook):
    """A control: after each step every row gets back the length it started with, so that steps do not shorten."""

    def before_train(self, runner) -> None:
        """Note the lengths."""
        self.rows = find_prompts(runner.model).tokens
        self.lengths = self.rows.detach().norm(dim=1, keepdim=True).clone()

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Scale the rows."""
        self.rows.mul_(self.lengths / self.rows.norm(dim=1, keepdim=True))


@HOOKS.register_module()
class TrainingLossHook(Hook):
    """Mean loss of the last ``window`` iterations, in ``training_loss.txt`` of the work directory."""

    def __init__(self, window: int) -> None:
        self.losses: deque[Tensor] = deque(maxlen=window)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Add one."""
        self.losses.append(outputs['loss'].detach())

    def after_train(self, runner) -> None:
        """Write it."""
        with open(f'{runner.work_dir}/training_loss.txt', 'w', encoding='utf-8') as file:
            file.write(f'{torch.stack([*self.losses]).float().mean()}\n')
