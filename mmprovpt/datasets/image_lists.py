"""Checks of a list of labelled images: what is wrong is listed and raised at once, nothing is skipped."""
import os
from collections.abc import Iterable

from PIL import Image

from mmprovpt.errors import ConfigError

_MAX_LISTED = 20
_TAIL = 64  # bytes; some writers pad behind the end marker
# First bytes of a file → bytes at its end.
_MARKERS = {b'\xff\xd8\xff': b'\xff\xd9', b'\x89PNG\r\n\x1a\n': b'IEND\xaeB`\x82'}


def find_image_damage(path: str) -> str | None:
    """What is wrong with an image file; None if nothing is.

    Of JPEG and PNG only both ends are read (some 10 µs a file). What does not end as it should, and other formats,
    are decoded: trailing bytes alone do no harm.
    """
    try:
        with open(path, 'rb', buffering=0) as file:
            head = file.read(8)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL, 0))
            tail = file.read(_TAIL)
    except FileNotFoundError:
        return 'no such file'
    except OSError as error:
        return error.strerror
    if size == 0:
        return 'the file is empty'
    if any(head.startswith(start) and end in tail for start, end in _MARKERS.items()):
        return None
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, … according to the format
        return f'truncated, or not an image ({error})'


def check_samples(samples: Iterable[tuple[str, int]], num_classes: int) -> list[str]:
    """What is wrong with images and labels, a line each.

    Args:
        samples: Path of an image and its label.
        num_classes: Labels belong in [0, num_classes).
    """
    problems = []
    first: dict[str, int] = {}
    for path, label in samples:
        if not 0 <= label < num_classes:
            problems.append(f'{path}: label {label} is not in [0, {num_classes})')
        if path in first:
            if first[path] != label:
                problems.append(f'{path}: listed with label {first[path]} and with label {label}')
            continue
        first[path] = label
        damage = find_image_damage(path)
        if damage:
            problems.append(f'{path}: {damage}')
    return problems


def raise_problems(problems: list[str], what: str, advice: str) -> None:
    """Raise one error for all problems, if there are any.

    Args:
        problems: A line each.
        what: The split that they are of.
        advice: What to do about them.

    Raises:
        ConfigError: It lists the first 20 and says how many there are.
    """
    if not problems:
        return
    lines = [f'{what}: {len(problems)} problem' + 's' * (len(problems) > 1)]
    lines += [f'  {line}' for line in problems[:_MAX_LISTED]]
    if len(problems) > _MAX_LISTED:
        lines.append(f'  … and {len(problems) - _MAX_LISTED} more')
    lines.append(f'what to do: {advice}')
    raise ConfigError('\n'.join(lines))
