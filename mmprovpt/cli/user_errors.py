"""How a program ends that cannot do what it was asked to."""
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmprovpt.errors import ConfigError


@contextmanager
def user_errors() -> Iterator[None]:
    """End the program with a message instead of a traceback for mistakes in configs and data."""
    if hasattr(sys.stdout, 'reconfigure'):  # what a locale cannot say is no reason to fail when all is done
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        yield
    except ConfigError as error:
        message = f'error: {error}'
    except json.JSONDecodeError as error:
        message = (f'error: an annotation file is corrupt ({error}): fetch or generate again what '
                   'the ann_file keys of the config name')
    else:
        return
    rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))
    sys.exit(message if rank == '0' else 1)
