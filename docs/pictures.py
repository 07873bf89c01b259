"""Draw the pictures of README and docs/how-to/pictures.md, into docs/figures.

    python docs/pictures.py opening             # what the ten lines of README do, run with seed 0
    python docs/pictures.py demos work_dirs     # of the runs that `make demo demo-seg` left there, drawn by the tools
"""
import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'benchmarks'))
from printed import ten_lines  # noqa: E402

FIGURES = ROOT / 'docs/figures'

# Okabe and Ito's colours, which colour-blind people tell apart; the grey of texts has 4.3 : 1 to white and to black.
STAYED, CAME, TEXT = '#0072B2', '#D55E00', '#7b8189'
BOX, EDGE, NUMBER = '#eceff3', '#aab1bb', '#30363d'
WIDTH, GAP, LEFT, TOP = 56, 14, 92, 150  # px: of a box, between boxes, of their margins
BAR, STEP = 8, 13  # a prompt's height, and from one to the next


class Block:
    """What a block's column shows, from bottom to top: prompts that stayed, gaps of those that left, those that came.

    Args:
        number: Of the block.
        marks: ``'stayed'``, ``'left'`` and ``'came'`` for each place.
        tallest: Places of the tallest column.
    """

    def __init__(self, number: int, marks: Sequence[str], tallest: int) -> None:
        self.number, self.marks, self.tallest = number, marks, tallest
        self.x = LEFT + number * (WIDTH + GAP)
        self.middle = self.x + WIDTH / 2

    def draw(self) -> str:
        """The box with its prompts."""
        height = self.tallest * STEP + 40
        parts = [f'<rect x="{self.x}" y="{TOP}" width="{WIDTH}" height="{height}" rx="7" fill="{BOX}" '
                 f'stroke="{EDGE}"/>',
                 f'<text x="{self.middle}" y="{TOP + height - 10}" fill="{NUMBER}">{self.number}</text>']
        for place, mark in enumerate(self.marks):
            parts.append(bar(self.x + 9, TOP + height - 40 - place * STEP, mark))
        return '\n'.join(parts)


def bar(x: float, y: float, mark: str) -> str:
    """A prompt, WIDTH - 18 wide."""
    look = dict(stayed=f'fill="{STAYED}"', came=f'fill="{CAME}"',
                left=f'fill="none" stroke="{TEXT}" stroke-dasharray="3 2"')[mark]
    return f'<rect x="{x}" y="{y}" width="{WIDTH - 18}" height="{BAR}" rx="2" {look}/>'


def arrow(start: float, end: float, number: int) -> tuple[str, str]:
    """An arc over the boxes, and the number in its middle."""
    height = 26 + 100 * abs(end - start) / (11 * (WIDTH + GAP)) * 1.3
    top, middle = TOP - height, (start + end) / 2
    return (f'<path d="M{start} {TOP - 2} C{start} {top - 12} {end} {top - 12} {end} {TOP - 5}" fill="none" '
            f'stroke="{CAME}" stroke-width="2" marker-end="url(#head)"/>',
            f'<circle cx="{middle}" cy="{TOP - 2 - 0.75 * (height + 10)}" r="10" fill="{CAME}"/>'
            f'<text x="{middle}" y="{TOP + 2.5 - 0.75 * (height + 10)}" fill="#fff" font-size="13" '
            f'font-weight="bold">{number}</text>')


def marks_of(initial: Sequence[int], moves: Sequence[tuple[int, int, int, int]]) -> list[list[str]]:
    """The marks of each block; moves as in ``backbone_svg``."""
    now = {prompt: target for _, prompt, _, target in moves}
    columns, first = [], 0
    for block, count in enumerate(initial):
        own = set(range(first, first + count))
        left = sum(source == block for _, _, source, _ in moves)
        columns.append(['stayed'] * len(own - set(now)) + ['left'] * left
                       + ['came'] * sum(target == block for target in now.values()))
        first += count
    return columns


def ends_of(moves: Sequence[tuple[int, int, int, int]], blocks: Sequence[Block]) -> list[tuple[float, float]]:
    """Where arrows begin and end, px: side by side over a block, in an order in which they do not cross there."""
    ends: list[list[float]] = [[0, 0] for _ in moves]
    for block in blocks:
        # Of arrows to one side the longer is the outer one.
        here = sorted((move[5 - side] > block.number, block.number - move[5 - side], number, side)
                      for number, move in enumerate(moves) for side in (2, 3) if move[side] == block.number)
        for place, (_, _, number, side) in enumerate(here):
            ends[number][side - 2] = block.middle + 12 * (place - (len(here) - 1) / 2)
    return [(start, end) for start, end in ends]


