import importlib.util
import subprocess
from pathlib import Path

import timm
import torch

PATH = Path(__file__).parents[1] / 'examples/plain_pytorch.py'


def test_plain_pytorch(capsys):
    spec = importlib.util.spec_from_file_location('plain_pytorch', PATH)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(3, (4, ))) for _ in range(3)]
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2,
                            num_classes=3)
    frozen = {name: value.clone() for name, value in vit.state_dict().items() if 'head' not in name}
    prompts, average, periods = example.train(vit, batches, periods=5, num_tokens=2)
    blocks = torch.arange(3).repeat_interleave(2)
    moves = [move for period in periods for move in period.moves]
    for move in moves:
        assert blocks[move.prompt] == move.source
        blocks[move.prompt] = move.target
    assert any(move.source != move.target for move in moves)
    assert torch.equal(prompts.block_index, blocks)
    assert torch.equal(average.module.prompts.block_index, blocks)
    assert [period.number for period in periods] == [1, 2, 3, 4, 5] and periods[-1].moves == []
    assert any(period.previous_reward is not None for period in periods)
    assert all(torch.equal(vit.state_dict()[name], value) for name, value in frozen.items())
    losses = [float(line.split('loss ')[1].split(',')[0]) for line in capsys.readouterr().out.splitlines()
              if line.startswith('period ')]
    assert len(losses) == 5 and losses[-1] < losses[0]


def test_compiling_says_how_long_it_will_take():
    """What pip and ninja say becomes a line for each file, with the rest of the time; what is noise is left out."""
    script = 'echo Collecting x; echo noise; echo " [1/3] c++"; sleep 1; echo "  [2/3] c++"; echo "[3/3] link"'
    done = subprocess.run(['bash', '-c', f'({script}) | requirements/compile_progress.sh'], cwd=PATH.parents[1],
                          capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ['Collecting x', '  compiled [1/3]'] and lines[3] == '  compiled [3/3], 0 min 0 s left'
    assert lines[2] in ('  compiled [2/3], 0 min 1 s left', '  compiled [2/3], 0 min 2 s left')


def test_it_needs_no_openmmlab():
    imports = [line for line in PATH.read_text().splitlines() if line.startswith(('import', 'from'))]
    assert [line.split()[1].partition('.')[0] for line in imports] == [
        'timm', 'torch', 'torch', 'timm', 'mmprovpt', 'mmprovpt']
