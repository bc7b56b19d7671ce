"""Hooks of ``mkdocs.yml``: equations as MathML, tables that a phone can show, and links to files outside ``docs/``.

The pages are written so that they read well as plain files too: a link to ``../studies/glue-minilm/README.md`` works in
a checkout. The site takes such files in, under their path in the repository; a link to a folder or to code, which is no
page, becomes plain text.
"""

import html
import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = "docs"
SERVED = {".md", ".png", ".svg", ".html"}  # of the files outside docs/, those that a reader can open
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside ``docs/`` that pages link to, and those that these link to."""
    waiting = [f"{DOCS}/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for _, _, target in _LINK.findall(_without_code((ROOT / page).read_text(encoding="utf-8"))):
            path = _path(page, target)
            if path in seen or not _is_served(path):
                continue
            seen.add(path)
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
            if path.endswith(".md"):
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    source = page.file.src_uri if page.file.generated_by else f"{DOCS}/{page.file.src_uri}"

    def turned(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        path = _path(source, target)
        if path is None:
            return found[0]
        uri = path.removeprefix(f"{DOCS}/")
        if files.get_file_from_path(uri) is None:
            return text
        anchor = target.partition("#")[2]
        link = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{text}]({link}{'#' if anchor else ''}{anchor})"

    parts = _CODE.split(markdown)
    # A link's text may be code, so only whole blocks are left alone.
    return "".join(part if part.startswith("```") else _LINK.sub(turned, part) for part in _joined(parts))


def on_page_content(content: str, **_: Any) -> str:
    """Equations as MathML, which browsers draw without scripts or fonts; cells that a phone does not squeeze."""

    def drawn(found: re.Match[str]) -> str:
        kind = "inline" if found[1] == "span" else "block"
        return str(convert(html.unescape(found[2]), display=kind))

    return _CELL.sub(_marked, _MATHS.sub(drawn, content))


def _marked(cell: re.Match[str]) -> str:
    """A table's cell with the class ``long`` where it holds a sentence, ``short`` where a figure or a name."""
    length = len(html.unescape(re.sub("<[^>]*>", "", cell[1])))
    if 12 < length <= 60:
        return cell[0]
    return f'<td class="{"long" if length > 60 else "short"}">{cell[1]}</td>'


def _joined(parts: list[str]) -> list[str]:
    """Inline code goes back to the text around it; blocks of code stay apart."""
    joined = [""]
    for part in parts:
        if part.startswith("```"):
            joined += [part, ""]
        else:
            joined[-1] += part
    return joined


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def _path(page: str, target: str) -> str | None:
    """Where a link leads, from the repository's root; ``None`` for other hosts and places on the same page."""
    if re.match(r"[a-z]+:|#|/", target):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(target.partition("#")[0])))


def _is_served(path: str | None) -> bool:
    return (
        path is not None
        and not path.startswith(("..", f"{DOCS}/"))
        and path != "README.md"  # the site's own first page stands for it
        and Path(path).suffix in SERVED
        and (ROOT / path).is_file()
    )
