"""What each process of tests/test_tasks/test_distributed.py does (new processes import it by name)."""
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from tasks_toy import CLASSES, build, joined

# Which tasks train → the tasks of the steps.
RUNS = {('classify', ): ['classify'] * 3, ('classify', 'segment'): ['classify', 'segment'] * 2}


def batch(task, step, samples):
    """Of four images in a step, those with these numbers."""
    from mmengine.structures import PixelData
    from mmpretrain.structures import DataSample
    from mmseg.structures import SegDataSample
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    maps = torch.randint(0, CLASSES, (4, 1, 32, 32), generator=generator)
    data = [SegDataSample(gt_sem_seg=PixelData(data=each), metainfo=dict(img_shape=(32, 32))) if task == 'segment'
            else DataSample().set_gt_label(number % CLASSES) for number, each in enumerate(maps)]
    return dict(inputs=[images[i] for i in samples], data_samples=[data[i] for i in samples], task=task)


def train(trained, samples, wrap=lambda model: model):
    """A few steps; returns what is trained, and nothing else has changed."""
    model = build(joined(train=list(trained)))
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval().train = lambda mode=True: None  # its statistics are a process's own
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = OptimWrapper(torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1, momentum=0.9))
    wrapped = wrap(model.train())
    for step, task in enumerate(RUNS[trained]):
        wrapped.train_step(batch(task, step, samples), optimizer)
    state = model.state_dict()
    return {key: value for key, value in state.items() if not torch.equal(value, before[key])}


def worker(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{path}/rendezvous', rank=rank, world_size=2)
    results = {trained: train(trained, [rank, rank + 2], lambda model, trained=trained: MMDistributedDataParallel(
        model, broadcast_buffers=False, find_unused_parameters=len(trained) > 1)) for trained in RUNS}
    torch.save(results, f'{path}/{rank}.pth')
    dist.destroy_process_group()
