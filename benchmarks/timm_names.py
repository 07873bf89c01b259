"""Which of timm's models take prompts: every name is tried; none may be accepted and fail later.

    python benchmarks/timm_names.py [NAMES ...] [--out docs/reference/timm_models.md] [--limit SECONDS]

1. Each model is built at its own size on the meta device, which costs no memory, and given prompts. What takes none
   is refused here, by the classes of its modules, which do not depend on its size.
2. Each model that takes prompts is built again at a reduced size, with random weights, and runs with all forms of
   prompts: forward at the model's size, gradients of all prompts and of nothing else, relocation, a small checkpoint.

Ends with status 1 if a model crashes, takes longer than the limit, or is refused without a reason in ``REASONS``.
"""
import argparse
import collections
import contextlib
import copy
import logging
import signal
import sys
import time
import warnings
from pathlib import Path

import timm
import torch
from pages import write_between
from timm.models import list_models, model_entrypoint
from tqdm import tqdm

from mmprovpt import inject_prompts, tuned_state_dict
from mmprovpt.attention.support import find_blocks, full_name
from mmprovpt.backbones.inject import build_prompts
from mmprovpt.errors import ConfigError

FORMS = (dict(type='StaticPrompts', dropout=0.), dict(type='AdaptivePrompts', channel_dropout=0., projector_dropout=0.),
         dict(type='ShallowPrompts', dropout=0.))
MARKS = '<!-- by benchmarks/timm_names.py -->\n', '<!-- end -->\n'
# By timm's module. What has no attention needs no reason.
REASONS = dict(
    byoanet='a CNN with attention in some of its blocks',
    byobnet='a CNN; its pooling attends',
    cait='heads exchange logits, and the last blocks attend from the class token alone',
    coat='keys meet values before queries: there is no softmax over tokens',
    convit='attention by position and by content, mixed by a gate',
    cpubone='a CNN; its attention sees a smaller, convolved map',
    crossvit='two sequences of patches of two sizes, which exchange tokens',
    csatv2='a CNN with a few blocks of attention',
    davit='every second block attends to channels, not to tokens',
    deepseek_vit='encoder of a language model; nobody has vouched for it yet',
    edgenext='attends to channels, not to tokens',
    efficientformer='a CNN with attention in its last stage',
    efficientformer_v2='a CNN; attention on convolved maps',
    efficientvit_mit='linear attention: there is no softmax over tokens',
    efficientvit_msra='each head is given what the one before it made',
    fastvit='a CNN with attention in its last stage',
    gcvit='queries of the whole image in each window',
    gemma4_vit='encoder of a language model; nobody has vouched for it yet',
    hiera='queries are pooled, and units of a mask see only themselves',
    hieradet_sam2='queries are pooled, and windows see only themselves',
    iformer='a CNN; attention modulates a convolution',
    levit='batch norm, keys narrower than values, queries pooled between stages',
    lowformer='a CNN; its attention sees a smaller, convolved map',
    maxxvit='a CNN; attention within blocks and within grids of a map',
    metaformer='convolutions first, attention in the last two stages',
    mobilenetv3='a CNN with blocks of attention, whose heads share keys and values',
    mobilenetv5='a CNN; all heads share keys and values of a smaller map',
    mobilevit='a CNN; attention among pixels of the same place in their patches',
    mvitv2='queries, keys and values are pooled',
    naflexvit='images of several sizes in one sequence',
    nest='blocks of an image see only themselves',
    nextvit='keys of a pooled map',
    pit='a convolution pools tokens between stages',
    pvt_v2='keys of a smaller map',
    qwen3_vit='encoder of a language model; nobody has vouched for it yet',
    shvit='one head, on some of the channels',
    swiftformer='additive attention: queries and keys do not meet',
    swin_transformer_v2_cr='another SwinV2, of other norms and positions; nobody has vouched for it yet',
    tiny_vit='a CNN first; the norm is in the attention',
    tnt='sequences of pixels in each patch',
    twins='keys of a smaller map',
    visformer='a CNN; batch norm',
    vision_transformer='attention beside the MLP, twice in a block, or the difference of two',
    vision_transformer_hybrid='no convolution of its own cuts the patches: a CNN before does',
    vitamin='no convolution of its own cuts the patches: a CNN before does',
    vision_transformer_relpos='relative positions of another module; nobody has vouched for it yet',
    vision_transformer_sam='most blocks cut the image into windows',
    volo='weights of neighbours from one token; the last blocks attend from the class token alone',
    xcit='attends to channels, not to tokens')


