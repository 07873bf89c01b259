"""Draws the figures of docs/method, one for an idea: `python docs/figures.py`. They are sketches.

Plain SVG, written by hand, so that the same code writes the same bytes. Blue is what stays, orange what changes: told
apart by colour-blind people, too, and wherever it counts a dash or a label says it as well.
"""
import math
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / 'method/figures'
BLUE, ORANGE, GREY, LIGHT, DARK = '#0072B2', '#D55E00', '#999999', '#E6E6E6', '#222222'


class Drawing:
    """Shapes on white, in pixels from the upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size, self.title, self.shapes = (width, height), title, []

    def box(self, x, y, width, height, fill=LIGHT, stroke=DARK, dash='', label='', size=13, colour=DARK):
        """A rectangle with a text in its middle."""
        dash = f' stroke-dasharray="{dash}"' if dash else ''
        self.shapes.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="{fill}" '
                           f'stroke="{stroke}"{dash}/>')
        if label:
            self.text(x + width / 2, y + height / 2 + size * 0.35, label, 'middle', size, colour)

    def text(self, x, y, text, anchor='start', size=13, colour=DARK, bold=False):
        """A line of text."""
        bold = ' font-weight="bold"' if bold else ''
        self.shapes.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" '
                           f'fill="{colour}"{bold}>{escape(text)}</text>')

    def line(self, *points, colour=DARK, width=1.5, dash='', arrow=False):
        """A line through points; with a head at its end."""
        dash = f' stroke-dasharray="{dash}"' if dash else ''
        path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
        self.shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>')
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            angle = math.atan2(y1 - y0, x1 - x0)
            head = ' '.join(f'{x1 - 9 * math.cos(angle + turn):.1f},{y1 - 9 * math.sin(angle + turn):.1f}'
                            for turn in (0.4, -0.4))
            self.shapes.append(f'<polygon points="{x1:.1f},{y1:.1f} {head}" fill="{colour}"/>')

    def arrow(self, x0, y0, x1, y1, **style):
        """A straight line with a head."""
        self.line((x0, y0), (x1, y1), arrow=True, **style)

    def svg(self) -> str:
        """The file."""
        width, height = self.size
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}" font-family="DejaVu Sans, Arial, sans-serif" role="img">')
        white = '<rect width="100%" height="100%" fill="white"/>'
        return '\n'.join([head, f'<title>{escape(self.title)}</title>', white, *self.shapes, '</svg>', ''])


def keys_and_values() -> Drawing:
    """A block's prompts are columns of its attention, and have no rows there."""
    draw = Drawing(760, 300, 'Prompts are additional keys and values: columns of attention without rows')
    draw.text(20, 24, 'what the block is given', bold=True)
    for row in range(6):
        draw.box(30, 40 + 24 * row, 120, 20, LIGHT)
    draw.text(90, 54, 'N tokens x', 'middle')
    for row in range(3):
        draw.box(30, 200 + 24 * row, 120, 20, ORANGE)
    draw.text(90, 214, 'its n prompts', 'middle', colour='white')
    draw.box(190, 40, 60, 228, 'white', label='LN')
    draw.arrow(152, 110, 188, 110)
    draw.arrow(152, 234, 188, 234, colour=ORANGE)
    draw.arrow(252, 110, 322, 110)
    draw.text(288, 100, 'q, k, v', 'middle')
    draw.line((252, 250), (575, 250), (575, 200), colour=ORANGE, arrow=True)
    draw.text(400, 268, 'k, v; no q', 'middle', colour=ORANGE)
    draw.text(330, 24, 'attention', bold=True)
    for row in range(6):
        for column in range(6):
            draw.box(330 + 28 * column, 40 + 24 * row, 26, 22, LIGHT, GREY)
        for column in range(3):
            draw.box(516 + 28 * column, 40 + 24 * row, 26, 22, ORANGE, GREY)
    draw.text(414, 202, 'tokens', 'middle')
    draw.text(585, 222, 'a column for each prompt', 'start', colour=ORANGE)
    draw.arrow(602, 110, 640, 110)
    draw.text(648, 105, 'N tokens, as')
    draw.text(648, 122, 'without prompts')
    draw.text(20, 290, 'Nothing is added to the tokens. A block that owns no prompt is the upstream block.')
    return draw


