"""A bar for those who write images, without a library that they would need for it alone."""
import sys
import time

_begun: dict[str, float] = {}  # when, by name


def show_progress(name: str, done: int, total: int) -> None:
    """Draw a bar with the time that is left on stderr; where nobody watches, print its end only.

    Args:
        name: Of what is written; each has a time of its own.
        done: Images that are written, from 1.
        total: All of them.
    """
    now = time.monotonic()
    begun = _begun.setdefault(name, now)
    if done == total or sys.stderr.isatty() and done % 20 == 0:
        bar = '#' * (30 * done // total)
        left = (now - begun) / max(done - 1, 1) * (total - done)
        eta = f', {left // 60:.0f} min {left % 60:02.0f} s left ' if done < total else ' ' * 20
        print(f'\r{name} [{bar:<30}] {done}/{total} images{eta}', end='\n' if done == total else '',
              file=sys.stderr, flush=True)
