"""All pictures with their captions on one page, to look at rather than to read files: HTML with everything inside."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

from sdtune.data.layouts import listed, plural, shown
from sdtune.data.thumbs import data_uri, page
from sdtune.errors import DataError
from sdtune.files import is_ours, write_text

MARK = "<!-- sdtune captions -->"
SIDE = 256
MOST = 2000
"""More pictures make a page that browsers are slow with."""
WRITTEN_BY = {"human": "by a person", "sdtune": "by sdtune", "nobody": "no caption"}
PAGE = (
    MARK
    + """
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Captions of {{ title }}</title>
<style>
 body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff }
 main { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1.2rem }
 figure { margin: 0 } img { width: 100%; height: 220px; object-fit: contain; background: #f2f0ed }
 figcaption { overflow-wrap: anywhere } small { color: #6b6660 } .nobody, .human { border-left: 3px solid #c60; padding-left: .5rem }
 .human { border-color: #28c }
 @media (prefers-color-scheme: dark) { body { background: #1c1b1a; color: #ddd } img { background: #2a2826 } }
</style></head><body>
<h1>Captions of {{ title }}</h1>
<p>{{ note }}</p>
<main>
{% for name, image, captions, by, label in cells %}
<figure><img src="{{ image }}" alt="{{ name }}" loading="lazy">
<figcaption class="{{ by }}">{% for line in captions %}{{ line }}<br>{% endfor %}
<small>{{ name }}, {{ label }}</small></figcaption></figure>
{% endfor %}
</main></body></html>
"""
)


def write_sheet(
    pairs: Sequence[tuple[Path, Sequence[str], str]], root: Path, path: Path
) -> Generator[tuple[int, int], None, list[str]]:
    """Write the page `path` of pictures, captions and who wrote them, yielding how many are done of how many.

    Gives the names of pictures that cannot be read, which the page says, too. Raises DataError for a file that is there and no such page.
    """
    check_page(path)
    taken = pairs[:MOST]
    cells, unread = [], list[str]()
    for i, (image, captions, by) in enumerate(taken, 1):
        name = shown(image.relative_to(root))
        try:
            cells.append((name, data_uri(image, SIDE), list(captions), by, WRITTEN_BY[by]))
        except DataError:
            unread.append(name)
        yield i, len(taken)
    note = plural(len(cells), "picture") + (f", the first of {len(pairs)}" if len(pairs) > MOST else "")
    note += f"; {len(unread)} could not be read: {listed(unread)}" if unread else ""
    write_text(path, page(PAGE, title=shown(Path(root.resolve().name)), note=note, cells=cells))
    return unread


def check_page(path: Path) -> None:
    """Refuse a file that is there and no such page. Raises DataError."""
    if not is_ours(path, MARK):
        raise DataError(f"{path}: exists and is no page of captions; move it away")
