# A task of the miniature of VTAB-1k, at 42 pixels, chosen from outside:
# TASK=count python tools/train.py configs/miniature_vtab/lora.py
# tools/dataset_converters/miniature_vtab.py makes the data.
_base_ = '../datasets/vtab1k.py'
# Below `_base_`: MMEngine takes a file that begins with an import for a config of its lazy kind.
from mmprovpt.datasets.miniature_tasks import find_miniature_task  # noqa: E402

task = '{{$TASK:category}}'
num_classes = len(find_miniature_task(task).classes)  # for an unknown task the error names those that there are
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(42, 42)),
    dict(type='PackInputs')
]
train_dataloader = val_dataloader = test_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='data/miniature-vtab', task=task, num_classes=num_classes, pipeline=pipeline))