def idleness() -> Drawing:
    """Idleness by definition and by its estimates; whose is largest."""
    draw = Drawing(760, 300, 'Idleness: how much lower the loss would be without a prompt')
    draw.text(20, 24, 'the score of one prompt', bold=True)
    draw.arrow(50, 250, 50, 45)
    draw.arrow(50, 250, 350, 250)
    draw.text(58, 52, 'loss')
    draw.text(70, 272, 'p is read')
    draw.text(345, 272, 'p is gone', 'end')

    def loss(t):
        return 100 + 190 * t - 125 * t * t

    def curve(function):
        return [(80 + 240 * t / 40, function(t / 40)) for t in range(41)]

    here, slope = loss(0), 190
    draw.line(*curve(loss), colour=DARK, width=2.5)
    draw.line(*[point for point in curve(lambda t: here + slope * t) if point[1] < 248], colour=ORANGE, dash='6 4',
              width=2)
    draw.line(*curve(lambda t: here + slope * t - 95 * t * t), colour=BLUE, dash='2 3', width=2)
    draw.line((80, here), (335, here), colour=GREY, dash='3 3')
    draw.line((330, here), (330, loss(1)), width=2, arrow=True)
    draw.text(337, (here + loss(1)) / 2 + 4, 'I')
    draw.text(140, 240, 'first order: gate', 'start', 12, ORANGE)
    draw.text(265, 212, 'gate_fisher', 'start', 12, BLUE)
    draw.text(120, 125, 'true', 'start', 12)
    draw.text(410, 24, 'all prompts of the backbone', bold=True)
    draw.line((410, 150), (740, 150))
    scores = [-60, -35, 12, -20, -48, 30, 78, -15, -30, -70, 20, -42]
    for number, score in enumerate(scores):
        idlest = score == max(scores)
        draw.box(418 + 26 * number + 8 * (number // 4), 150 - max(score, 0), 20, abs(score),
                 ORANGE if idlest else LIGHT if score < 0 else GREY)
    for block in range(3):
        draw.text(468 + 112 * block, 255, f'block {block + 1}', 'middle')
    draw.text(612, 66, 'leaves: I > 0', 'start', 12, ORANGE)
    draw.text(612, 82, 'and largest', 'start', 12, ORANGE)
    draw.text(410, 280, 'Up: it harms. Down: it helps. None up: nothing moves.', size=12)
    return draw


def relocation() -> Drawing:
    """Prune and allocate: one integer changes."""
    draw = Drawing(760, 290, 'A period ends: one prompt is pruned from its block and given to another')
    owners = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    after = [[0, 1, 2], [3, 5], [6, 7, 8], [9, 10, 11, 4]]
    for left, rows, title in ((20, owners, 'period t'), (470, after, 'period t + 1')):
        draw.text(left, 24, title, bold=True)
        for block, mine in enumerate(rows):
            draw.box(left, 38 + 46 * block, 270, 38, 'white')
            draw.text(left + 8, 62 + 46 * block, f'block {block + 1}')
            for place, row in enumerate(mine):
                draw.box(left + 78 + 46 * place, 44 + 46 * block, 40, 26, ORANGE if row == 4 else BLUE,
                         label=f'p{row + 1}', colour='white')
    draw.box(310, 60, 140, 52, 'white', label='1 prune: the idlest')
    draw.box(310, 132, 140, 52, 'white', label='2 allocate: policy')
    draw.arrow(292, 103, 308, 90, colour=ORANGE)
    draw.arrow(380, 113, 380, 130, colour=ORANGE)
    draw.arrow(452, 158, 468, 190, colour=ORANGE)
    draw.text(380, 205, 'reward: did the', 'middle', 12)
    draw.text(380, 220, 'period after pay?', 'middle', 12)
    for left, rows in ((20, owners), (470, after)):
        draw.text(left, 245, 'block_index', size=12)
        for row in range(12):
            block, = (block for block, mine in enumerate(rows) if row in mine)
            fill, colour = (ORANGE, 'white') if row == 4 else ('white', DARK)
            draw.box(left + 84 + 16 * row, 232, 15, 18, fill, GREY, label=str(block + 1), size=11, colour=colour)
    draw.text(20, 278, 'The row itself stays where it lies: relocation changes one integer.')
    return draw


def arrival() -> Drawing:
    """Why a short row learns a new direction in one step."""
    draw = Drawing(620, 290, 'The same block reads directions alone: a short row turns faster')
    for left, title, length, step in ((30, "arrival='keep'", 150, 26), (310, "'shrink'", 26, 78)):
        draw.text(left, 24, title, bold=True)
        origin, old = (left + 20, 215), -0.35
        tip = origin[0] + length * math.cos(old), origin[1] + length * math.sin(old)
        aim = tip[0] + step * math.cos(old - math.pi / 2), tip[1] + step * math.sin(old - math.pi / 2)
        draw.arrow(*origin, *tip, colour=BLUE, width=3)
        draw.arrow(*tip, *aim, colour=ORANGE, width=2)
        draw.line(origin, aim, colour=DARK, dash='4 3')
    draw.text(110, 232, 'row p', colour=BLUE, size=12)
    draw.text(70, 110, 'a step: small turn', colour=ORANGE, size=12)
    draw.text(350, 232, 'row · factor', colour=BLUE, size=12)
    draw.text(370, 130, 'gradient ~ 1 / length:', colour=ORANGE, size=12)
    draw.text(370, 146, 'a step is a new direction', colour=ORANGE, size=12)
    draw.text(30, 272, 'A block reads LN(p): a direction, not a length. Dashed: what it reads after the step.')
    return draw


def vapt() -> Drawing:
    """How VAPT computes a prompt from what the block is given."""
    draw = Drawing(760, 280, "VAPT: a prompt is a weighted sum over the positions of the block's own input")
    draw.text(20, 24, 'block input', bold=True)
    for row in range(5):
        for column in range(5):
            draw.box(22 + 20 * column, 40 + 20 * row, 18, 18, LIGHT, GREY)
    draw.text(22, 160, 'C channels,')
    draw.text(22, 176, 'h × w patches')
    for x, label, colour in ((170, 'LN', BLUE), (260, 'k × k kernel', BLUE)):
        draw.box(x, 62, 50 if label == 'LN' else 100, 54, 'white', colour, label=label, colour=colour)
    draw.arrow(126, 89, 168, 89)
    draw.arrow(222, 89, 258, 89)
    draw.arrow(362, 89, 398, 89)
    draw.box(400, 40, 130, 100, 'white', ORANGE)
    draw.text(465, 58, 'row of prompt k', 'middle', 12, ORANGE)
    for row, weights in enumerate(((15, 50, 20, 10), (30, 95, 60, 20), (20, 70, 40, 10), (10, 20, 15, 5))):
        for column, weight in enumerate(weights):
            draw.shapes.append(f'<rect x="{428 + 18 * column}" y="{64 + 18 * row}" width="16" height="16" '
                               f'fill="{ORANGE}" fill-opacity="{weight / 100}" stroke="{GREY}"/>')
    draw.arrow(532, 89, 568, 89)
    draw.box(570, 62, 80, 54, 'white', DARK, '5 3', label='projector')
    draw.arrow(652, 89, 686, 89)
    draw.box(688, 76, 60, 26, ORANGE, label='p(x)', colour='white')
    draw.text(718, 122, 'then k, v', 'middle', 12)
    draw.line((170, 150), (360, 150), colour=BLUE)
    draw.text(265, 170, "the block's own: they stay", 'middle', 13, BLUE)
    draw.text(465, 170, 'a weight per position:', 'middle', 13, ORANGE)
    draw.text(465, 188, 'this moves (PRO-VAPT)', 'middle', 13, ORANGE)
    draw.text(610, 150, 'one for', 'middle')
    draw.text(610, 167, 'all blocks', 'middle')
    draw.text(20, 236, 'Another image gives other prompts. Block 1 keeps prompts that do not depend on the input.')
    draw.text(20, 260, 'A map of another size is averaged to 14 × 14 first, so a row fits every input.')
    return draw


def shallow() -> Drawing:
    """VPT-Deep and VPT-Shallow beside each other."""
    draw = Drawing(760, 270, 'VPT-Deep: prompts for each block. VPT-Shallow: what a block makes of them goes on')
    for top, title, deep in ((20, 'VPT-Deep', True), (150, 'VPT-Shallow', False)):
        draw.text(20, top + 4, title, bold=True)
        for block in range(3):
            x = 150 + 200 * block
            draw.box(x, top + 10, 110, 90, 'white', label=f'block {block + 1}')
            draw.arrow(x - 88, top + 36, x - 2, top + 36)
            if deep or block == 0:
                draw.box(x - 80, top + 62, 42, 24, ORANGE, label=f'P{block + 1}' if deep else 'P', colour='white')
                draw.arrow(x - 38, top + 74, x - 2, top + 74, colour=ORANGE)
            else:
                draw.arrow(x - 88, top + 74, x - 2, top + 74, colour=ORANGE)
                draw.text(x - 45, top + 66, f'Z{block}', 'middle', 12, ORANGE)
        draw.arrow(662, top + 36, 740, top + 36)
        draw.text(700, top + 28, 'tokens', 'middle', 12)
    draw.text(215, 134, 'outputs of prompts: dropped, so they need no queries and no MLP', size=12)
    draw.text(215, 264, 'outputs of prompts: read by the next block, so they are tokens', size=12)
    return draw


def swin() -> Drawing:
    """A row that crosses stages passes the backbone's own patch merging."""
    draw = Drawing(760, 250, 'Swin: a row that moves to a wider stage passes the frozen patch merging')
    for left, width, stage in ((20, 60, 1), (590, 120, 2)):
        draw.text(left, 24, f'stage {stage}, width {"C" if stage == 1 else "2C"}', bold=True)
        for row in range(3):
            moved = row == (1 if stage == 1 else 2)
            draw.box(left, 40 + 36 * row, width, 24, ORANGE if moved else BLUE)
    draw.arrow(84, 88, 158, 88, colour=ORANGE)
    for copy in range(4):
        draw.box(162 + 32 * copy, 76, 30, 24, ORANGE)
    draw.text(226, 66, 'four copies, 4C', 'middle')
    draw.arrow(294, 88, 328, 88, colour=ORANGE)
    draw.box(330, 64, 60, 48, 'white', BLUE, label='norm', colour=BLUE)
    draw.arrow(392, 88, 418, 88, colour=ORANGE)
    draw.box(420, 64, 90, 48, 'white', BLUE, label='reduction', colour=BLUE)
    draw.line((512, 88), (550, 88), (550, 124), (586, 124), colour=ORANGE, arrow=True)
    draw.line((330, 134), (510, 134), colour=BLUE)
    draw.text(420, 152, "the backbone's, frozen", 'middle', 13, BLUE)
    draw.line((586, 136), (560, 136), (560, 182), (50, 182), (50, 106), colour=GREY, dash='5 4', arrow=True)
    draw.text(300, 176, 'back: the least-squares inverse', 'middle', 13, '#666666')
    draw.text(20, 226, 'Its root mean square is kept; what the optimizer remembers of the old numbers is forgotten.')
    return draw


def allocation() -> Drawing:
    """The reward of a move: what two periods' losses say beyond pruning."""
    draw = Drawing(760, 300, 'The reward: by how much more the loss fell than pruning alone would have saved')
    draw.arrow(50, 250, 50, 30)
    draw.arrow(50, 250, 740, 250)
    draw.text(58, 38, 'loss')
    before, pruned, after = 75, 120, 190
    for x, level in ((70, before), (380, after)):
        wave = [(x + 10 * step, level + 9 * math.sin(1.7 * step) - 12 + 0.9 * step) for step in range(28)]
        draw.line(*wave, colour=GREY)
        draw.line((x, level), (x + 270, level), width=2.5)
    draw.text(80, 100, 'mean of the period before', size=12)
    draw.text(390, 222, 'mean of the period after', size=12)
    draw.line((360, 40), (360, 250), colour=ORANGE, dash='4 4')
    draw.text(360, 268, 'the move', 'middle', 13, ORANGE)
    draw.line((340, before), (700, before), colour=GREY, dash='3 3')
    draw.line((380, pruned), (700, pruned), colour=BLUE, dash='6 4', width=2)
    draw.arrow(672, before, 672, pruned - 1, colour=BLUE, width=2)
    draw.text(682, 102, 'I', colour=BLUE)
    draw.text(400, pruned - 8, 'what pruning alone would give', 'start', 12, BLUE)
    draw.arrow(672, pruned, 672, after - 1, colour=ORANGE, width=2.5)
    draw.text(682, 160, 'r', colour=ORANGE, bold=True)
    draw.text(20, 292, 'r = loss before − I − loss after (Eq. 8): known when the next period closes.')
    return draw


FIGURES = {'keys_and_values': keys_and_values, 'shallow': shallow, 'vapt': vapt, 'relocation': relocation,
           'idleness': idleness, 'allocation': allocation, 'arrival': arrival, 'swin': swin}


if __name__ == '__main__':
    FOLDER.mkdir(exist_ok=True)
    for name, figure in FIGURES.items():
        (FOLDER / f'{name}.svg').write_text(figure().svg(), encoding='utf-8')
