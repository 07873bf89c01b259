"""Messages to the user: into MMEngine's log where it runs, else into Python's."""
import logging
import sys


def log(message: str, level: int = logging.INFO) -> None:
    """Say something once, at a level of ``logging``."""
    if 'mmengine' in sys.modules:  # who has not imported it has no Runner and no log of its
        from mmengine.logging import print_log
        print_log(message, 'current', level=level)
    else:
        logging.getLogger('mmprovpt').log(level, message)
