"""Prompt relocation in a training loop of your own: timm and PyTorch, no Runner.

    python examples/plain_pytorch.py
"""
import timm
import torch
import torch.nn.functional as F

from mmprovpt import inject_prompts
from mmprovpt.relocation import FisherGateIdleness, IdlenessPruner, PPOAllocator, Relocator


def train(model, batches, periods, lr=0.05, num_tokens=5):
    """Tune prompts and head of a timm ViT; after each pass over ``batches`` an idle prompt changes its block.

    Args:
        model: Of timm, with a new head.
        batches: A list of (images (B, 3, H, W), labels (B,)); one pass is one period.
        periods: Number of passes.

    Returns:
        The pool of prompts, and the list of moves.
    """
    # Freezes the backbone, head included: what is trained beside the prompts is thawed here.
    pool = inject_prompts(model, dict(type='StaticPrompts', num_tokens=num_tokens))
    model.head.requires_grad_(True)
    optimizer = torch.optim.SGD([pool.tokens, *model.head.parameters()], lr=lr, momentum=0.9)
    idleness, moved = FisherGateIdleness(pool), []
    relocator = Relocator(pool.num_blocks, IdlenessPruner(), PPOAllocator(pool.num_blocks))
    model.train()
    for period in range(periods):
        for images, labels in batches:
            idleness.begin()
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            idleness.update(loss)
            optimizer.step()
        scores, mean_loss, _ = idleness.compute()
        idleness.reset()
        if period + 1 < periods:  # a prompt that moves last would never be tuned
            for move in relocator.step(mean_loss, scores, pool.block_index):
                if pool.relocate(move.prompt, move.target):  # rewritten for a block of another width (Swin)
                    optimizer.state[pool.tokens]['momentum_buffer'][move.prompt] = 0
                moved.append(move)
        print(f'period {period}: loss {mean_loss:.4f}, prompts per block {pool.distribution.tolist()}')
    relocator.finish(mean_loss)  # the last relocation's reward
    return pool, moved


if __name__ == '__main__':
    torch.manual_seed(0)
    data = [(torch.randn(8, 3, 32, 32), torch.randint(10, (8, ))) for _ in range(10)]
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, num_classes=10)
    train(vit, data, periods=6)
