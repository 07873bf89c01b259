# A task of FGVC, chosen from outside: TASK=cars python tools/train.py configs/fgvc/vit_b_lora.py
_base_ = '../datasets/fgvc.py'
# Below `_base_`: MMEngine takes a file that begins with an import for a config of its lazy kind.
from mmprovpt.datasets.fgvc_tasks import find_fgvc_task  # noqa: E402

task = '{{$TASK:cub}}'
num_classes = find_fgvc_task(task).num_classes  # for an unknown task the error names those that there are
# In each block. VPT's numbers, which PRO-VPT takes over.
num_tokens = dict(cub=10, nabirds=50, flowers=5, dogs=100, cars=200)[task]
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(task=task))
