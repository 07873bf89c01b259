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
    parts += [checkpoints(rows), notes(rows)]
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
