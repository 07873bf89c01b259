# PRO-VPT: as its VPT twin, and prompts relocate (PRO-VPT, Table vii: 34.6 AP^b, 33.4 AP^m).
_base_ = ['mask_rcnn_swin_t_vpt_coco.py', '_base_/methods/relocation.py']

# A period is an epoch in the paper's classification runs of 100 epochs. 1x has 12 epochs of 7330 iterations (16 images
# each), so a period of 1000 iterations gives about as many relocations.
custom_hooks = [dict(_base_.custom_hooks[0], interval=1000, by_epoch=False)]
