# VPT-Deep: as mask_rcnn_swin_t_vpt_coco.py, in mixed precision.
_base_ = 'mask_rcnn_swin_t_vpt_coco.py'

optim_wrapper = dict(type='AmpOptimWrapper')
