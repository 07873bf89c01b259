"""What tests cannot see on a CPU: that no forward, backward or score waits for an accelerator, and is right.

    python benchmarks/accelerator.py

It needs a CUDA device, torch and timm, and no weights. Each line says what was tried and what came out; the exit status
is not 0 if one of them failed. PyTorch's synchronisation check raises wherever the host would wait.
"""
import copy
import sys
import time
import traceback
from pathlib import Path

import timm
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # from a clone, installed or not

from mmprovpt import inject_prompts  # noqa: E402
from mmprovpt.relocation import CRITERIA, RelocationSession  # noqa: E402

MODELS = dict(
    vit=dict(model_name='vit_small_patch16_224', img_size=64, depth=6, num_classes=10),
    swin=dict(model_name='swin_tiny_patch4_window7_224', img_size=56, depths=(2, 2, 2), embed_dim=96,
              num_heads=(3, 6, 12), num_classes=10))
FORMS = dict(static=dict(type='StaticPrompts'), adaptive=dict(type='AdaptivePrompts', grid_size=4),
             shallow=dict(type='ShallowPrompts'))
QUIET = dict(dropout=0.)
FAILED = []


def report(what, right, found=''):
    """Print one line, and remember failures."""
    print(f'{"ok    " if right else "FAILED"} {what} {found}', flush=True)
    if not right:
        FAILED.append(what)


def build(model, form, device):
    """The same weights on every device."""
    torch.manual_seed(0)
    net = timm.create_model(**MODELS[model])
    quiet = dict(channel_dropout=0., projector_dropout=0.) if form == 'adaptive' else {}
    prompts = inject_prompts(net, dict(FORMS[form], num_tokens=4, **QUIET, **quiet))
    prompts.tokens.data.normal_()
    return net.train().to(device), prompts


def step(net, criterion, x, forward=None):
    """Gradients and scores of one iteration of a net, or of its compiled forward."""
    net.prompts.tokens.grad = None
    criterion.reset()
    criterion.begin(1.)
    loss = (net if forward is None else forward)(x).square().mean()  # a compiled module has no truth value
    loss.backward()
    criterion.update(loss.detach())
    return net.prompts.tokens.grad.clone(), criterion.sums.clone()


def without_waiting(call):
    """The result of a call that may not wait for the device, or the error."""
    torch.cuda.set_sync_debug_mode('error')
    try:
        return call(), None
    except RuntimeError as error:
        places = [f'{Path(frame.filename).name}:{frame.lineno}' for frame in traceback.extract_tb(error.__traceback__)]
        return None, f'{str(error).splitlines()[0]}: {" < ".join(places[:-4:-1])}'
    finally:
        torch.cuda.set_sync_debug_mode('default')


def equal_to_cpu(model, form, criterion):
    """Gradients and scores of both devices, before and after relocation."""
    x = torch.randn(4, 3, MODELS[model]['img_size'], MODELS[model]['img_size'])
    results = {}
    for device in ('cpu', 'cuda'):
        net, prompts = build(model, form, device)
        measure = CRITERIA[criterion](prompts, score_interval=1)
        found = [*step(net, measure, x.to(device))]
        if form != 'shallow':
            for prompt, block in ((0, 1), (5, 0), (6, 5)):
                prompts.relocate(prompt, block)
            found += step(net, measure, x.to(device))
        # taylor's terms cancel down to their rounding (docs/method/idleness.md), so only its gradients are compared.
        results[device] = [value.cpu() for value in (found[::2] if criterion == 'taylor' else found)]
    worst = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))
                for a, b in zip(results['cuda'], results['cpu']))
    report(f'{model} {form} {criterion}: CUDA and CPU', worst < 2e-3, f'largest relative difference {worst:.1e}')


