"""Packages that are not installed, and the command that installs them. Imports none of them."""
import shlex
from importlib.util import find_spec
from pathlib import Path

from mmprovpt.errors import ConfigError
from mmprovpt.shipped import shipped

# Import name → the extra of mmprovpt that brings it.
EXTRAS = dict(mmdet='det', mmseg='seg', mmpretrain='cls', pycocotools='det', scipy='cls', timm='timm',
              matplotlib='plots', ray='sweep', tqdm='sweep', onnx='onnx', onnxruntime='onnx', onnxscript='onnx',
              sklearn='data', PIL='data')
CODEBASES = ('mmdet', 'mmseg', 'mmpretrain')


def how_to_install(module: str) -> str | None:
    """The command that installs what has an import name; None if it is not known."""
    if module == 'mmcv':
        return mmcv_command()
    if module == 'mmengine':
        return 'pip install onedl-mmengine (or upstream, mmengine)'
    return f"pip install 'mmprovpt[{EXTRAS[module]}]'" if module in EXTRAS else None


def mmcv_command(*options: str) -> str:
    """It builds mmcv with the operators, which pip leaves out without a word where the build cannot see torch."""
    return ("pip install 'setuptools>=77,<81' wheel ninja psutil && pip install --no-build-isolation "
            + ''.join(f'{option} ' for option in options) + f'-r {shlex.quote(shipped("requirements/mmcv.txt"))}')


def require_codebase(scope: str | None) -> None:
    """Check that the codebase of a config is there, with mmcv and the operators that it needs.

    MMEngine only warns if it cannot import one, and then does not find the model.

    Args:
        scope: The config's; others than those of :data:`CODEBASES` need nothing.

    Raises:
        ConfigError: Something is not; says how to install it.
    """
    if scope not in CODEBASES:
        return
    for module in (scope, 'mmcv'):
        if find_spec(module) is None:
            raise ConfigError(f'{module} is not installed, which configs of {scope} need: {how_to_install(module)}')
    folders = find_spec('mmcv').submodule_search_locations or ()
    if scope != 'mmpretrain' and not any(path for folder in folders for path in Path(folder).glob('_ext.*')):
        command = mmcv_command('--force-reinstall', '--no-deps', '--no-cache-dir', '--no-binary onedl-mmcv')
        raise ConfigError(f'mmcv is installed without its operators, which {scope} needs: {command}')


def explain(error: ModuleNotFoundError) -> str | None:
    """A sentence about a module that a program did not find; None if it is none of those known here."""
    module = (error.name or '').partition('.')[0]
    command = how_to_install(module)
    return command and f'{module} is not installed: {command}'
