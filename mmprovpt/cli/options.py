"""What is given on the command line, and the config that it makes."""
import argparse
import os
import os.path as osp

from mmengine.config import Config, DictAction
from mmengine.config.utils import ConfigParsingError

from mmprovpt.errors import ConfigError
from mmprovpt.trust import trust_checkpoints

from .config_parts import scope_of
from .packages import CODEBASES, how_to_install, require_codebase
from .preflight import find_weights_beside_config


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share: work_dir, overrides and launcher."""
    parser.add_argument('--work-dir', help='the directory for logs and results')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='override settings of the config; lists as key="[a,b]" or key=a,b, without spaces')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
        help='job launcher')
    # torch.distributed.launch passes it; torchrun sets the environment variable instead.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    add_trust_option(parser)


class _Trust(argparse.Action):

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, True)
        trust_checkpoints()


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``, which holds as soon as it is parsed, to the end of ``user_errors``."""
    parser.add_argument(
        '--trust-checkpoint', action=_Trust, nargs=0, default=False,
        help='read checkpoints that hold more than weights, too; whoever made one can run any code on this machine')


def read_config(path, options: dict | None = None) -> Config:
    """A config file, with overrides (keys with dots). Relative paths of weights are looked up from its folder, too.

    Raises:
        ConfigError: There is no such file, or it inherits from a package that is not installed, or it or a base of
            it is missing, not in UTF-8 or not Python.
    """
    if not osp.isfile(path):
        raise ConfigError(f'no such config file: {path} (looked for: {osp.abspath(path)})')
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        advice = next((how_to_install(name) for name in CODEBASES if name in str(error)), None)
        raise ConfigError(f'{path} needs a package that is not installed: {error}' + f': {advice}' * bool(advice)) \
            from error
    except KeyError as error:
        raise ConfigError(f'{path} cannot be read: it or a base of it uses {error}, which is not there') from error
    except (ConfigParsingError, FileNotFoundError) as error:  # of a base
        raise ConfigError(f'{path} cannot be read: {error}') from error
    except UnicodeDecodeError as error:
        raise ConfigError(f'{path} or a base of it is not in UTF-8 ({error}): save it as UTF-8') from error
    except SyntaxError as error:
        advice = ': save it as UTF-8 without a byte order mark' if 'U+FEFF' in str(error) else ''
        raise ConfigError(f'{path} or a base of it is not Python: {error}{advice}') from error
    cfg.merge_from_dict(options or {})
    require_codebase(scope_of(cfg))
    find_weights_beside_config(cfg)
    return cfg


def read_scoped_config(path, options: dict | None = None) -> Config:
    """As :func:`read_config`, with :func:`scope_of` as default scope: for tools that build without a Runner."""
    cfg = read_config(path, options)
    cfg.default_scope = scope_of(cfg)
    return cfg


def load_config(args) -> Config:
    """The config with command-line overrides.

    Its work_dir is --work-dir, or else its own, or else work_dirs/<name of the file>.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, {'launcher': args.launcher, **(args.cfg_options or {})})
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    return cfg
