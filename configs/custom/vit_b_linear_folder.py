# Linear probing on an image folder of your own: docs/how-to/custom_data.md.
_base_ = 'vit_b_vpt_folder.py'
model = dict(backbone=dict(prompts=dict(num_tokens=0)))
