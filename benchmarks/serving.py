"""examples/serve.py with all tasks on one backbone against a server for each task: requests a second, and memory.

    python benchmarks/serving.py [CONFIG CHECKPOINT IMAGE...] [--rounds 5] [--requests 60] [--clients 6] [--cores 0]

CONFIG is of a MultiTaskModel. Without it, three classifiers of 100 classes share a random ViT-S/16 at 224 px.
Both kinds of servers run all the time, take turns (A B A B, ...), and are asked the same: each client sends one request
after another, each of an image and a task, in an order drawn at random. Ratios are medians of the rounds' ratios, with
the smallest and the largest. --cores pins all servers, one or several, to the same cores, and leaves the others to the
clients. CPU time is that of the servers, which neighbours disturb less than what the clock says; memory is what no
other process shares.
"""
import argparse
import contextlib
import io
import itertools
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from json import loads
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from mmprovpt.cli.options import read_config
from mmprovpt.cli.runner import build_model
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.trust import load_weights

SERVER = Path(__file__).parents[1] / 'examples/serve.py'


def ask(address, content=None):
    """(status, body) of a request; a body is sent by POST."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, content), timeout=120) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


class Server:
    """A process that serves a checkpoint."""

    def __init__(self, config, checkpoint, options, cores, log):
        with socket.socket() as free:
            free.bind(('localhost', 0))
            port = free.getsockname()[1]
        self.address, self.log = f'http://localhost:{port}', log
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores or mine)  # what is started has the same
        try:
            self.process = subprocess.Popen([sys.executable, SERVER, config, checkpoint, '--port', str(port), *options],
                                            stdout=log, stderr=subprocess.STDOUT)
        finally:
            os.sched_setaffinity(0, mine)

    def wait(self):
        """Until it answers."""
        for _ in range(240):
            try:
                return ask(f'{self.address}/about')
            except OSError as error:
                self.log.seek(0)
                if self.process.poll() is not None:
                    raise RuntimeError(f'the server ended: {self.log.read()}') from error
                time.sleep(0.5)
        raise RuntimeError('the server does not answer')

    def seconds(self):
        """CPU time so far, of all threads."""
        fields = Path(f'/proc/{self.process.pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def memory(self):
        """Bytes that no other process shares."""
        rows = Path(f'/proc/{self.process.pid}/smaps_rollup').read_text(encoding='utf-8')
        return 1024 * sum(map(int, re.findall(r'^Private_(?:Clean|Dirty): +(\d+)', rows, re.M)))

    def batches(self):
        """(batches, samples) so far."""
        about = loads(ask(f'{self.address}/about')[1])
        return np.array([about['batches'], about['samples']])


@contextlib.contextmanager
def serving(config, checkpoint, *options, cores=None):
    """A :class:`Server` that answers."""
    with tempfile.TemporaryFile('w+', encoding='utf-8') as log:  # a pipe that nobody reads would fill up
        server = Server(config, checkpoint, options, cores, log)
        try:
            server.wait()
            yield server
        finally:
            server.process.terminate()
            server.process.wait(30)


def classifiers(count=3):
    """A config of classifiers on one ViT-S/16."""
    head = dict(type='VisionTransformerClsHead', num_classes=100, in_channels=384)
    task = dict(type='ImageClassifier', _scope_='mmpretrain', head=head,
                data_preprocessor=dict(mean=[120.] * 3, std=[60.] * 3, to_rgb=True),
                backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=10)))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(224, 224)), dict(type='PackInputs')]
    names = [f'task{number}' for number in range(count)]
    return Config(dict(
        default_scope='mmengine', model=dict(
            type='mmprovpt.MultiTaskModel', tasks={name: task for name in names},
            backbone=dict(type='VisionTransformer', _scope_='mmpretrain', arch='deit-small', img_size=224)),
        test_dataloader={name: dict(_scope_='mmpretrain', dataset=dict(pipeline=pipeline)) for name in names}))


def apart(cfg, state, folder):
    """Write, for each task, config and checkpoint of a model that has this task alone; gives the files by task."""
    files = {}
    for task in cfg.model.tasks:
        own = Config(dict(default_scope=cfg.default_scope, model=cfg.model.copy(),
                          test_dataloader={task: cfg.test_dataloader[task]}))
        own.model.tasks, own.model.train = {task: cfg.model.tasks[task]}, None
        others = [start for other in cfg.model.tasks if other != task
                  for start in (f'tasks.{other}.', f'backbone.prompts.{other}.')]
        files[task] = folder / f'{task}.py', folder / f'{task}.pth'
        own.dump(files[task][0])
        torch.save(dict(state_dict={key: value for key, value in state.items()
                                    if not key.startswith(tuple(others))}), files[task][1])
    return files


def round_of(servers, requests, clients):
    """(requests a second, CPU seconds of a request, samples of a batch); ``servers`` by task, one or several."""
    different = list(dict.fromkeys(servers.values()))
    before = [(server.seconds(), server.batches()) for server in different]
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda each: ask(f'{servers[each[0]].address}/predict?tasks={each[0]}', each[1]),
                                requests))
    wall = time.perf_counter() - start
    if any(status != 200 for status, _ in answers):
        raise RuntimeError(f'not answered: {next(each for each in answers if each[0] != 200)}')
    batches, samples = sum(server.batches() - each for server, (_, each) in zip(different, before))
    cpu = sum(server.seconds() - each for server, (each, _) in zip(different, before))
    return len(requests) / wall, cpu / len(requests), samples / batches


def compare(together, alone, images, args):
    """Rows of the table, and the medians of the ratios of one server to several, each with its range."""
    draw = random.Random(0)
    tasks = [task for _, task in zip(range(args.requests), itertools.cycle(alone))]
    found = []
    for number in range(args.rounds + 1):
        draw.shuffle(tasks)
        requests = [(task, draw.choice(images)) for task in tasks]
        pair = [round_of(servers, requests, args.clients) for servers in (together, alone)]
        found += [pair] if number else []  # the first one warms up
    found = np.array(found)
    return np.median(found, 0), found[:, 0] / found[:, 1]


def noise():
    """A JPEG of 224 px."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)).save(file, 'JPEG')
    return file.getvalue()


