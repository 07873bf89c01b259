"""Files in the published layouts, with random weights: the real ones have hundreds of megabytes."""
import numpy as np
import torch


def randomise(model):
    """Draw every parameter of a timm model: zeros and ones at the start would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Wide enough that a mistake in any place shows in the features, and heads attend unevenly.
            scale = 0.02 if name == 'pos_embed' else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + ('norm' in name))
    return model.eval()


def jax(model, path):
    """ViT-B_16.npz and its siblings: kernels are (in, out), attention has an axis of heads, convolutions are HWIO."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    out = {'cls': state['cls_token'], 'Transformer/posembed_input/pos_embedding': state['pos_embed'],
           'embedding/kernel': state['patch_embed.proj.weight'].transpose(2, 3, 1, 0),
           'embedding/bias': state['patch_embed.proj.bias'],
           'Transformer/encoder_norm/scale': state['norm.weight'], 'Transformer/encoder_norm/bias': state['norm.bias']}
    width = model.embed_dim
    heads = (model.blocks[0].attn.num_heads, width // model.blocks[0].attn.num_heads)
    for i in range(len(model.blocks)):
        ours, theirs = f'blocks.{i}.', f'Transformer/encoderblock_{i}/'
        for a, b in (('norm1', 'LayerNorm_0'), ('norm2', 'LayerNorm_2')):
            out[f'{theirs}{b}/scale'], out[f'{theirs}{b}/bias'] = state[f'{ours}{a}.weight'], state[f'{ours}{a}.bias']
        attention = f'{theirs}MultiHeadDotProductAttention_1/'
        for n, name in enumerate(('query', 'key', 'value')):
            rows = slice(n * width, (n + 1) * width)
            out[f'{attention}{name}/kernel'] = state[f'{ours}attn.qkv.weight'][rows].T.reshape(width, *heads)
            out[f'{attention}{name}/bias'] = state[f'{ours}attn.qkv.bias'][rows].reshape(heads)
        out[f'{attention}out/kernel'] = state[f'{ours}attn.proj.weight'].T.reshape(*heads, width)
        out[f'{attention}out/bias'] = state[f'{ours}attn.proj.bias']
        for n in (0, 1):
            out[f'{theirs}MlpBlock_3/Dense_{n}/kernel'] = state[f'{ours}mlp.fc{n + 1}.weight'].T
            out[f'{theirs}MlpBlock_3/Dense_{n}/bias'] = state[f'{ours}mlp.fc{n + 1}.bias']
    out.update({'pre_logits/kernel': np.ones((width, width), np.float32), 'pre_logits/bias': np.ones(width, np.float32),
                'head/kernel': np.ones((width, 5), np.float32), 'head/bias': np.ones(5, np.float32)})
    np.savez(path, **out)


def mae(model, path):
    """mae_pretrain_vit_base.pth; positions are fixed, with 0 for the class token."""
    with torch.no_grad():
        model.pos_embed[:, 0] = 0
    torch.save(dict(model=model.state_dict()), path)


def moco(model, path):
    """linear-vit-b-300ep.pth.tar, saved from DistributedDataParallel."""
    with torch.no_grad():
        model.pos_embed[:, 0] = 0
    state = {f'module.{key}': value for key, value in model.state_dict().items()}
    state.update({'module.head.weight': torch.ones(5, model.embed_dim), 'module.head.bias': torch.ones(5)})
    torch.save(dict(epoch=90, arch='vit_base', state_dict=state, best_acc1=torch.tensor(76.7), optimizer={}), path)


def dinov2(model, path):
    """dinov2_vitb14_pretrain.pth."""
    torch.save(dict(model.state_dict(), mask_token=torch.ones(1, model.embed_dim)), path)


def swin(model, path):
    """swin_base_patch4_window7_224_22k.pth: patches are merged at the end of a stage; buffers were saved."""
    state = {}
    for key, value in model.state_dict().items():
        if '.downsample.' in key:
            _, stage, rest = key.split('.', 2)
            key = f'layers.{int(stage) - 1}.{rest}'
        state[key] = value
    for name, module in model.named_modules():
        for buffer in ('relative_position_index', 'attn_mask'):
            if getattr(module, buffer, None) is not None:
                state[f'{name}.{buffer}'] = getattr(module, buffer)
    state.update({'head.weight': torch.ones(5, model.num_features), 'head.bias': torch.ones(5)})
    torch.save(dict(model=state), path)


def plain(model, path):
    """What timm itself saves."""
    torch.save(model.state_dict(), path)
