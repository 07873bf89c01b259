# GLIP-T (A): MMDetection's config of a Swin-T, with its whole pre-trained model, on COCO. It needs transformers and
# fetches BERT: pip install -e '.[text]'.
_base_ = 'mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py'
prompts = dict(type='StaticPrompts', num_tokens=10)
model = dict(backbone=dict(type='mmprovpt.PromptedSwinTransformer', prompts=prompts))
optim_wrapper = dict(type='mmprovpt.FiniteOptimWrapper')
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1000, by_epoch=False)]
