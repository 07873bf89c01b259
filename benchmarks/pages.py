"""Tables that a script writes into a page of the documents."""
import re
from pathlib import Path


def write_between(marks: tuple[str, str], text: str, page: Path | None) -> None:
    """Put a text in place of what stands between two marks of a page; without a page, print it."""
    if page is None:
        print(text)
        return
    before = page.read_text(encoding='utf-8')
    page.write_text(re.sub(f'{marks[0]}.*{marks[1]}', lambda _: f'{marks[0]}\n{text}\n{marks[1]}', before,
                           flags=re.S), encoding='utf-8')
