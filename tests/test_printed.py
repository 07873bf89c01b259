"""Every command that a page prints is one that its program accepts; `make wheel-check` carries many of them out."""
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import carry_out
import pytest
import users_way
from mmengine.config import Config
from printed import PAGES, ROOT, blocks, commands, lines, ten_lines
from torch.distributed.run import get_args_parser

from mmprovpt.cli.console import TOOLS
from mmprovpt.shipped import configs

OURS = ('benchmarks', 'configs', 'docs', 'examples', 'requirements', 'tests', 'tools')
# Programs of others, whose options are not looked at.
OTHERS = ('apt-get', 'build', 'curl', 'git', 'pytest', 'source', 'twine', 'zipfile')


def expand(word):
    """What the shell makes of a word with braces and patterns; `$(mmprovpt config NAME)` is that config's path."""
    word = re.sub(r'^\$\(mmprovpt config (\S+)\)$', r'configs/\1', word)
    parts = [part.split(',') if number % 2 else [part] for number, part in enumerate(re.split(r'\{(.*?)\}', word))]
    for each in map(''.join, itertools.product(*parts)):
        found = sorted(ROOT.glob(each)) if '*' in each and each.startswith(OURS) else []
        yield from [str(path.relative_to(ROOT)) for path in found] or [each]


def calls(words, tmp_path):
    """Scripts of ours that a command runs, with their arguments. What it names besides is there."""
    while re.match('[A-Z_]+=', words[0]):
        words = words[1:]
    program, *args = (each for word in words for each in expand(word))
    for path in args:
        path = path.partition('::')[0]
        assert not path.startswith(tuple(f'{folder}/' for folder in OURS)) or (ROOT / path).exists(), path
    if program.endswith('python'):
        if args[0] == '-c':
            compile(args[1], 'command', 'exec')
            return []
        if args[0] != '-m':
            return [args]
        _, program, *args = args
    if program.endswith('.sh'):
        return [started(program, args, tmp_path)]
    if program.endswith('.py'):
        assert os.access(ROOT / program, os.X_OK), f'{program} is not executable'
        return [[program, *args]]
    if program in ('torchrun', 'torch.distributed.run'):
        args = get_args_parser().parse_args(args)
        return [[args.training_script, *args.training_script_args]]
    if program == 'mmprovpt':
        if args[0] in TOOLS and args[1:]:
            return calls([f'tools/{TOOLS[args[0]]}', *args[1:]], tmp_path)
        assert args[0] in (*TOOLS, 'config', '--help', '--version')
    elif program == 'mim':
        assert args[:2] == ['train', 'mmprovpt'] and args[2] in [Path(name).name for name in configs()]
    elif program == 'make':
        rules = re.findall(r'^([\w -]+):(?!=)', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.M)
        assert {arg for arg in args if '=' not in arg} <= set(' '.join(rules).split())
    elif program == 'pip':
        check_requirements(*args)
    else:
        assert program in OTHERS, f'nobody knows {program}'
    return []


def started(script, args, tmp_path):
    """What a script of the shell would start of ours."""
    for name in ('srun', 'echo_all'):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    words = subprocess.run(['bash', ROOT / script, *args], text=True, stdout=subprocess.PIPE, check=True, env={
        **os.environ, 'PYTHON': 'echo_all', 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}).stdout.split()
    first = next(number for number, word in enumerate(words) if word.endswith('.py'))
    return [os.path.relpath(words[first], ROOT), *words[first + 1:]]


def check_requirements(command, *args):
    """Files that are there, extras that there are, and pins as those of requirements/."""
    assert command == 'install'
    files = {path.stem: path.read_text(encoding='utf-8').splitlines() for path in (ROOT / 'requirements').glob('*.txt')}
    for option, arg in zip(['', *args], args):
        extras = re.match(r'(?:mmprovpt.*|\.)\[(.*)\]$', arg)
        if option in ('-r', '-c'):
            assert (ROOT / arg).is_file()
        elif extras:
            assert set(extras[1].split(',')) <= {*files, 'all'} - {'torch', 'mmcv', 'docs'}
        elif re.search('[=<>]', arg):
            assert [arg for lines in files.values() if arg in lines], f'requirements/ do not have {arg}'