@user_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?')
    parser.add_argument('checkpoint', nargs='?')
    parser.add_argument('images', nargs='*', type=Path)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--requests', type=int, default=60, help='in a round')
    parser.add_argument('--clients', type=int, default=6, help='that ask at once')
    parser.add_argument('--cores', type=int, nargs='+', help='of the servers; all of them unless given')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    cfg = read_config(args.config) if args.config else classifiers()
    images = [path.read_bytes() for path in args.images] or [noise()]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        folder = Path(folder)
        state = load_weights(args.checkpoint) if args.checkpoint else build_model(cfg).state_dict()
        state = state.get('state_dict', state)
        cfg.dump(folder / 'all.py')
        torch.save(dict(state_dict=state), folder / 'all.pth')

        def start(files):
            return running.enter_context(serving(*files, '--device', args.device, cores=args.cores))

        one = start((folder / 'all.py', folder / 'all.pth'))
        alone = {task: start(files) for task, files in apart(cfg, state, folder).items()}
        medians, ratios = compare(dict.fromkeys(alone, one), alone, images, args)
        memory = [one.memory(), sum(each.memory() for each in alone.values())]
    names = f'one server, {len(alone)} tasks', f'{len(alone)} servers'
    print('| | requests a second | CPU, ms a request | samples of a batch | memory, MB |\n|---|---|---|---|---|')
    for name, (rate, cpu, size), each in zip(names, medians, memory):
        print(f'| {name} | {rate:.1f} | {1000 * cpu:.0f} | {size:.1f} | {each / 1e6:.0f} |')
    cells = [f'{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})' for each in ratios.T]
    print(f'| ratio | {" | ".join(cells)} | {memory[0] / memory[1]:.2f} |')


if __name__ == '__main__':
    main()
