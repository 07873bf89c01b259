"""How a program ends that cannot do what it was asked to."""
import json
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from mmprovpt.errors import ConfigError, DivergedError


@contextmanager
def user_errors() -> Iterator[None]:
    """End the program with a message instead of a traceback for mistakes in configs and data.

    Within, checkpoints are read as weights and not executed; ``--trust-checkpoint`` of a tool lifts that
    (:func:`mmprovpt.cli.options.add_trust_option`).
    """
    if hasattr(sys.stdout, 'reconfigure'):  # what a locale cannot say is no reason to fail when all is done
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        with _only_weights():
            yield
    except (ConfigError, DivergedError) as error:
        message = f'error: {error}'
    except json.JSONDecodeError as error:
        message = (f'error: an annotation file is corrupt ({error}): fetch or generate again what '
                   'the ann_file keys of the config name')
    else:
        return
    rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))
    sys.exit(message if rank == '0' else 1)


def _only_weights() -> AbstractContextManager:
    """Of a program that has torch; the others read no checkpoints, and need not import it for this."""
    if sys.modules.get('torch') is None:
        return nullcontext()
    from mmprovpt.trust import only_weights
    return only_weights()
