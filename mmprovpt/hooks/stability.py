"""How much relocation changes what the blocks compute (001 § 4.3 and Fig. 6)."""
from typing import Callable, Dict, List, Optional

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmprovpt.prompts.prompt_set import PromptSet

from .find import unwrapped
from .verification import HeldBatches


class FeatureStability:
    """Cosine similarity of each block's features to those at the end of the period before.

    A block's feature of an image is the class token of its output, or without one (Swin) the mean over its tokens. The
    images are the same at all times: the first of a batch of training data, drawn by the runner's seed.

    Args:
        runner (Runner): See ``HeldBatches``.
        optim_wrapper (OptimWrapper): The same.
        pool (PromptSet): The model's.
        num_images (int): Images, >= 1; at most one batch.

    Attributes:
        reference (list[Tensor], optional): (B, C_i) of every block, at the end of the latest period.
    """

    def __init__(self, runner: Runner, optim_wrapper: OptimWrapper, pool: PromptSet, num_images: int) -> None:
        self._backbone = next(module for module in unwrapped(runner.model).modules() if pool in module.children())
        self._data = lambda: HeldBatches(runner, optim_wrapper, 1, runner.seed).inputs()[:num_images]
        self.reference: Optional[List[Tensor]] = None

    def tuned(self) -> Optional[List[float]]:
        """After a period: (L,) similarity to the end of the one before, None for the first. Its end counts now."""
        before, self.reference = self.reference, block_features(self._backbone, self._data())
        return None if before is None else self._similarity(before, self.reference)

    def changed(self) -> List[float]:
        """(L,) similarity of the features now to those at the latest ``tuned()``."""
        return self._similarity(self.reference, block_features(self._backbone, self._data()))

    @staticmethod
    def _similarity(before: List[Tensor], now: List[Tensor]) -> List[float]:
        return [float(torch.cosine_similarity(a.to(b), b, dim=-1).mean()) for a, b in zip(before, now)]


@torch.no_grad()
def block_features(backbone: nn.Module, images: Tensor) -> List[Tensor]:
    """Features of every block that can own prompts, in eval mode.

    Args:
        backbone: A prompted one.
        images: (B, 3, H, W), preprocessed.

    Returns:
        list[Tensor]: (B, C_i) float32 per block, in the order of the blocks.
    """
    has_class_token = any(getattr(module, 'cls_token', None) is not None for module in backbone.modules())
    norms = [module.prompt_reader.norm for module in backbone.modules() if hasattr(module, 'prompt_reader')]
    features: Dict[int, Tensor] = {}

    def recorder(number: int) -> Callable:
        def record(module: nn.Module, args: tuple, output: Tensor) -> None:
            tokens = output.flatten(1, -2)  # timm's Swin has height and width
            features[number] = (tokens[:, 0] if has_class_token else tokens.mean(1)).float()
        return record

    handles = [block.register_forward_hook(recorder(number)) for number, norm in enumerate(norms)
               for block in backbone.modules() if norm in block.children()]
    training = backbone.training
    try:
        backbone.eval()
        backbone(images)
    finally:
        for handle in handles:
            handle.remove()
        backbone.train(training)
    return [features[number] for number in range(len(norms))]
