"""Prompt relocation in a training loop of your own: timm and PyTorch, no Runner.

    python examples/plain_pytorch.py
"""
import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3

from mmprovpt import inject_prompts
from mmprovpt.relocation import RelocationSession


def train(model, batches, periods, lr=0.05, num_tokens=5):
    """Tune prompts and head of a timm ViT; after each pass over ``batches`` an idle prompt changes its block.

    Args:
        model: Of timm, with a new head.
        batches: A list of (images (B, 3, H, W), labels (B,)); one pass is one period.
        periods: Number of passes.

    Returns:
        The prompts, an average of the model, and the list of periods.
    """
    # Freezes the backbone, head included: what is trained beside the prompts is thawed here.
    prompts = inject_prompts(model, dict(type='StaticPrompts', num_tokens=num_tokens))
    model.head.requires_grad_(True)
    optimizer = torch.optim.SGD([prompts.tokens, *model.head.parameters()], lr=lr, momentum=0.9)
    average = ModelEmaV3(model, decay=0.9)
    session = RelocationSession(prompts, optimizer, averages=[average])
    model.train()
    closed = []
    for period in range(periods):
        for images, labels in batches:
            session.begin_iteration()
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            session.end_iteration(loss)
            optimizer.step()
            average.update(model)
        # A prompt that moves last would never be tuned.
        closed.append(session.close_period() if period + 1 < periods else session.finish())
        print(f'period {period + 1}: loss {closed[-1].loss:.4f}, prompts per block {prompts.distribution.tolist()}')
    session.close()
    return prompts, average, closed


if __name__ == '__main__':
    torch.manual_seed(0)
    data = [(torch.randn(8, 3, 32, 32), torch.randint(10, (8, ))) for _ in range(10)]
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, num_classes=10)
    train(vit, data, periods=6)
