# PRO-VPT: as its VPT twin, and prompts relocate (PRO-VPT, Table vii: 40.0 mIoU SS, 41.0 MS).
_base_ = ['setr_pup_vit_b_vpt_ade20k.py', '_base_/methods/provpt_160k.py']
