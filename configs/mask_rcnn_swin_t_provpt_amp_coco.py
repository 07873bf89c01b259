# PRO-VPT: as mask_rcnn_swin_t_provpt_coco.py, in mixed precision.
_base_ = 'mask_rcnn_swin_t_provpt_coco.py'

optim_wrapper = dict(type='AmpOptimWrapper')
