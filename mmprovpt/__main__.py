"""``python -m mmprovpt`` is the console script ``mmprovpt``."""
from mmprovpt.cli.console import main

if __name__ == '__main__':
    main()