def backbone_svg(initial: Sequence[int], moves: Sequence[tuple[int, int, int, int]]) -> str:
    """The blocks, and the way of the prompts that changed their block.

    Args:
        initial: Number of prompts in each block before.
        moves: Epoch, prompt, block that was left, another that was reached, in order.
    """
    marks = marks_of(initial, moves)
    tallest = max(map(len, marks))
    blocks = [Block(block, each, tallest) for block, each in enumerate(marks)]
    width, bottom = 2 * LEFT + len(initial) * (WIDTH + GAP) - GAP, TOP + tallest * STEP + 40
    middle = (TOP + bottom) / 2
    signs = [f'<rect x="{LEFT}" y="{bottom + 17}" width="18" height="18" rx="4" fill="{BOX}" stroke="{EDGE}"/>']
    signs += [bar(LEFT + x, bottom + 22, mark) for x, mark in ((150, 'stayed'), (290, 'left'), (470, 'came'))]
    legend = ''.join(signs) + ''.join(
        f'<text x="{LEFT + x}" y="{bottom + 31}" text-anchor="start">{text}</text>' for x, text in (
            (26, 'frozen block'), (196, 'prompt'), (336, 'place it left'), (516, 'where it is from epoch … on')))
    straight = f'stroke="{TEXT}" stroke-width="2" marker-end="url(#grey)"'
    arrows = [arrow(*ends, move[0]) for move, ends in zip(moves, ends_of(moves, blocks))]
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 44}" font-family="sans-serif"
 font-size="16" text-anchor="middle" fill="{TEXT}">
<defs>
<marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="5" markerHeight="5" orient="auto">
<path d="M0 0L8 4L0 8z" fill="{CAME}"/></marker>
<marker id="grey" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="5" markerHeight="5" orient="auto">
<path d="M0 0L8 4L0 8z" fill="{TEXT}"/></marker>
</defs>
<text x="{LEFT / 2 - 8}" y="{middle - 10}">image</text>
<path d="M14 {middle}H{LEFT - 10}" {straight}/>
<text x="{width - LEFT / 2 + 8}" y="{middle - 10}">head</text>
<path d="M{width - LEFT + 10} {middle}H{width - 14}" {straight}/>
{chr(10).join(block.draw() for block in blocks)}
{chr(10).join(path for path, _ in arrows)}
{chr(10).join(number for _, number in arrows)}
{legend}
</svg>
"""


def draw_opening() -> None:
    """Run README's lines; the blocks and their prompts."""
    import torch
    names: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        torch.manual_seed(0)
        exec(ten_lines(), names)
        os.chdir(ROOT)
    moves = [(period.number + 1, *move[:3]) for period in names['periods'] for move in period.moves]
    for epoch, prompt, source, target in moves:
        print(f'before epoch {epoch}: prompt {prompt} from {source} to {target}')
    FIGURES.mkdir(exist_ok=True)
    changed = [move for move in moves if move[2] != move[3]]
    picture = backbone_svg([5] * names['prompts'].num_blocks, changed)
    (FIGURES / 'backbone.svg').write_text(picture, encoding='utf-8')


def tool(name: str, *arguments: str | Path) -> None:
    """Run one of tools/ from the root, as a user would."""
    subprocess.run([sys.executable, ROOT / 'tools' / name, *map(str, arguments)], cwd=ROOT, check=True)


def draw_demos(work_dirs: Path) -> None:
    """Of runs of `make demo` and `make demo-seg`, what pages show."""
    def checkpoint(run: str) -> str:
        return (work_dirs / run / 'last_checkpoint').read_text(encoding='utf-8')

    seg, det = (f'configs/demo/{name}_provpt_digits.py' for name in ('setr_pup_vit_mini', 'mask_rcnn_swin_mini'))
    log = sorted((work_dirs / 'demo-seg').glob('*/relocations.jsonl'))[-1]
    tool('analysis_tools/plot_training.py', work_dirs / 'demo-seg', '--out', FIGURES / 'training.png')
    tool('analysis_tools/plot_relocation.py', log, '--names', '', '--out', FIGURES / 'distribution.png')
    tool('analysis_tools/plot_attention.py', seg, checkpoint('demo-seg'), 'data/miniature/val/000003.jpg', '--out',
         FIGURES / 'attention.png')
    with tempfile.TemporaryDirectory() as folder:
        for config, run in ((seg, 'demo-seg'), (det, 'demo')):
            tool('visualize.py', config, checkpoint(run), '--out', folder, '--cfg-options',
                 'val_dataloader.dataset.indices=2')
            (Path(folder) / '0001_000002.png').replace(FIGURES / f'predictions_{run}.png')
    for path in FIGURES.glob('*.png'):
        if path.stat().st_size > 150_000:  # images: a palette that keeps rare colours is enough
            Image.open(path).convert('RGB').quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['opening', 'demos'])
    parser.add_argument('work_dirs', nargs='?', type=Path, default=ROOT / 'work_dirs')
    args = parser.parse_args()
    draw_opening() if args.what == 'opening' else draw_demos(args.work_dirs.resolve())


if __name__ == '__main__':
    main()
