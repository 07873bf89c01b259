"""What tuning by prompts takes: time, memory and bytes on disk, beside a plain forward and other methods.

    python benchmarks/performance/performance.py [--plan auto] [--seconds 900] [--out work_dirs/performance]

Writes performance.json and performance.md into the folder, after each row. A row is a model, what is done with it, a
precision and a batch; the methods of a row take turns in one process (A B C, A B C, ...). Ratios are to a plain
forward of the same batch, or to full fine-tuning of detectors and segmentors; they are medians of the rounds' ratios,
with the smallest and the largest. A step is forward, backward and the optimizer's step (AdamW), of PRO-VPT with
scoring, averaged over a period of it; closing a period stands apart. On a CPU, memory is that of a process of its own.
What fails (no memory, no package) is said in the table, and the rest goes on.
"""
import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

STARTED = time.monotonic()  # imports count
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]  # from a clone, installed or not

import measures  # noqa: E402
import subjects  # noqa: E402
import tables  # noqa: E402
import torch  # noqa: E402

PROMPTED = ('VPT 10', 'VPT 50', 'VPT 100')
ALL = ('linear', *PROMPTED, 'PRO-VPT 10', 'VAPT 10', 'LoRA', 'concatenated 10', 'concatenated 100', 'full')
INFERRED = ('VPT 10', 'VPT 50', 'VPT 100', 'VAPT 10', 'concatenated 10', 'concatenated 100')
DENSE = ('full', 'linear', 'VPT 10', 'VPT 50', 'PRO-VPT 10', 'VAPT 10', 'LoRA')


class Row(NamedTuple):
    """What is measured in turn."""
    model: str
    what: str  # 'step', 'inference' or 'memory'
    precision: str
    batch: int
    methods: tuple
    side: int | None = None

    @property
    def size(self):
        """Height and width."""
        return (self.side, self.side) if self.side else subjects.size_of(self.model)


def without(methods, *left_out):
    return tuple(each for each in methods if not each.startswith(left_out))


SWIN = without(ALL, 'concatenated')


def gpu_plan():
    """In the order of importance. Batches keep the device busy: at batch 1 the host's launches count."""
    fast = ('bf16', 'tf32')
    batches = dict(bf16=64, tf32=64, float32=32)
    steps = [Row('ViT-B', 'step', each, batch, ALL) for each, batch in batches.items()]
    swin = [Row('Swin-T', 'step', each, batch, SWIN) for each, batch in batches.items()]
    inference = [Row(model, 'inference', each, batch, INFERRED if model == 'ViT-B' else without(INFERRED, 'conc'))
                 for batch, each in ((32, 'bf16'), (32, 'tf32'), (1, 'bf16'), (32, 'float32'), (1, 'tf32'))
                 for model in ('ViT-B', 'Swin-T')]
    return [*steps, *swin, *inference,
            *(Row('ViT-L', 'step', each, 32, ALL) for each in fast),
            *(Row('SETR ViT-B', 'step', each, 8, DENSE) for each in fast),
            *(Row('Mask R-CNN Swin-T', 'step', each, 2, DENSE) for each in fast),
            *(Row('ViT-S', 'step', each, batch, ALL) for each, batch in batches.items()),
            *(Row('Swin-B', 'step', each, 64, SWIN) for each in fast),
            *(Row(model, 'inference', each, 32, without(INFERRED, 'conc'))
              for model in ('ViT-L', 'ViT-S', 'Swin-B') for each in fast),
            Row('ViT-L', 'step', 'float32', 16, ALL), Row('SETR ViT-B', 'step', 'float32', 8, DENSE),
            Row('Swin-B', 'step', 'float32', 32, SWIN)]


def cpu_plan():
    """What TARGETS need, in the order of their importance, some 15 minutes on two cores; then the other models."""
    pair = ('VPT 10', 'PRO-VPT 10')
    deep = ('VPT 10', 'VPT 100')
    bf16 = ('VPT 10', 'VPT 10 @bf16', 'full', 'full @bf16')
    cat = ('concatenated 10', 'concatenated 100')
    return [Row('ViT-B', 'step', 'float32', 4, ('linear', *deep, *cat, 'full')),
            Row('Swin-T', 'step', 'float32', 8, ('linear', *deep, 'full')),
            Row('ViT-B', 'step', 'float32', 1, (*pair, 'VAPT 10', 'VPT-Shallow 10', 'LoRA')),
            Row('Swin-T', 'step', 'float32', 2, (*pair, 'VAPT 10', 'VPT-Shallow 10', 'LoRA')),
            Row('Mask R-CNN Swin-T', 'step', 'float32', 1, ('full', 'linear', 'VPT 10')),
            *(Row(model, 'inference', 'float32', batch, (*deep, *(f'{each} folded' for each in deep)))
              for model, batch in (('ViT-B', 8), ('ViT-B', 1), ('Swin-T', 8), ('Swin-T', 1), ('ViT-S', 8),
                                   ('Swin-B', 4), ('ViT-L', 2))),
            Row('ViT-B', 'step', 'float32', 2, bf16), Row('Swin-T', 'step', 'float32', 4, bf16),
            Row('ViT-B', 'memory', 'float32', 16, ('linear', *deep, *cat, 'full')),
            Row('Swin-T', 'memory', 'float32', 16, ('linear', *deep, 'full')),
            Row('Mask R-CNN Swin-T', 'memory', 'float32', 1, ('full', 'VPT 10')),
            *(Row(model, 'step', 'float32', batch, ('linear', *deep, 'LoRA', 'full'))
              for model, batch in (('ViT-S', 8), ('Swin-B', 2), ('ViT-L', 1))),
            Row('SETR ViT-B', 'step', 'float32', 1, ('full', 'linear', 'VPT 10', 'PRO-VPT 10', 'LoRA')),
            Row('SETR ViT-B', 'memory', 'float32', 1, ('full', 'VPT 10')),
            *(Row(model, 'inference', 'bf16', 8, deep) for model in ('ViT-B', 'Swin-T'))]


