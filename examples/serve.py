"""Serve several tasks by one backbone in memory: a person or a program sends an image and says which tasks.

    pip install -r requirements/serve.txt
    python examples/serve.py CONFIG CHECKPOINT [--port 8000] [--batch 8] [--wait-ms 5] [--device cuda]

CONFIG is of a MultiTaskModel. The page is at http://localhost:8000/; for programs:

    curl --data-binary @image.jpg 'http://localhost:8000/predict?tasks=detect,classify'

Requests of all tasks that arrive within a few milliseconds are one batch, whose samples read different prompts. It is
an example: it has no users, no encryption, and answers whoever reaches the port (by default from this machine alone).
"""
import argparse
import asyncio
import base64
import io
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from aiohttp import web
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image, ImageOps, UnidentifiedImageError

from mmprovpt.cli.options import read_config
from mmprovpt.cli.runner import build_model, load_weights
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.errors import ConfigError

# Of a file; of a picture before it is decoded; of what a task's pipeline makes of it for the model.
MAX_BYTES, MAX_PIXELS, MAX_INPUT = 16 << 20, 1 << 24, 1 << 21
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')  # Pillow hands others to programs, such as Ghostscript
_FILES = ('LoadImageFromFile', 'LoadAnnotations')
_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """An image that no task will take; the client is told why."""


