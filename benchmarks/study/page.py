#!/usr/bin/env python
"""Write the study's tables into its page, between the comments that name their experiments.

    python benchmarks/study/page.py
"""
import re
import sys
from pathlib import Path

from experiments import EXPERIMENTS
from study import tables_of
from tables import read_rows

from mmprovpt.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'benchmarks/study/results'
PAGE = ROOT / 'docs/evidence/study.md'


def count(name: str) -> str:
    """Finished trainings of an experiment, of all there are."""
    found = len(read_rows(RESULTS / f'{name}.jsonl'))
    try:
        return f'{found} of {len(EXPERIMENTS[name](RESULTS))} trainings'
    except ConfigError:  # its tuning is not through
        return f'{found} trainings'


def filled(text: str) -> str:
    """The page with the tables as the results are now."""
    def block(match: re.Match) -> str:
        name = match[1]
        return f'<!-- {name} -->\n\n{count(name)}.\n\n{tables_of(name, RESULTS)}\n\n<!-- end -->'
    return re.sub(r'<!-- (\w+) -->\n.*?<!-- end -->', block, text, flags=re.S)


if __name__ == '__main__':
    PAGE.write_text(filled(PAGE.read_text(encoding='utf-8')), encoding='utf-8')
    sys.exit()