def camvid_plan():
    """The heads of the study on CamVid, at its batch of 8; a step to that of full fine-tuning."""
    heads, methods = ('UPerNet ViT-S', 'Mask2Former ViT-S'), ('full', 'linear', 'VPT 10', 'PRO-VPT 10', 'LoRA')
    return [*(Row(head, 'step', 'bf16', 8, methods) for head in heads),
            *(Row(head, 'memory', 'bf16', 8, methods) for head in heads)]


def trial_plan():
    """A model of a few thousand weights, to try the harness itself."""
    return [Row('ViT-tiny', 'step', 'float32', 2, ALL, 32), Row('ViT-tiny', 'step', 'bf16', 2, ('VPT 10', 'full'), 32),
            Row('ViT-tiny', 'inference', 'float32', 1, INFERRED, 32),
            Row('ViT-tiny', 'memory', 'float32', 2, ('VPT 10', 'full'), 32),
            Row('SETR ViT-B', 'step', 'float32', 2, DENSE, 64),
            Row('Mask R-CNN Swin-T', 'step', 'float32', 1, DENSE, 128)]


PLANS = dict(cpu=cpu_plan, gpu=gpu_plan, camvid=camvid_plan, trial=trial_plan)


class Clock:
    """Time that is left; a measurement that does not fit any more is not begun."""

    def __init__(self, limit):
        self.end = STARTED + limit

    def left(self):
        return self.end - time.monotonic()

    def check(self, needed=0.):
        if self.left() < needed:
            raise TimeoutError('no time was left')


def reason(error):
    """One line."""
    return f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ""}'[:150]


def measure(row, base, clock, args):
    """{key: what was found} of a row, on a model that is built and on its device."""
    measures.set_precision(row.precision, args.device)
    batch = subjects.images(row.model, row.size, row.batch, args.device)
    found = dict(memory={}, checkpoint={}, wall={}, cpu={}, closing={}, notes={})
    unit = 'full' if row.model in subjects.DENSE else 'plain'
    ready = {}
    for method in dict.fromkeys((unit, *row.methods)):
        subject = None
        try:
            clock.check(3)
            subject = subjects.Subject(base, method, row.precision, args.device)
            ready[method] = (subject, warm_up(row, subject, batch, found))
        except TimeoutError as error:
            found['notes'][method] = str(error)
        except Exception as error:  # a method that fails is a result, too
            found['notes'][method] = reason(error)
            del subject
            measures.free_memory(args.device)
    if unit not in ready:
        return dict(found, rounds=0)
    shortest = measures.seconds(*ready[unit][1], 1, args.device)[0]
    # All alike, and whole periods of scoring.
    period = max(subject.iterations for subject, _ in ready.values())
    repeat = -(-max(1, min(50, round(args.at_least / 1000 / shortest))) // period) * period
    begun = time.monotonic()
    for done in range(1, args.rounds + 1):  # noqa: B007
        start = time.monotonic()
        times = {method: measures.seconds(*call, repeat, args.device) for method, (_, call) in ready.items()}
        for method, (wall, cpu) in times.items():
            found['wall'].setdefault(method, []).append(wall)
            found['cpu'].setdefault(method, []).append(cpu)
            close(ready[method][0], found, args.device)
        last = time.monotonic() - start
        if clock.left() < 1.2 * last + 2 or time.monotonic() - begun + last > args.row_seconds:
            break
    return dict(found, rounds=done, repeat=repeat, unit=unit)


def warm_up(row, subject, batch, found):
    """Call once or twice; returns what is to be timed, and on what."""
    if row.what == 'inference':
        measures.seconds(subject.inferring, batch, 2, subject.device)
        return subject.inferring, batch

    def train():
        subject.begin_training()
        for _ in range(2 if subject.device.type == 'cuda' else 1):
            subject.step(batch)

    if subject.device.type == 'cuda':
        subject.look(batch)
        found['memory'][subject.name] = measures.peak_above(train, subject.device)
    else:
        train()
    found['checkpoint'][subject.name] = subject.checkpoint_bytes()
    return subject.training, batch


def close(subject, found, device):
    """Close a period of PRO-VPT, which moves a prompt."""
    if subject.session is not None and subject.model.training:
        measures.wait_for(device)
        start = time.perf_counter()
        subject.session.close_period()
        measures.wait_for(device)
        found['closing'].setdefault(subject.name, []).append(time.perf_counter() - start)


def memory_of_process(row, method, args):
    """MiB above the model in a step, in a process of its own."""
    command = [sys.executable, __file__, '--only-memory', json.dumps([row, method]), '--library', args.library,
               '--threads', str(args.threads)]
    env = dict(os.environ, MALLOC_MMAP_THRESHOLD_='1048576', MALLOC_TRIM_THRESHOLD_='1048576')
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or 'killed').splitlines()[-1])
    return float(done.stdout.split()[-1])


