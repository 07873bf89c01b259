"""Visual prompts that move between the blocks of a frozen backbone, for OpenMMLab and timm."""
import importlib
import re
from importlib.util import find_spec

from .version import __version__


def _refuse_known_bad(versions: dict) -> None:
    """Raise for versions that are known to fail.

    Args:
        versions: Import name → version, of what is installed. Import names, because OpenMMLab's
            packages come from several distributions.

    Raises:
        RuntimeError: It names every bad version, why it is bad and what to install. (No
            ImportError: MMEngine swallows those when it looks a type up.)
    """
    v = {name: tuple(map(int, re.findall(r'\d+', text)[:3])) for name, text in versions.items()}
    bad = []
    if 'mmengine' not in v:
        bad.append('MMEngine is not installed: pip install onedl-mmengine (or upstream, mmengine)')
    elif v['mmengine'] < (0, 8, 3):
        bad.append('mmengine {mmengine} is older than 0.8.3: it cannot write configs with a '
                   'current yapf')
    elif v['mmengine'] < (0, 10, 8) and v['torch'] >= (2, 6):
        bad.append('mmengine {mmengine} with torch {torch}: torch >= 2.6 refuses to load the '
                   'checkpoints that MMEngine before 0.10.8 writes, so --resume fails; use '
                   'mmengine >= 0.10.8 or torch < 2.6')
    if v.get('mmcv', (2,)) < (2,):
        bad.append('mmcv {mmcv} is older than 2.0: it has a Runner and a registry of its own')
    if v['torch'] < (2, 3) and v['numpy'] >= (2,):
        bad.append('numpy {numpy} with torch {torch}: torch before 2.3 cannot read NumPy 2 arrays; '
                   'use numpy < 2 or torch >= 2.3')
    if bad:
        raise RuntimeError('mmprovpt cannot work with what is installed:\n  ' +
                           '\n  '.join(line.format(**versions) for line in bad))


# mmdet, mmseg and mmpretrain check their mmcv and mmengine themselves and are not imported here.
_refuse_known_bad({
    name: importlib.import_module(name).__version__
    for name in ('torch', 'numpy', 'mmengine', 'mmcv')
    if name in ('torch', 'numpy') or find_spec(name)
})

from .backbones import inject_prompts, tuned_state_dict  # noqa: E402
from .prompts import PromptSet  # noqa: E402

__all__ = ['PromptSet', '__version__', 'inject_prompts', 'tuned_state_dict']