def family(name: str) -> str:
    """timm's module, such as 'eva'."""
    return model_entrypoint(name).__module__.rpartition('.')[2]


def built_without_memory(name):
    with torch.device('meta'):
        return timm.create_model(name)


def reductions(model):
    """Arguments for smaller models of an architecture, the smallest first; not every model takes all."""
    stages = len(getattr(model, 'layers', ()))
    if stages:  # Swin
        return [dict(embed_dim=16, depths=(2, ) * stages, num_heads=tuple(2**stage for stage in range(stages))), {}]
    embedding = model.patch_embed
    size = dict(img_size=4 * (embedding.feat_ratio() if hasattr(embedding, 'feat_ratio') else embedding.patch_size[0]))
    small = dict(depth=2, embed_dim=96, num_heads=2)
    if hasattr(model.blocks[0].attn, 'num_kv_groups'):  # some give a number for each of their blocks
        shared = any(block.attn.num_kv_groups > 1 for block in model.blocks)
        small.update(num_kv_heads=1 if shared else 2)
    return [dict(small, **size), dict(depth=2, **size), dict(depth=2), {}]


def build_small(name):
    """A small model with random weights, and what was reduced."""
    for arguments in reductions(built_without_memory(name)):
        try:
            torch.manual_seed(0)
            model = timm.create_model(name, num_classes=3, **arguments)
        except (AssertionError, TypeError, ValueError, RuntimeError):  # it does not take them
            continue
        with torch.no_grad():
            for key, parameter in model.named_parameters():  # zeros and ones at the start would hide mistakes
                spread = 0.1 if parameter.dim() < 2 else parameter[0].numel()**-0.5
                parameter.copy_(torch.randn(parameter.shape) * spread + ('norm' in key and parameter.dim() < 2))
        return model.eval(), arguments
    raise RuntimeError('timm builds it neither small nor as it is')


def try_prompts(model, form):
    """All that a prompted model must do; AssertionError where it does not."""
    plain, fresh = copy.deepcopy(model), copy.deepcopy(model)
    shallow = form['type'] == 'ShallowPrompts'
    prompts = inject_prompts(model, dict(form, num_tokens=2))
    with torch.no_grad():
        prompts.tokens.normal_()
    size = getattr(model.patch_embed, 'img_size', None) or (224, 224)
    x = torch.randn(2, 3, *size)
    model.train()(x).square().sum().backward()
    with_gradient = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {f'prompts.{key}' for key, _ in prompts.named_parameters()}, 'gradients elsewhere'
    assert prompts.tokens.grad.isfinite().all() and prompts.tokens.grad.abs().sum(1).all(), 'prompts without gradient'
    with torch.no_grad():
        before = model.eval()(x)
        assert before.isfinite().all() and not torch.allclose(before, plain(x)), 'prompts change nothing'
        if not shallow:
            prompts.relocate(0, prompts.num_blocks - 1)
            assert not torch.allclose(model(x), before), 'a move changes nothing'
        inject_prompts(fresh, dict(form, num_tokens=2))
        fresh.load_state_dict(tuned_state_dict(model))
        assert torch.equal(fresh.eval()(x), model(x)), 'a small checkpoint is not the model'


