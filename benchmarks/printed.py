"""What the documents print: their blocks of code, and the commands in these and in sentences."""
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md')),
         *sorted((ROOT / 'configs').rglob('README.md'))]
BLOCK = re.compile(r'^( *)```(\w*)\n(.*?)^\1```', re.M | re.S)
# What code in a sentence begins with that is a command, and not a piece of a program.
PROGRAMS = re.compile(r'(?:[A-Z_]+=\S+ )*(?:python|pip|make|mmprovpt|mim|torchrun|pytest|tools/[\w/]+\.(?:py|sh)) \S')


def blocks(page: Path, *languages: str) -> list[str]:
    """A page's blocks of code in one of these languages, in order."""
    text = page.read_text(encoding='utf-8')
    return [re.sub(f'^{indent}', '', code, flags=re.M) for indent, language, code in BLOCK.findall(text)
            if language in languages]


def ten_lines() -> str:
    """The program that README begins with."""
    return blocks(ROOT / 'README.md', 'python')[0]


def lines(page: Path) -> list[str]:
    """Lines of a page's blocks for the shell, and commands within its sentences and tables."""
    shell = '\n'.join(blocks(page, 'bash')).replace('\\\n', '')
    prose = BLOCK.sub('', page.read_text(encoding='utf-8'))
    return [line for line in shell.splitlines() if line.strip()] + [
        code for code in re.findall(r'`([^`\n]+)`', prose) if PROGRAMS.match(code)]


def commands(line: str) -> list[list[str]]:
    """Words of each command in a line, without comments, dots for what is left out, and options in brackets."""
    lexer = shlex.shlex(re.sub(r' \[.*\]|…|\.\.\.', '', line), posix=True, punctuation_chars='&|;')
    lexer.whitespace_split = True
    found = [[]]
    for word in lexer:
        if set(word) <= set('&|;'):
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]
