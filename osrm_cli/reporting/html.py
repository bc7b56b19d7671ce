"""A report as one page of HTML that needs nothing beside it."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from osrm_cli.plotting.figure import Plot, render_plot_svgs, render_wide_svg
from osrm_cli.reporting.markdown import Block, Heading, Items, Paragraph, Strong, TableBlock

_LINES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}  # CSS has no dash and dot
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def render_html(blocks: Sequence[Block]) -> str:
    """The whole page."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return _PAGE.format(title=escape(title), style=style, body="\n".join(map(_block_html, blocks)))


def _block_html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Items(texts):
            return f"<ul>\n{_join_html_lines(f'<li>{escape(text)}</li>' for text in texts)}\n</ul>"
        case TableBlock():
            return _table_html(block)
        case Plot():
            return _figure_html(block)


def _table_html(table: TableBlock) -> str:
    """In a region of its own that scrolls sideways, by keyboard too, where the page is narrow."""
    title = escape(table.title)
    head = "".join(
        _cell_html("th", text, place < table.texts, ' scope="col"') for place, text in enumerate(table.columns)
    )
    rows = (f"<tr>{_row_html(cells, table.texts)}</tr>" for cells in table.rows)
    return (
        f'<div class="scroll" role="region" aria-label="{title}" tabindex="0">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{_join_html_lines(rows)}\n</tbody>\n</table>\n</div>"
    )


def _row_html(cells: Sequence[str], texts: int) -> str:
    first, *others = cells
    named = _cell_html("th", first, True, ' scope="row"')
    return named + "".join(_cell_html("td", cell, place < texts) for place, cell in enumerate(others, 1))


def _cell_html(tag: str, content: str, is_text: bool, more: str = "") -> str:
    inside = f"<strong>{escape(content)}</strong>" if isinstance(content, Strong) else escape(content)
    kind = ' class="text"' if is_text else ""
    return f"<{tag}{more}{kind}>{inside}</{tag}>"


def _figure_html(plot: Plot) -> str:
    """Each panel by itself, to flow as the page's width has it; where all share names, on wide pages one image."""
    titles = [f"{plot.title}: {panel.title}".rstrip(": ") for panel in plot.panels]
    images = _join_html_lines(map(_image_html, render_plot_svgs(plot), titles))
    if plot.rows and len(plot.panels) > 1:
        whole = f"{plot.title}: {', '.join(panel.title for panel in plot.panels)}"
        wide = _image_html(render_wide_svg(plot), whole)
        panels = f'<div class="panels narrow">\n{images}\n</div>\n<div class="wide">\n{wide}\n</div>'
    else:
        panels = f'<div class="panels">\n{images}\n</div>'
    keys = "".join(
        f'<li><i style="border-top:.25em {_LINES[style["linestyle"]]} {style["color"]}"></i>{escape(name)}</li>'
        for name, style in plot.legend
    )
    legend = f'<ul class="legend">{keys}</ul>\n' if keys else ""
    return (
        f'<figure id="{plot.name}">\n<h3>{escape(plot.title)}</h3>\n{panels}\n'
        f"{legend}<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"
    )


def _image_html(svg: str, label: str) -> str:
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def _join_html_lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