@contextlib.contextmanager
def time_limit(seconds):
    def stop(*args):
        raise TimeoutError(f'longer than {seconds} s')

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def try_name(name, limit):
    """('works', attention and what was reduced), ('refused' or 'none', message) or ('crashes', error)."""
    try:
        with time_limit(limit):
            try:
                model = built_without_memory(name)
                blocks = find_blocks(model)
                build_prompts(model, blocks, dict(type='StaticPrompts', num_tokens=1))
            except ConfigError as error:
                what = str(error).split('. Prompts are read by attention')[0].split(', which is not known')[0]
                return ('none' if 'has no attention at all' in what else 'refused'), what
            small, arguments = build_small(name)
            for form in FORMS:
                try_prompts(copy.deepcopy(small), form)
            return 'works', (full_name(type(blocks[0].attention)).removeprefix('timm.'),
                             'small' if 'embed_dim' in arguments else 'shallow' if arguments else 'whole')
    except Exception as error:  # whatever it is, it is what this script looks for
        return 'crashes', f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'


def table(results):
    """Markdown: what works, what is refused and why, what crashes."""
    families = collections.defaultdict(list)
    for name, (result, detail) in results.items():
        families[family(name)].append((name, result, detail))
    counts = collections.Counter(result for result, _ in results.values())
    lines = ["| of timm's names | |", '|---|---|', f'| work | {counts["works"]} |',
             f'| have attention and are refused | {counts["refused"]} |',
             f'| have none that is known as such, and are refused | {counts["none"]} |',
             f'| crash later | {counts["crashes"]} |', '',
             '| `timm.models.…` | names | attention |', '|---|---|---|']
    for module, entries in sorted(families.items()):
        works = [detail for _, result, detail in entries if result == 'works']
        if works:
            kinds = ', '.join(f'`{kind}`' for kind in sorted({kind for kind, _ in works}))
            names = 'all ' * (len(works) == len(entries)) + str(len(works))
            names += '' if len(works) == len(entries) else f' of {len(entries)}'
            lines.append(f'| `{module}` | {names} | {kinds} |')
    lines += ['', '| refused | names | because |', '|---|---|---|']
    for module, entries in sorted(families.items()):
        refused = [name for name, result, _ in entries if result == 'refused']
        if refused:
            named = f'{len(refused)}' if len(refused) == len(entries) else ', '.join(f'`{name}`' for name in refused)
            lines.append(f'| `{module}` | {named} | {REASONS.get(module, "?")} |')
    lines += ['', *(f'- `{name}` crashes: {detail}' for name, (result, detail) in results.items()
                    if result == 'crashes')]
    return '\n'.join(lines).rstrip() + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help='default: all of timm')
    parser.add_argument('--out', type=Path, help='page whose tables to replace')
    parser.add_argument('--limit', type=int, default=120, help='seconds for a name')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    start, results, slowest = time.time(), {}, ('', 0.)
    for name in tqdm(args.names or list_models(), unit='name'):
        begun = time.time()
        results[name] = try_name(name, args.limit)
        slowest = max(slowest, (name, time.time() - begun), key=lambda each: each[1])
        if args.names or results[name][0] == 'crashes':
            print(name, *results[name], sep=': ', flush=True)
    sizes = collections.Counter(detail[1] for result, detail in results.values() if result == 'works')
    larger = [name for name, (result, detail) in results.items() if result == 'works' and detail[1] != 'small']
    print(f'{time.time() - start:.0f} s, {time.process_time():.0f} s of a CPU, for {len(results)} names, '
          f'at most {slowest[1]:.0f} s ({slowest[0]}); '
          f'of those that work ran {dict(sizes)}, not small {larger}')
    write_between(MARKS, table(results), args.out)
    unexplained = {family(name) for name, (result, _) in results.items() if result == 'refused'} - set(REASONS)
    if unexplained or any(result == 'crashes' for result, _ in results.values()):
        sys.exit(f'without a reason: {sorted(unexplained)}' if unexplained else 'some crash')


if __name__ == '__main__':
    main()