def nobody_waits(model, form, criterion, autocast):
    """A training iteration with scoring, after owners have been read once."""
    net, prompts = build(model, form, 'cuda')
    measure = CRITERIA[criterion](prompts, score_interval=1)
    x = torch.randn(4, 3, MODELS[model]['img_size'], MODELS[model]['img_size'], device='cuda')
    optimizer = torch.optim.SGD([prompts.tokens], lr=0.1, momentum=0.9)

    def iteration():
        with torch.autocast('cuda', torch.bfloat16, enabled=autocast):
            step(net, measure, x)
        optimizer.step()

    iteration()
    _, error = without_waiting(lambda: [iteration() for _ in range(3)])
    if form != 'shallow':
        prompts.relocate(0, 2)
        iteration()  # the one that reads the new owners
        error = error or without_waiting(iteration)[1]
    report(f'{model} {form} {criterion} autocast={autocast}: no host synchronisation', error is None, error or '')


def owners_on_the_device():
    """Owners written past PyTorch's notice are read once somebody says so; a version that moved is noticed."""
    net, prompts = build('vit', 'static', 'cuda')
    other = copy.deepcopy(net)
    other.prompts.relocate(0, 3)
    x = torch.randn(2, 3, 64, 64, device='cuda')
    with torch.no_grad():
        expected = other.eval()(x)
        net.eval()(x)
        prompts.block_index.copy_(other.prompts.block_index)
        report('owners by copy_', torch.equal(net(x), expected))
        prompts.block_index[0] = 0
        net(x)
        prompts.block_index.data.copy_(other.prompts.block_index)
        prompts.owners_changed()
        report('owners by .data.copy_ and owners_changed', torch.equal(net(x), expected))
        with prompts.without(0):
            hidden = net(x)
        report('hidden prompts', not torch.allclose(hidden, expected) and torch.equal(net(x), expected))


def a_session_moves_averages():
    """Relocation with an average, as EMA keeps one, all on the device."""
    net, prompts = build('swin', 'static', 'cuda')
    average = copy.deepcopy(net)
    session = RelocationSession(prompts, torch.optim.SGD([prompts.tokens], lr=0.1, momentum=0.9),
                                dict(type='RandomPruner'), dict(type='UniformAllocator'), averages=[average])
    x, moved = torch.randn(4, 3, 56, 56, device='cuda'), 0
    times = []
    for _ in range(12):
        session.begin_iteration()
        loss = net(x).square().mean()
        loss.backward()
        session.end_iteration(loss)
        torch.cuda.synchronize()
        start = time.perf_counter()
        moved += len(session.close_period().moves)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    same = torch.equal(average.prompts.block_index, prompts.block_index)
    with torch.no_grad():
        average.prompts.tokens.copy_(prompts.tokens)
        report('a session moves owners of an average', same and moved == 12 and torch.allclose(
            average.eval()(x), net.eval()(x), atol=1e-4), f'closing a period: median {sorted(times)[6] * 1e3:.1f} ms')


def compiled():
    """Inductor on the device: equal, and no compilation for a move."""
    from torch._dynamo.testing import CompileCounterWithBackend
    net, prompts = build('vit', 'static', 'cuda')
    measure = CRITERIA['gate_fisher'](prompts, score_interval=1)
    x = torch.randn(4, 3, 64, 64, device='cuda')
    counter = CompileCounterWithBackend('inductor')
    fast = torch.compile(net, backend=counter)
    worst = 0.
    for prompt in range(12):
        eager = step(net, measure, x)
        worst = max(worst, *(float((a - b).abs().max() / b.abs().max())
                             for a, b in zip(step(net, measure, x, fast), eager)))
        prompts.relocate(prompt, (prompt * 5) % 3)
    report('torch.compile (inductor), 12 moves', worst < 5e-3 and counter.frame_count <= 3,
           f'largest relative difference {worst:.1e}, {counter.frame_count} compilations')


def main():
    if not torch.cuda.is_available():
        sys.exit('error: no CUDA device')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(torch.cuda.get_device_name(), torch.__version__, 'timm', timm.__version__)
    owners_on_the_device()
    for model in tqdm(MODELS, unit='model'):
        for form in FORMS:
            for criterion in CRITERIA if form == 'static' else ['taylor']:
                equal_to_cpu(model, form, criterion)
                for autocast in (False, True):
                    nobody_waits(model, form, criterion, autocast)
    a_session_moves_averages()
    compiled()
    sys.exit(1 if FAILED else 0)


if __name__ == '__main__':
    main()
