"""Whether a file can hold weights, seen before anything is built."""
import json
import os.path as osp
import pickle
import tarfile
import zipfile

import torch

from mmprovpt.errors import ConfigError

_LFS = b'version https://git-lfs.github.com/spec/'
_CUT = 'truncated checkpoint'


def require_weights(path: str) -> None:
    """Check a checkpoint that is given on the command line.

    Raises:
        ConfigError: There is no such file, or it is no checkpoint of PyTorch; one line that says what it is.
    """
    if not osp.isfile(path):
        raise ConfigError(f'no such checkpoint: {path} (looked for: {osp.abspath(path)})')
    reason = weights_fault(path)
    if reason:
        raise ConfigError(f'{path}: {reason}')


def weights_fault(path: str, published: bool = False) -> str | None:
    """What a file is that is not a whole checkpoint of PyTorch; None for one that is. No code of it is run.

    Args:
        path: Of the file.
        published: Whether timm reads it, which knows NumPy's and safetensors' files by the ends of their names, too.
    """
    if not osp.isfile(path):
        return 'a directory, not a file' if osp.isdir(path) else 'no such file'
    with open(path, 'rb') as f:
        head = f.read(1024)
    start = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if not head:
        return 'truncated checkpoint (the file is empty)'
    if head.startswith(_LFS):
        return 'a pointer of Git LFS, not the weights (git lfs pull gets them)'
    if start.startswith(b'<'):
        return 'an HTML page, not the weights (a download that failed)'
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < 1 << 32:
        return _safetensors_fault(path, published)
    if head.startswith(b'PK'):
        return _zip_fault(path, published)
    if head.startswith(b'\x80'):  # what PyTorch wrote before 1.6
        return _pickle_fault(path)
    return None if tarfile.is_tarfile(path) else f'no checkpoint of PyTorch (it begins with {head[:12]!r})'


def _safetensors_fault(path, published):
    if not (published and path.endswith('.safetensors')):
        return ("a file of safetensors, which only timm's backbones read (checkpoint_path=…, a name that ends with "
                '.safetensors); `mmprovpt convert-weights` converts it')
    with open(path, 'rb') as f:
        length = int.from_bytes(f.read(8), 'little')
        header = f.read(length)
    try:
        ends = [value['data_offsets'][1] for key, value in json.loads(header).items() if key != '__metadata__']
    except (ValueError, KeyError, TypeError):
        return _CUT
    return None if osp.getsize(path) >= 8 + length + max(ends, default=0) else _CUT


def _zip_fault(path, published):
    try:  # its directory is at the end, so a truncated one has none
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return _CUT
    if any(osp.basename(name) == 'data.pkl' for name in names):
        return None
    if names and all(name.endswith('.npy') for name in names):
        return None if published and path.endswith('.npz') else (
            "an archive of NumPy, which only timm's backbones read (checkpoint_path=…, a name that ends with .npz); "
            '`mmprovpt convert-weights` converts it')
    return 'a zip archive, but no checkpoint of PyTorch'


def _pickle_fault(path):
    # It has no directory: only reading all of it shows whether all is there.
    try:
        torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        return None  # it names classes: whoever loads it decides on these
    except Exception:  # of a file that is cut: IndexError, EOFError, RuntimeError, struct.error
        return _CUT
