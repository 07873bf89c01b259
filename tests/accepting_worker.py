"""Asks scripts whether they take arguments: each is run until it has made its parser, in a process of its own.

In a process of the tests, what scripts register would be in the way of others. Reads a dict from the standard input in
JSON, lists of arguments for each script, and prints a list of what is refused.
"""
import argparse
import contextlib
import io
import json
import multiprocessing
import runpy
import sys
from pathlib import Path

import mmdet.models  # noqa: F401
import mmpretrain.models  # noqa: F401
import mmseg.models  # noqa: F401
from mmengine.config import Config

ROOT = Path(__file__).parents[1]


class Made(Exception):  # noqa: N818
    """A program has made its parser."""


def stop(self, *args):
    raise Made(self)


def refused(job):
    """What a script says to lists of arguments that it does not take."""
    script, calls = job
    path, said, parse = ROOT / script, [], argparse.ArgumentParser.parse_args
    code = path.read_text(encoding='utf-8')
    if 'argparse' not in code:
        return [f'{script} has no options: {args}' for args in calls if args and 'sys.argv' not in code]
    argparse.ArgumentParser.parse_args = stop
    sys.argv, sys.path = [str(path)], [str(path.parent), *sys.path]
    try:
        runpy.run_path(str(path), run_name='__main__')
    except Made as made:
        parser, = made.args
    except ModuleNotFoundError as error:
        if error.name == 'aiohttp':  # of `make serve-check` alone, which starts the server
            return []
        raise
    for args in calls:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                check_overrides(parse(parser, args))
            except SystemExit:
                said.append(f'{script} {args}: {errors.getvalue().splitlines()[-1]}')
            except (KeyError, AttributeError) as error:
                said.append(f'{script} {args}: the config has no {error}')
    return said


def check_overrides(args):
    """What --cfg-options change is there in the config."""
    options, config = getattr(args, 'cfg_options', None) or {}, str(getattr(args, 'config', ''))
    if options and config.startswith('configs/'):
        cfg = Config.fromfile(ROOT / config)
        for key in options:
            *parents, last = key.split('.')
            node = cfg
            for part in parents:
                node = node[int(part)] if isinstance(node, list) else node[part]
            if last not in node:
                raise KeyError(key)


if __name__ == '__main__':
    with multiprocessing.get_context('fork').Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps(sum(pool.map(refused, json.load(sys.stdin).items(), chunksize=1), [])))
