"""Which installed configs take prompts: tools/add_provpt.py is tried on all that are about attention by their names.

    python benchmarks/config_trial.py [PATTERNS ...] [--out docs/reference/installed_configs.md]

Of MMDetection, MMSegmentation and MMPretrain, all configs are tried whose file name says Swin, ViT, DeiT, DINO, BEiT,
CLIP, MAE, MoCo, EVA or timm, or only those that a pattern is found in, such as 'grounding_dino'. A config "takes
prompts" if the tool writes one that adds them, and that one's model is built: whole and at its own size, but with
whatever numbers are in memory, and never run. Where the rest of a model cannot be built (a language model that is to
be downloaded, a package that is missing), it is the backbone alone, and that is said.

Ends with status 1 if there is an error that is no refusal.
"""
import argparse
import collections
import contextlib
import io
import logging
import re
import sys
import time
import traceback
import warnings
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools'))
import add_provpt
from mmengine.logging import MMLogger
from mmengine.utils import get_installed_path
from pages import write_between

from mmprovpt.errors import ConfigError

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')
NAMES = re.compile('swin|vit|deit|dino|beit|clip|mae|moco|eva|timm', re.IGNORECASE)
MARKS = '<!-- by benchmarks/config_trial.py -->\n', '<!-- end -->\n'
ALONE = 'only the backbone was built'
# Of messages: what they say, in a table.
SHORT = (
    (r'pre-trains its backbone, by (\w+)', r'it pre-trains its backbone (`\1`)'),
    (r'has no train_cfg', 'it has no training'),
    (r'needs one backbone=.* but it has 0', 'it has no `backbone`: it tests CLIP by texts, or trains text and image'),
    (r'^(\w+) has no attention at all', r'`\1` has no attention'),
    (r'^(\w+) has attention that takes no prompts: .*', r'`\1`: attention that takes no prompts'),
    (r'is in a (block|backbone) (?:\w+\.)*(\w+), which', r'`\2`: a \1 that nobody has vouched for'),
    (r'^(\w+) has supported attention, but', r'`\1` around the backbone: from Python, by `inject_prompts`'),
    (r'cannot be built: (.*)', r'it cannot be built: \1'),
    (r'cannot be read: (.*)', r'it cannot be read: \1'))


def installed(patterns):
    """Names as the tool takes them, CODEBASE::PATH."""
    found = []
    for library in LIBRARIES:
        folder = Path(get_installed_path(library)) / '.mim' / 'configs'
        paths = [path.relative_to(folder) for path in sorted(folder.rglob('*.py')) if NAMES.search(path.name)]
        found += [f'{library}::{path.as_posix()}' for path in paths if '_base_' not in path.parts]
    return [name for name in found if not patterns or any(re.search(pattern, name) for pattern in patterns)]


def try_config(name):
    """('added' or 'alone', class of the backbone), ('refused', why) or ('traceback', the error)."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            _, report = add_provpt.add_provpt(name, 'StaticPrompts', 10, None, {})
    except ConfigError as error:
        return 'refused', shortened(str(error))
    except Exception as error:  # it is what this script looks for
        place = traceback.extract_tb(error.__traceback__)[-1]
        return 'traceback', f'{type(error).__name__}: {str(error)[:200]} ({place})'
    kind = re.match(r'model\.\S+: (\w+) of', report[0])[1]
    return 'alone' if any(ALONE in line for line in report) else 'added', f'`{kind}`'


def shortened(message):
    """A refusal in few words; '?' in front of one that is not known here."""
    for pattern, short in SHORT:
        match = re.search(pattern, message, re.DOTALL)
        if match:
            return match.expand(short)[:160].replace('|', '/')
    return f'? {message[:160]}'


def table(results):
    """Markdown: counts, what takes prompts, what is refused and why, errors."""
    def count(library, *kinds):
        return sum(name.startswith(library) and result in kinds for name, (result, _) in results.items())

    lines = ['| | configs | take prompts | of these, only the backbone was built | are refused | end in a traceback |',
             '|---|---|---|---|---|---|']
    for library in (*LIBRARIES, ''):
        every = 'added', 'alone', 'refused', 'traceback'
        columns = [every, every[:2], ['alone'], ['refused'], ['traceback']]
        numbers = [count(library, *kinds) for kinds in columns]
        lines.append(f'| {library or "all"} | {" | ".join(map(str, numbers))} |')
    for title, kinds in (('takes prompts', ('added', 'alone')), ('refused, because', ('refused', ))):
        groups = collections.defaultdict(list)
        for name, (result, detail) in results.items():
            if result in kinds:
                groups[detail].append(name)
        lines += ['', f'| {title} | configs | folders |', '|---|---|---|']
        for detail, names in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
            folders = sorted({name.partition('::')[0] + ': ' + name.partition('::')[2].partition('/')[0]
                              for name in names})
            lines.append(f'| {detail} | {len(names)} | {", ".join(folders)} |')
    return '\n'.join(lines + ['', *(f'- `{name}`: {detail}' for name, (result, detail) in results.items()
                                    if result == 'traceback')]).rstrip() + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('patterns', nargs='*', help='parts of names (default: all)')
    parser.add_argument('--out', type=Path, help='page whose tables to replace')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    start, results = time.time(), {}
    for name in tqdm(installed(args.patterns), unit='config'):
        results[name] = try_config(name)
        if args.patterns or results[name][0] == 'traceback':
            print(name, *results[name], sep=': ', flush=True)
    print(f'{time.time() - start:.0f} s, {time.process_time():.0f} s of a CPU, for {len(results)} configs')
    write_between(MARKS, table(results), args.out)
    if any(result == 'traceback' for result, _ in results.values()):
        sys.exit('some end in a traceback')


if __name__ == '__main__':
    main()
