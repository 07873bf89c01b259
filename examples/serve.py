"""Serve several tasks by one backbone in memory: a person or a program sends an image and says which tasks.

    pip install -r requirements/serve.txt
    python examples/serve.py CONFIG CHECKPOINT [--port 8000] [--batch 8] [--wait-ms 5] [--queue 64]

CONFIG is of a MultiTaskModel. The page is at http://localhost:8000/; for programs:

    curl --data-binary @image.jpg 'http://localhost:8000/predict?tasks=detect,classify'

Requests of all tasks that arrive within a few milliseconds are one batch, whose samples read different prompts. It is
an example: it has no users, no encryption, and answers whoever reaches the port (by default from this machine alone).
"""
import argparse
import asyncio
import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from aiohttp import web
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image

from mmprovpt.cli.options import read_config
from mmprovpt.cli.runner import build_model, load_weights
from mmprovpt.cli.user_errors import user_errors

MAX_BYTES, MAX_PIXELS = 16 << 20, 1 << 24
_FILES = ('LoadImageFromFile', 'LoadAnnotations')


class Tasks:
    """The model, and for each task what makes a sample of an image and words of a prediction."""

    def __init__(self, cfg, checkpoint):
        self.model = build_model(cfg)
        self.model.init_weights()
        load_weights(self.model, checkpoint)
        self.model.eval()
        self.pipelines, self.classes = {}, {}
        for task, loader in cfg.test_dataloader.items():
            with DefaultScope.overwrite_default_scope(loader.get('_scope_')):
                self.pipelines[task] = Compose([each for each in loader.dataset.pipeline if each.type not in _FILES])
            names = (loader.dataset.get('metainfo') or {}).get('classes')
            heads = [module.num_classes for module in self.model.tasks[task].modules()
                     if type(getattr(module, 'num_classes', None)) is int]
            self.classes[task] = list(names or map(str, range(heads[-1])))

    def sample(self, task, image):
        """A batch of one, of (H, W, 3) BGR."""
        shape = image.shape[:2]
        packed = self.pipelines[task](dict(img=image, img_path='', img_id=0, img_shape=shape, ori_shape=shape,
                                           height=shape[0], width=shape[1], scale_factor=(1., 1.)))
        return dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']], task=task)

    def answer(self, task, result):
        """A prediction in what JSON has."""
        names = self.classes[task]
        if hasattr(result, 'pred_instances'):
            found = result.pred_instances
            answer = dict(boxes=found.bboxes.tolist(), scores=found.scores.tolist(),
                          labels=[names[label] for label in found.labels.tolist()])
            if 'masks' in found:  # pixel: 1 + number of the object, the surest on top
                numbers = torch.zeros(found.masks.shape[1:], dtype=torch.uint8)
                for number in reversed(range(min(len(found), 255))):
                    numbers[found.masks[number]] = number + 1
                answer['masks'] = png(numbers)
            return answer
        if hasattr(result, 'pred_sem_seg'):
            return dict(labels=png(result.pred_sem_seg.data[0].to(torch.uint8)), classes=names)
        score, label = result.pred_score.max(0)
        return dict(label=names[int(label)], score=float(score))


def png(numbers):
    """(H, W) uint8 as base64 of a grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(numbers.numpy()).save(buffer, 'PNG')
    return base64.b64encode(buffer.getvalue()).decode()


def read_image(content):
    """(H, W, 3) BGR of the bytes of a file; ValueError if it is none, or too large to be decoded."""
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:  # known before any is decoded
            raise ValueError(f'{image.width} x {image.height} pixels are more than {MAX_PIXELS}')
        return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f'no image: {error}') from error


class Batcher:
    """Takes samples one by one, and has the model take those that have come as one batch."""

    def __init__(self, tasks, size, wait, length):
        self.tasks, self.size, self.wait = tasks, size, wait
        self.queue = asyncio.Queue(length)
        self.thread = ThreadPoolExecutor(1)
        self.batches = self.samples = 0

    async def predict(self, task, image):
        """The answer; asyncio.QueueFull if too many are waiting."""
        future = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((task, image, future))
        return await future

    async def run(self):
        """For ever."""
        while True:
            waiting = [await self.queue.get()]
            end = asyncio.get_running_loop().time() + self.wait
            while len(waiting) < self.size:
                try:
                    left = max(end - asyncio.get_running_loop().time(), 0)
                    waiting.append(await asyncio.wait_for(self.queue.get(), left) if left else self.queue.get_nowait())
                except (asyncio.TimeoutError, asyncio.QueueEmpty):
                    break
            waiting = [each for each in waiting if not each[2].done()]  # who has gone away meanwhile
            self.batches, self.samples = self.batches + 1, self.samples + len(waiting)
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self.thread, self.compute, waiting)
            except Exception as error:  # one batch's is not the server's
                answers = [error] * len(waiting)
            for (*_, future), answer in zip(waiting, answers):
                if not future.done():
                    (future.set_exception if isinstance(answer, Exception) else future.set_result)(answer)

    def compute(self, waiting):
        """In a thread of its own, so that requests are read meanwhile."""
        samples = [self.tasks.sample(task, image) for task, image, _ in waiting]
        results = self.tasks.model.predict_mixed(samples) if samples else []
        return [self.tasks.answer(task, result[0]) for (task, *_), result in zip(waiting, results)]


def application(tasks, size=8, wait=0.005, length=64):
    """The server's; ``python examples/serve.py`` runs it."""
    batcher = Batcher(tasks, size, wait, length)

    async def predict(request):
        known = list(tasks.pipelines)
        wanted = list(dict.fromkeys(request.query.get('tasks', ','.join(known)).split(',')))
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise web.HTTPBadRequest(text=f'no task {unknown[0]!r}; there are {", ".join(known)}')
        try:
            image = await asyncio.to_thread(read_image, await request.read())
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        try:
            answers = await asyncio.gather(*(batcher.predict(name, image) for name in wanted))
        except asyncio.QueueFull as error:
            raise web.HTTPServiceUnavailable(text='too many requests are waiting: come again') from error
        return web.json_response(dict(size=list(image.shape[1::-1]), **dict(zip(wanted, answers))))

    async def about(request):
        return web.json_response(dict(tasks=tasks.classes, batches=batcher.batches, samples=batcher.samples))

    async def page(request):
        return web.FileResponse(Path(__file__).with_name('serve.html'))

    async def lifetime(app):
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()
        batcher.thread.shutdown(cancel_futures=True)

    app = web.Application(client_max_size=MAX_BYTES)
    app.add_routes([web.get('/', page), web.get('/about', about), web.post('/predict', predict)])
    app.cleanup_ctx.append(lifetime)
    return app


@user_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--host', default='localhost')
    parser.add_argument('--port', type=int, default=8000)
    parser.add_argument('--batch', type=int, default=8, help='samples at once, at most')
    parser.add_argument('--wait-ms', type=float, default=5, help='how long the first one waits for others')
    parser.add_argument('--queue', type=int, default=64, help='samples that may wait; more are told to come again')
    args = parser.parse_args()
    tasks = Tasks(read_config(args.config), args.checkpoint)
    web.run_app(application(tasks, args.batch, args.wait_ms / 1000, args.queue), host=args.host, port=args.port)


if __name__ == '__main__':
    main()
