# PRO-VPT: as its VPT twin, and prompts relocate.
_base_ = ['mask_rcnn_swin_t_vpt_ms_crop_3x_coco.py', '_base_/methods/relocation.py']

# Three times the iterations of 1x and as many relocations: 88, of 36 epochs of 7330 iterations.
custom_hooks = [dict(_base_.custom_hooks[0], interval=3000, by_epoch=False)]