def only_memory(text, args):
    """What a process of its own does."""
    fields, method = json.loads(text)
    row = Row(*fields)
    base = subjects.build(row.model, args.library, row.size)
    batch = subjects.images(row.model, row.size, row.batch, 'cpu')
    subject = subjects.Subject(base, method, row.precision, 'cpu')
    subject.look(batch)

    def train():
        subject.begin_training()
        for _ in range(2):
            subject.step(batch)

    print(measures.peak_above(train, 'cpu'))


def measure_memory(row, clock, args):
    found = dict(memory={}, notes={}, rounds=1)
    for method in row.methods:
        try:
            clock.check(10)
            found['memory'][method] = memory_of_process(row, method, args)
        except Exception as error:  # as above
            found['notes'][method] = reason(error)
    return found


def run(plan, clock, args, save):
    """Measure row by row; ``save`` gets each."""
    models = {}
    for row in tqdm(plan, unit='row', disable=None):
        result = dict(row._asdict(), size=row.size)
        if clock.left() < 8:
            save(dict(result, rounds=0, notes=dict(all='no time was left')))
            continue
        try:
            if row.what == 'memory':
                result.update(measure_memory(row, clock, args))
            else:
                key = (row.model, row.size)
                if key not in models:
                    models.clear()
                    measures.free_memory(args.device)
                    try:
                        models[key] = subjects.build(row.model, args.library, row.size).to(args.device)
                    except Exception as error:  # the same for all rows of this model
                        models[key] = error
                if isinstance(models[key], Exception):
                    raise models[key]
                result.update(measure(row, models[key], clock, args))
        except Exception as error:  # as above
            result.update(rounds=0, notes=dict(all=reason(error)))
        measures.free_memory(args.device)
        print(f'{time.monotonic() - STARTED:6.1f} s  {row.model} {row.what} {row.precision} {row.batch} '
              f'{result.get("notes") or ""}', flush=True)
        save(result)


def about(args):
    device = torch.cuda.get_device_name() if args.device == 'cuda' else next(
        (line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
         if line.startswith('model name')), platform.machine())
    return dict(device=device, gpu=args.device == 'cuda', threads=torch.get_num_threads(), torch=torch.__version__,
                python=platform.python_version(), library=args.library, command=' '.join(sys.argv[1:]))


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--plan', choices=['auto', *PLANS], default='auto', help='auto: gpu or cpu, as found')
    parser.add_argument('--only', nargs='+', metavar='MODEL', help='models of the plan, e.g. ViT-B Swin-T')
    parser.add_argument('--what', nargs='+', choices=['step', 'inference', 'memory'], help='rows of the plan')
    parser.add_argument('--seconds', type=float, default=900, help='stop by then, imports included')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--row-seconds', type=float, default=60, help='fewer rounds of a row that would take longer')
    parser.add_argument('--at-least', type=float, default=25, help='ms of plain forwards timed at once')
    parser.add_argument('--batch', type=int, help='in place of that of the plan')
    parser.add_argument('--library', choices=['mmpretrain', 'timm'], default='mmpretrain', help='of the backbones')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/performance'))
    parser.add_argument('--only-memory', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.plan == 'auto':
        args.plan = 'gpu' if args.device == 'cuda' else 'cpu'
    return args


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(args.threads)
    if args.only_memory:
        return only_memory(args.only_memory, args)
    plan = [row._replace(batch=args.batch or row.batch) for row in PLANS[args.plan]()
            if row.model in (args.only or [row.model]) and row.what in (args.what or [row.what])]
    if not plan:
        models = dict.fromkeys(row.model for row in PLANS[args.plan]())
        sys.exit(f'error: --plan {args.plan} has no such rows; its models: {", ".join(models)}')
    gc.freeze()  # collecting what libraries have made takes half a second
    args.out.mkdir(parents=True, exist_ok=True)
    report = dict(about=about(args), rows=[])

    def save(result):
        report['rows'].append(result)
        for name, text in (('json', json.dumps(report, indent=1)), ('md', tables.tables(report))):
            file = args.out / f'performance.{name}'
            file.with_suffix('.part').write_text(text, encoding='utf-8')
            file.with_suffix('.part').replace(file)

    run(plan, Clock(args.seconds), args, save)
    print((args.out / 'performance.md').read_text(encoding='utf-8'))


if __name__ == '__main__':
    main()
