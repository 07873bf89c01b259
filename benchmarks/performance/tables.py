"""Tables of what performance.py found."""
import statistics
from functools import partial

from measures import ratios, spread


def tables(report):
    """Markdown: ratios of time, milliseconds of the unit, memory, checkpoints, and what failed."""
    about = report['about']
    rows = report['rows']
    parts = [f'{about["device"]}, {about["threads"]} CPU threads, torch {about["torch"]}, backbones of '
             f'{about["library"]}']
    timed = [row for row in rows if row['rounds'] and row['what'] != 'memory']
    parts += [wide('Time, as a ratio to the unit', timed, ratio, unit)] if timed else []
    if timed and not about['gpu']:
        parts += [wide('CPU time, as a ratio to the unit', timed, partial(ratio, key='cpu'))]
    kept = [row for row in rows if row.get('memory')]
    parts += [wide('Peak memory of training above the model, MiB', kept, memory)] if kept else []
    closing = [row for row in rows if row.get('closing')]
    parts += [wide('Closing a period, ms', closing, closing_ms)] if closing else []
    parts += [checkpoints(rows), targets(rows), notes(rows)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def name(row):
    """The first cells of a row."""
    height, width = row['size']
    return f'{row["model"]} | {row["what"]}, {row["batch"]} × {height}×{width} | {row["precision"]}'


def wide(title, rows, cell, first=None):
    """One line per row, one column per method."""
    methods = list(dict.fromkeys(method for row in rows for method in ('plain', *row['methods'])
                                 if any(cell(each, method) != '' for each in rows)))
    head = ['model', 'what', 'precision', *(['unit'] if first else []), *methods]
    lines = [f'{title}\n', f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
    for row in rows:
        cells = [name(row), *([first(row)] if first else []), *(cell(row, method) for method in methods)]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def unit(row):
    """What ratios of a row are to."""
    times = [1000 * each for each in row['wall'][row['unit']]]
    return f'{row["unit"]}, {statistics.median(times):.{0 if min(times) > 100 else 1}f} ms'


def ratio(row, method, key='wall'):
    """Median (range) of a method's time to the unit's."""
    found = row[key]
    return spread(ratios(found[method], found[row['unit']])) if method in found and method != row['unit'] else ''


def memory(row, method):
    """MiB."""
    return f'{row["memory"][method]:.0f}' if method in row.get('memory', {}) else ''


def closing_ms(row, method):
    """Median (range)."""
    found = row.get('closing', {}).get(method)
    return spread([1000 * each for each in found], 1) if found else ''


def checkpoints(rows):
    """Bytes of files with what was tuned, one line per model."""
    sizes = {}
    for row in rows:
        for method, size in row.get('checkpoint', {}).items():
            if size == size:  # the plain model has none
                sizes.setdefault(row['model'], {})[method] = size
    methods = list(dict.fromkeys(method for each in sizes.values() for method in each))
    lines = ['Checkpoint, MB\n', f'| model | {" | ".join(methods)} |', '|' + '---|' * (len(methods) + 1)]
    for model, found in sizes.items():
        cells = [f'{found[method] / 1e6:.2f}' if method in found else '' for method in methods]
        lines.append(f'| {model} | {" | ".join(cells)} |')
    return '\n'.join(lines) if sizes else ''


def notes(rows):
    """What failed, and why, one line each."""
    lines = [f'- {row["model"]}, {row["what"]}, {row["precision"]}, batch {row["batch"]}: {method}: {why}'
             for row in rows for method, why in row.get('notes', {}).items()]
    return '\n'.join(['Not measured:\n', *lines]) if lines else ''


# What is promised: model, what, method, to what, at most.
TARGETS = [
    *(('ViT-B', 'step', f'VPT {n}', 'plain', limit) for n, limit in ((10, 2.1), (100, 2.3))),
    *(('Swin-T', 'step', f'VPT {n}', 'plain', limit) for n, limit in ((10, 2.1), (100, 2.4))),
    *((model, 'step', 'PRO-VPT 10', 'VPT 10', 1.02) for model in ('ViT-B', 'Swin-T')),
    *((model, 'inference', 'VPT 10', 'plain', 1.01) for model in ('ViT-B', 'Swin-T')),
    *((model, 'inference', 'VPT 100', 'plain', limit) for model, limit in (
        ('ViT-B', 1.03), ('ViT-L', 1.03), ('ViT-S', 1.05), ('Swin-B', 1.05), ('Swin-T', 1.08))),
    ('ViT-B', 'memory', 'VPT 10', 'full', 0.55), ('Swin-T', 'memory', 'VPT 10', 'full', 0.6),
    *(('ViT-B', 'memory', f'VPT {n}', f'concatenated {n}', 1.) for n in (10, 100)),
    ('Mask R-CNN Swin-T', 'step', 'VPT 10', 'full', 0.8),
    ('Mask R-CNN Swin-T', 'memory', 'VPT 10', 'full', 0.7),
    *((model, 'step', f'{method} @bf16', method, 1.) for model in ('ViT-B', 'Swin-T')
      for method in ('VPT 10', 'full')),
]


def targets(rows):
    """Target, measured, met. Times on the wall count, on a machine that does nothing else; of memory there is one."""
    lines = ['| target | at most | wall | CPU time | met |', '|---|---|---|---|---|']
    keys = dict(memory=('memory', ))
    for model, what, method, to, limit in TARGETS:
        for row in [each for each in rows if (each['model'], each['what']) == (model, what)]:
            for way in (method, f'{method} folded'):
                found = [between(row, key, way, to) for key in keys.get(what, ('wall', 'cpu'))]
                if not all(found):
                    continue
                cells = [spread(values, 3) for values in found] + [''] * (2 - len(found))
                met = 'in the spread' if min(found[0]) <= limit else 'no'
                met = 'yes' if statistics.median(found[0]) <= limit else met
                lines.append(f'| {model}, {what}, batch {row["batch"]}: {way} / {to} | {limit} | {" | ".join(cells)} | '
                             f'{met} |')
    return '\n'.join(['Targets\n', *lines]) if len(lines) > 2 else ''


def between(row, key, method, to):
    """Ratios, round by round, of one method to another; none where one was not measured."""
    found = row.get(key, {})
    if method not in found or to not in found:
        return []
    return [found[method] / found[to]] if key == 'memory' else ratios(found[method], found[to])
