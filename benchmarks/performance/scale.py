"""How time and memory grow with the work: prompts, blocks, pixels, periods, processes; curves in one figure.

    python benchmarks/performance/scale.py [--out work_dirs/scale] [--rounds 3] [--only prompts blocks ...]

Writes scale.json, and scale.png with one panel for each. A step is of a ViT-S/16 with prompts in every block (batch 1,
112 px, 12 blocks, 10 prompts per block, unless that is what grows; 4 blocks where pixels do), in CPU time; memory is
what autograd keeps for backward, which does not depend on the machine. Closing a period is score, decision, moves and a
line of a log, with 12 blocks and 120 prompts over the periods, and 48 and 4800 over the processes; of several, gloo's
sums and broadcasts are in it, and the time is that of the first one, of the CPU and, dashed, on the wall.
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing
from torch import distributed
from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]  # from a clone, installed or not

import mmprovpt  # noqa: E402
from mmprovpt.prompts import StaticPrompts  # noqa: E402
from mmprovpt.relocation import RelocationSession  # noqa: E402

SIZES = dict(prompts=(1, 3, 10, 30, 100, 300, 1000), blocks=(12, 24, 36, 48), pixels=(224, 384, 512, 768, 1024),
             periods=(10, 100, 1000, 10000), processes=(1, 2, 4))
BLOCKS, PROMPTS = 48, 4800
DECISION_LIMIT = 50  # ms


def network(prompts=10, blocks=12, pixels=112):
    """A prompted ViT-S/16."""
    import timm
    torch.manual_seed(0)
    model = timm.create_model('vit_small_patch16_224', img_size=pixels, depth=blocks, num_classes=10)
    mmprovpt.inject_prompts(model, dict(type='StaticPrompts', num_tokens=prompts))
    return model.train(), torch.randn(1, 3, pixels, pixels)


def kept(model, x):
    """MiB that autograd keeps for backward, each storage once, without parameters and buffers."""
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        model(x)
    return sum(seen.values()) / 2**20


def steps(rounds, **grown):
    """CPU milliseconds of a step, and MiB."""
    model, x = network(**grown)
    memory = kept(model, x)
    times = []
    for _ in range(rounds + 1):  # the first warms up
        start = time.process_time()
        model(x).square().mean().backward()
        times.append(1000 * (time.process_time() - start))
    return dict(ms=times[1:], mib=memory)


def session(blocks, prompts):
    """Prompts and their relocation, without a model."""
    torch.manual_seed(0)
    rows = StaticPrompts(prompts // blocks, patch_fan_in=768, widths=[384] * blocks)
    optimizer = torch.optim.SGD([rows.tokens], lr=0.1, momentum=0.9)
    return RelocationSession(rows, optimizer, dict(type='IdlenessPruner', criterion='taylor'))


def close(relocation, log):
    """Milliseconds on the wall and of the CPU of closing a period of one iteration, whose gradients are random."""
    rows = relocation.prompts
    relocation.begin_iteration()
    loss = (rows.tokens * torch.randn_like(rows.tokens)).sum() + 1.
    loss.backward()
    relocation.end_iteration(loss.detach())
    start, cpu = time.perf_counter(), time.process_time()
    period = relocation.close_period()
    if period is not None:  # on the first process
        log.write(json.dumps(dict(period._asdict(), distribution=rows.distribution.tolist())) + '\n')
        log.flush()
    return 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - cpu)


def periods(counts):
    """Of a run as long as the last: the latest tenth's time to close a period, and bytes of the state."""
    relocation = session(12, 120)
    found, times = {}, []
    with tempfile.TemporaryFile('w', encoding='utf-8') as log:
        for number in range(1, max(counts) + 1):
            times.append(close(relocation, log))
            if number in counts:
                with tempfile.TemporaryFile('w+b') as file:
                    torch.save(relocation.state_dict(), file)
                    latest = times[-max(number // 10, 5):]
                    found[number] = dict(ms=[cpu for _, cpu in latest], mib=file.tell() / 2**20)
    return found


def worker(rank, world, folder, count):
    """One of several processes that close periods together."""
    torch.set_num_threads(1)
    if world > 1:
        distributed.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=world)
    relocation = session(BLOCKS, PROMPTS)
    with open(f'{folder}/log{rank}', 'w', encoding='utf-8') as log:
        times = [close(relocation, log) for _ in range(count + 3)][3:]  # the first warm up
    if rank == 0:
        Path(folder, 'times').write_text(json.dumps(times), encoding='utf-8')


def processes(world, count=30):
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (world, folder, count), nprocs=world)
        times = json.loads(Path(folder, 'times').read_text(encoding='utf-8'))
        return dict(ms=[cpu for _, cpu in times], wall=[wall for wall, _ in times])


def measure(only, rounds, save):
    for what in only:
        if what == 'periods':
            save(what, periods(SIZES[what]))
            continue
        found = {}
        for size in tqdm(SIZES[what], desc=what):
            found[size] = processes(size) if what == 'processes' else steps(
                rounds, **{what: size}, **(dict(blocks=4) if what == 'pixels' else {}))
            print(what, size, f'{statistics.median(found[size]["ms"]):.1f} ms', flush=True)
        save(what, found)


def draw(report, file):
    """One panel for each thing that grows: milliseconds, and MiB where memory grows."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(4 * len(report), 3.2), layout='constrained')
    for axes, (what, found) in zip(figure.subplots(1, len(report), squeeze=False)[0], report.items()):
        sizes = [int(size) for size in found]
        middle = [statistics.median(each['ms']) for each in found.values()]
        low, high = ([statistics.quantiles(each['ms'], n=10)[i] for each in found.values()] for i in (0, -1))
        axes.fill_between(sizes, low, high, alpha=0.2)
        axes.plot(sizes, middle, marker='o', color='C0')
        is_step = what in ('prompts', 'blocks', 'pixels')
        axes.set_xlabel({'prompts': 'prompts per block', 'pixels': 'side of the image, pixels'}.get(what, what))
        axes.set_ylabel('step, CPU ms' if is_step else 'closing a period, CPU ms', color='C0')
        axes.set_xscale('log' if what == 'periods' else 'linear')
        if what == 'processes':
            axes.plot(sizes, [statistics.median(each['wall']) for each in found.values()], linestyle='--', color='C0')
            axes.axhline(DECISION_LIMIT, color='grey', linestyle=':')
        axes.set_ylim(bottom=0)
        if all('mib' in each for each in found.values()):
            other = axes.twinx()
            other.plot(sizes, [each['mib'] for each in found.values()], marker='s', color='C1')
            other.set_ylabel('kept for backward, MiB' if is_step else 'state in a checkpoint, MiB', color='C1')
            other.set_ylim(bottom=0)
    figure.savefig(file, dpi=90)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/scale'))
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--only', nargs='*', choices=list(SIZES), default=list(SIZES))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / 'scale.json'
    # --only goes on where another run stopped.
    report = json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}

    def save(what, found):
        report[what] = found
        file.write_text(json.dumps(report, indent=1), encoding='utf-8')
        draw({name: report[name] for name in SIZES if name in report}, args.out / 'scale.png')

    measure(args.only, args.rounds, save)
    print(f'{file} and scale.png are written')


if __name__ == '__main__':
    main()