class Tasks:
    """The model, and for each task what makes a sample of an image and words of a prediction."""

    def __init__(self, cfg, checkpoint, device='cpu'):
        self.model = build_model(cfg)
        self.model.init_weights()
        load_weights(self.model, checkpoint)
        self.model.to(device).eval()
        self.pipelines, self.classes = {}, {}
        for task, loader in cfg.test_dataloader.items():
            with DefaultScope.overwrite_default_scope(loader.get('_scope_')):
                self.pipelines[task] = Compose([each for each in loader.dataset.pipeline if each.type not in _FILES])
            names = (loader.dataset.get('metainfo') or {}).get('classes')
            heads = [module.num_classes for module in self.model.tasks[task].modules()
                     if type(getattr(module, 'num_classes', None)) is int]
            self.classes[task] = list(names or map(str, range(heads[-1])))

    def sample(self, task, image):
        """What the task's pipeline makes of (H, W, 3) BGR; RefusedError if that is too large."""
        shape = image.shape[:2]
        sample = self.pipelines[task](dict(img=image, img_path='', img_id=0, img_shape=shape, ori_shape=shape,
                                           height=shape[0], width=shape[1], scale_factor=(1., 1.)))
        height, width = sample['inputs'].shape[-2:]
        if height * width > MAX_INPUT:
            raise RefusedError(f'{task} would take {width} x {height} pixels, and takes {MAX_INPUT} at most')
        return sample

    def predict(self, samples):
        """Of {number: (task, sample)} {number: answer}; one forward of the backbone for all of a size."""
        groups = {}
        for number, (task, sample) in samples.items():
            groups.setdefault((task, sample['inputs'].shape), {})[number] = sample
        results = self.model.predict_mixed([
            dict(inputs=[each['inputs'] for each in group.values()],
                 data_samples=[each['data_samples'] for each in group.values()], task=task)
            for (task, _), group in groups.items()])
        return {number: self.answer(task, result.cpu()) for ((task, _), group), found in zip(groups.items(), results)
                for number, result in zip(group, found)}

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
    """(H, W, 3) BGR of the bytes of a file; RefusedError if it is none, or too large to be decoded."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:  # known before any is decoded
            raise RefusedError(f'{image.width} x {image.height} pixels are more than {MAX_PIXELS}')
        upright = ImageOps.exif_transpose(image).convert('RGB')  # as OpenCV and browsers show it
        return np.ascontiguousarray(np.asarray(upright)[..., ::-1])
    except RefusedError:
        raise
    except UnidentifiedImageError as error:
        raise RefusedError(f'no image of {", ".join(FORMATS)}') from error
    except Exception as error:  # a hostile file may make Pillow raise anything
        raise RefusedError(f'no whole image: {error}') from error


class Batcher:
    """Takes samples one by one, and has the model take those that have come as one batch."""

    def __init__(self, tasks, size, wait, length):
        self.tasks, self.size, self.wait = tasks, size, wait
        self.queue = asyncio.Queue(length)
        self.thread = ThreadPoolExecutor(1)
        self.batches = self.samples = 0

    async def predict(self, names, image):
        """Of each task the answer, or the error that it met; asyncio.QueueFull if too many samples are waiting."""
        if self.queue.qsize() + len(names) > self.queue.maxsize:
            raise asyncio.QueueFull
        futures = [asyncio.get_running_loop().create_future() for _ in names]
        for name, future in zip(names, futures):
            self.queue.put_nowait((name, image, future))
        return await asyncio.gather(*futures, return_exceptions=True)

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
            if not waiting:
                continue
            self.batches, self.samples = self.batches + 1, self.samples + len(waiting)
            answers = await asyncio.get_running_loop().run_in_executor(self.thread, self.compute, waiting)
            for (*_, future), answer in zip(waiting, answers):
                if not future.done():
                    (future.set_exception if isinstance(answer, Exception) else future.set_result)(answer)

    def compute(self, waiting):
        """Of each the answer or its error; in a thread of its own, so that requests are read meanwhile."""
        answers, samples = {}, {}
        for number, (task, image, _) in enumerate(waiting):
            try:
                samples[number] = task, self.tasks.sample(task, image)
            except Exception as error:
                answers[number] = error
        for part in (samples, *({number: sample} for number, sample in samples.items())):
            try:
                answers.update(self.tasks.predict(part) if part else {})
                if part is samples:
                    break
            except Exception as error:  # of all: then each by itself shows whose fault it is
                answers.update(dict.fromkeys(part, error))
        return [answers[number] for number in range(len(waiting))]


def application(tasks, size=8, wait=0.005, length=64, patience=30):
    """The server's; ``python examples/serve.py`` runs it."""
    batcher = Batcher(tasks, size, wait, length)

    async def predict(request):
        known = list(tasks.pipelines)
        wanted = list(dict.fromkeys(request.query.get('tasks', ','.join(known)).split(',')))
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise web.HTTPBadRequest(text=f'no task {unknown[0]!r}; there are {", ".join(known)}')
        try:
            content = await asyncio.wait_for(request.read(), patience)
            image = await asyncio.to_thread(read_image, content)
            answers = await batcher.predict(wanted, image)
        except RefusedError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        except asyncio.TimeoutError as error:
            raise web.HTTPRequestTimeout(text=f'the image had not come after {patience:g} s') from error
        except asyncio.QueueFull as error:
            raise web.HTTPServiceUnavailable(text='too many requests are waiting: come again') from error
        for name, answer in zip(wanted, answers):
            if isinstance(answer, RefusedError):
                raise web.HTTPBadRequest(text=str(answer))
            if isinstance(answer, Exception):
                _log.error('%s on %d x %d pixels', name, *image.shape[1::-1], exc_info=answer)
                raise web.HTTPUnprocessableEntity(
                    text=f'{name} fails on an image of {image.shape[1]} x {image.shape[0]} pixels')
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
    parser.add_argument('--patience', type=float, default=30, help='seconds that a client has to send an image')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    tasks = Tasks(read_config(args.config), args.checkpoint, args.device)
    if args.queue < len(tasks.pipelines):
        raise ConfigError(f'--queue {args.queue}, but one image for all tasks is {len(tasks.pipelines)} samples: at '
                          'least as many must have room')
    # Whose client has gone is not computed.
    web.run_app(application(tasks, args.batch, args.wait_ms / 1000, args.queue, args.patience), host=args.host,
                port=args.port, handler_cancellation=True)


if __name__ == '__main__':
    main()