def test_commands_are_accepted(tmp_path):
    wrong, asked = [], {}
    for page in PAGES:
        for line in lines(page):
            if line.startswith(('cd ', 'for ')):
                continue  # test_files_that_a_loop_writes
            try:
                for script, *args in itertools.chain(*(calls(words, tmp_path) for words in commands(line))):
                    asked.setdefault(script, []).append(args)
            except (AssertionError, ValueError, SyntaxError) as error:
                wrong.append(f'{page.relative_to(ROOT)}: {line}: {error}')
    assert wrong == []
    assert len(asked) > 30 and all((ROOT / script).is_file() for script in asked)
    done = subprocess.run([sys.executable, Path(__file__).with_name('accepting_worker.py')], input=json.dumps(asked),
                          text=True, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_options_in_sentences_exist():
    """Of some program here: a sentence does not always say of which."""
    code = '\n'.join(path.read_text(encoding='utf-8') for folder in ('benchmarks', 'examples', 'mmprovpt', 'tools')
                     for path in (ROOT / folder).rglob('*.py'))
    known = '|'.join(re.sub(r'\{\w+\}', r'\\w+', option) for option in re.findall(r"'(--[\w-]*\w[\w{}-]+)'", code))
    known += r'|--\w+-options'  # f'--{phase}-options'
    for page in PAGES:
        for span in re.findall(r'`(--\w[^`\n]*)`', page.read_text(encoding='utf-8')):
            for option in re.findall(r'(?:^| )(--[a-z][\w-]*)', span):
                assert re.fullmatch(known, option), f'{page}: {option}'


def test_files_that_a_loop_writes(tmp_path):
    """The one block that is a program of the shell: configs of another backbone."""
    page = ROOT / 'docs/how-to/classification.md'
    block, = (block for block in blocks(page, 'bash') if '\nfor ' in block)
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    subprocess.run(['bash', '-euc', block], cwd=tmp_path, check=True)
    written = sorted((tmp_path / 'configs/vtab1k').glob('mocov3_*.py'))
    assert len(written) == 8
    assert all("'checkpoints/vit_b16_mocov3.pth'" in str(Config.fromfile(path).model) for path in written)
    loops = [line for page in PAGES for line in lines(page) if line.startswith(('cd ', 'for '))]
    assert loops == block.splitlines()


def test_the_way_goes_where_the_pages_say():
    """Each of its commands is on a page, and is one of the console script."""
    for step in users_way.STEPS:
        command, *words = step.words()
        assert command == 'mmprovpt' and words[0] in TOOLS, step
    assert 'import' in ten_lines()


def test_each_command_is_carried_out_by_somebody():
    """By `make commands-check`, or somebody else is named; and no rule is left of a command that is gone."""
    steps, mine = zip(*carry_out.to_carry_out())
    others = [command for command in carry_out.all_commands() if command not in mine]
    assert [command for command in others if carry_out.elsewhere(command) is None] == []
    assert [step for step in carry_out.OF_COMMANDS if step not in steps] == []
    assert [begins for begins in carry_out.ELSEWHERE if not any(re.match(begins, each) for each in others)] == []


def test_names_are_put_in_place_of_whole_words(tmp_path):
    step = carry_out.Step('tools/dist_train.sh CONFIG', {'CONFIG': 'a.py', '8': '2'}, '--work-dir x')
    assert step.filled('tools/dist_train.sh CONFIG 8', tmp_path) == 'tools/dist_train.sh a.py 2 --work-dir x'
    with pytest.raises(ValueError, match='no 8 in'):
        step.filled('tools/dist_train.sh CONFIG 80', tmp_path)
    (tmp_path / 'epoch_1.pth').touch()
    last = carry_out.Step('tools/test.py', {'CHECKPOINT': '@*.pth'})
    assert last.filled('tools/test.py CHECKPOINT', tmp_path) == 'tools/test.py epoch_1.pth'
    with pytest.raises(ValueError, match='nothing is called'):
        carry_out.Step('tools/test.py', {'CHECKPOINT': '@*.onnx'}).filled('tools/test.py CHECKPOINT', tmp_path)
