# PRO-VPT: as its VPT twin, and prompts relocate.
_base_ = ['setr_naive_vit_b_vpt_ade20k.py', '_base_/methods/provpt_160k.py']
