# Grounding DINO: MMDetection's config of a Swin-T, with its whole pre-trained model, on COCO. It needs transformers
# and fetches BERT: pip install -e '.[text]'.
_base_ = 'mmdet::grounding_dino/grounding_dino_swin-t_finetune_16xb2_1x_coco.py'
prompts = dict(type='StaticPrompts', num_tokens=10)
# num_cp=0: gradient checkpointing of the encoder needs fairscale.
model = dict(
    backbone=dict(type='mmprovpt.PromptedSwinTransformer', prompts=prompts), encoder=dict(num_cp=0))
# Pre-trained weights have a tenth of the learning rate there. Prompts are new.
optim_wrapper = dict(
    type='mmprovpt.FiniteOptimWrapper', paramwise_cfg=dict(custom_keys={'backbone.prompts': dict(lr_mult=1.0)}))
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook', interval=1000, by_epoch=False)]
