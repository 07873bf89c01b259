"""The version of this package, and the versions of others that are known to fail with it. Imports none of them."""
import re
import runpy
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path

__version__ = '0.1.0'


def installed_versions() -> dict[str, str]:
    """Import name → version, of those of torch, numpy, mmengine and mmcv that are installed."""
    versions = {}
    for name in ('torch', 'numpy'):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    # Several distributions provide each of OpenMMLab's packages, but all have this file.
    for name in ('mmengine', 'mmcv'):
        spec = util.find_spec(name)
        if spec is not None and spec.origin:
            versions[name] = runpy.run_path(str(Path(spec.origin).with_name('version.py')))['__version__']
    return versions


def refuse_known_bad(versions: dict[str, str]) -> None:
    """Raise for versions that are known to fail.

    Args:
        versions: See :func:`installed_versions`.

    Raises:
        RuntimeError: It names every bad version, why it is bad and what to install. (No ImportError: MMEngine
            swallows those when it looks a type up.)
    """
    numbers = {name: tuple(map(int, re.findall(r'\d+', text)[:3])) for name, text in versions.items()}
    torch, numpy, mmengine, mmcv = (numbers.get(name) for name in ('torch', 'numpy', 'mmengine', 'mmcv'))
    bad = []
    if mmengine and mmengine < (0, 8, 5):
        bad.append('mmengine {mmengine} is older than 0.8.5: it cannot write configs with a current yapf')
    elif mmengine and mmengine < (0, 10, 8) and torch and torch >= (2, 6):
        bad.append('mmengine {mmengine} with torch {torch}: torch >= 2.6 refuses to load the checkpoints that MMEngine '
                   'before 0.10.8 writes, so --resume fails; use mmengine >= 0.10.8 or torch < 2.6')
    if mmcv and mmcv < (2, ):
        bad.append('mmcv {mmcv} is older than 2.0: it has a Runner and a registry of its own')
    if numpy and numpy >= (2, ) and torch and torch < (2, 3):
        bad.append('numpy {numpy} with torch {torch}: torch before 2.3 cannot read NumPy 2 arrays; use numpy < 2 or '
                   'torch >= 2.3')
    if bad:
        raise RuntimeError('mmprovpt cannot work with what is installed:\n  ' +
                           '\n  '.join(line.format(**versions) for line in bad))
