"""The console script ``mmprovpt``: the tools that come with the package, run as ``python tools/….py`` would."""
import ast
import difflib
import os
import runpy
import sys
from pathlib import Path

from mmprovpt.errors import ConfigError
from mmprovpt.shipped import config, configs, shipped
from mmprovpt.version import __version__, installed_versions

from .packages import explain

TOOLS = {
    'train': 'train.py',
    'test': 'test.py',
    'dist-train': 'dist_train.sh',
    'dist-test': 'dist_test.sh',
    'slurm-train': 'slurm_train.sh',
    'slurm-test': 'slurm_test.sh',
    'add': 'add_provpt.py',
    'visualize': 'visualize.py',
    'export': 'export_onnx.py',
    'export-prompts': 'export_prompts.py',
    'sweep': 'sweep.py',
    'table': 'table.py',
    'count-parameters': 'analysis_tools/count_parameters.py',
    'plot-attention': 'analysis_tools/plot_attention.py',
    'plot-relocation': 'analysis_tools/plot_relocation.py',
    'plot-training': 'analysis_tools/plot_training.py',
    'convert-weights': 'model_converters/to_mmpretrain.py',
    'miniature-coco': 'dataset_converters/miniature_coco.py',
    'miniature-vtab': 'dataset_converters/miniature_vtab.py',
    'vtab1k': 'dataset_converters/vtab1k.py',
}


def main() -> None:
    """Run the command that the command line names."""
    command, *arguments = sys.argv[1:] or ['--help']
    try:
        if command in ('-h', '--help'):
            print(usage())
        elif command in ('-V', '--version'):
            print(versions())
        elif command == 'config':
            print('\n'.join(map(config, arguments) if arguments else configs()))
        elif command in TOOLS:
            run(command, arguments)
        else:
            near = difflib.get_close_matches(command, [*TOOLS, 'config'], 1)
            raise ConfigError(f'mmprovpt has no command {command!r}: ' + (
                f'did you mean {near[0]}?' if near else '`mmprovpt --help` lists all'))
    except ConfigError as error:
        sys.exit(f'error: {error}')
    except ModuleNotFoundError as error:
        message = explain(error)
        if message is None:
            raise
        sys.exit(f'error: {message}')


def run(command: str, arguments: list[str]) -> None:
    """Run a tool in this process, which a script of the shell takes over."""
    path = Path(shipped(f'tools/{TOOLS[command]}'))
    if path.suffix == '.sh':
        if set(arguments) <= {'-h', '--help'}:
            sys.exit(f'usage: {purpose(command)}')
        os.environ.setdefault('PYTHON', sys.executable)
        os.execvp('bash', ['bash', str(path), *arguments])
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))  # as Python does, for the modules beside it
    runpy.run_path(str(path), run_name='__main__')


def usage() -> str:
    """All commands, with the first sentence of each."""
    lines = [f'  {command:17} {purpose(command)}' for command in TOOLS]
    return '\n'.join([
        'usage: mmprovpt COMMAND …', '', 'commands (mmprovpt COMMAND --help says more):', *lines,
        f'  {"config":17} Print the paths of configs that come with the package; without NAME, their names.'])


def versions() -> str:
    """What a report of a bug needs: a line for each package that matters."""
    found = {'mmprovpt': __version__, 'python': sys.version.split()[0], **installed_versions()}
    return '\n'.join(f'{name} {version}' for name, version in found.items())


def purpose(command: str) -> str:
    """The first sentence of a tool's help; of a script of the shell, how to call it."""
    text = Path(shipped(f'tools/{TOOLS[command]}')).read_text(encoding='utf-8')
    if TOOLS[command].endswith('.sh'):
        return text.splitlines()[1].lstrip('# ').replace(f'tools/{TOOLS[command]}', f'mmprovpt {command}')
    return ast.get_docstring(ast.parse(text)).splitlines()[0]
