"""All pictures with their captions on one page, to look at rather than to read files: HTML with everything inside."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

from sdtune.data.layouts import listed, plural, shown
from sdtune.data.thumbs import data_uri
from sdtune.errors import DataError
from sdtune.files import is_ours, write_text
from sdtune.pages import page

MARK = "<!-- sdtune captions -->"
SIDE = 256
MOST = 2000
"""More pictures make a page that browsers are slow with."""
WRITTEN_BY = {"human": "by a person", "sdtune": "by sdtune", "nobody": "no caption"}


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
    write_text(path, MARK + "\n" + page("captions", title=shown(Path(root.resolve().name)), note=note, cells=cells))
    return unread


def check_page(path: Path) -> None:
    """Refuse a file that is there and no such page. Raises DataError."""
    if not is_ours(path, MARK):
        raise DataError(f"{path}: exists and is no page of captions; move it away")
