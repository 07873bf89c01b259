"""A model with a frozen backbone, and a run of it that may be killed while it writes: ``python tuned_run.py JOB``."""
import json
import os
import signal
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_hooks.survival_run import train  # noqa: E402

from mmprovpt import inject_prompts  # noqa: E402

SMALL = dict(type='mmprovpt.PromptCheckpointHook', interval=1)


class TunedModel(BaseModel):
    """timm's ViT, frozen, with prompts; a neck with batch norm; a head.

    All start by ``seed``, but the backbone, of which timm's init_weights draws some by the Runner's seed.
    """

    def __init__(self, seed=0, dropout=0.1, kind='StaticPrompts', **prompts):
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer('lift', torch.randn(6, 3 * 16 * 16), persistent=False)
        self.backbone = timm.create_model('vit_tiny_patch16_224', img_size=16, patch_size=8, embed_dim=16, depth=3,
                                          num_heads=2, num_classes=0)
        torch.manual_seed(seed)
        inject_prompts(self.backbone, dict(type=kind, num_tokens=2, dropout=dropout, **prompts))
        self.neck, self.head = nn.BatchNorm1d(16), nn.Linear(16, 1)

    def forward(self, inputs, targets=None, mode='tensor'):
        x = self.backbone((inputs @ self.lift).reshape(-1, 3, 16, 16))
        x = self.head(self.neck(x)).squeeze(1)
        return dict(loss=F.mse_loss(x, targets)) if mode == 'loss' else x


def is_of_checkpoint(number):
    """Whether an open file is a checkpoint or ``last_checkpoint``, and no log of relocations or picture of them."""
    name = Path(os.readlink(f'/proc/self/fd/{number}')).name
    return 'last_checkpoint' in name or '.pth' in name


def killing(at):
    """Of os.fsync: the ``at``-th call for a checkpoint finds half of its file written, and SIGKILL."""
    calls, fsync = [], os.fsync

    def half_and_kill(number):
        calls.extend([number] * is_of_checkpoint(number))
        if is_of_checkpoint(number) and len(calls) == at:
            os.truncate(number, os.fstat(number).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(number)

    return half_and_kill


def main(folder, at):
    os.fsync = killing(at)
    train(folder, model=TunedModel(), checkpoint=dict(SMALL, max_keep_ckpts=1), hook=dict(), epochs=4)


if __name__ == '__main__':
    main(**json.loads(sys.argv[1]))
