"""What users' data hold is shown in previews as it is: no markup, no HTML, no link, no picture that is fetched."""

import html
import re

import pyarrow as pa
import pytest
from markdown_it import MarkdownIt

from assets.preview import bullets, counts_table, markdown_table

TEXTS = [
    "a | b || c\\| d",
    "<script>alert(1)</script> <b>bold</b> <img src=x onerror=alert(1)>",
    "![beacon](http://evil.example/x.png) [link](javascript:alert(1))",
    "`code` ``x`` *bold* __bold__ ~~gone~~ _it_ a_b.png",
    "&lt;b&gt; &amp; &#124; \\<b> \\",
    "<http://evil.example> [x]: http://evil.example",
]


def seen(markdown: str) -> str:
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)
    assert not re.search(r"<(script|b|img|a|em|strong|code|s|del)\b", rendered)
    return rendered


def cells(rendered: str) -> list[str]:
    return [html.unescape(cell).replace("\u2060", "") for cell in re.findall(r"<td[^>]*>(.*?)</td>", rendered)]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_shown_as_it_is(text: str) -> None:
    table = markdown_table(pa.table({"text": [text, "next"], "label": ["yes", text]})).md_str
    assert cells(seen(table)) == [text, "yes", "next", text]
    assert cells(seen(counts_table({text: 3}, ("text", "rows")).md_str)) == [text, "3"]
    listed = re.findall(r"<li>(.*?)</li>", seen(bullets([text, "next"]).md_str))
    assert [html.unescape(item).replace("\u2060", "") for item in listed] == [text, "next"]


def test_addresses_become_no_links_and_lines_no_rows() -> None:
    table = markdown_table(pa.table({"text": ["see https://evil.example/x or www.evil.example\n| me@evil.example |"]}))
    assert not re.search(r"https?://|www\.|\w@\w", table.md_str), "GitHub's Markdown would make links of them"
    assert len(table.md_str.splitlines()) == 3
    assert cells(seen(table.md_str)) == ["see https://evil.example/x or www.evil.example | me@evil.example |"]
    assert len(markdown_table(pa.table({"text": ["&" * 1000]})).md_str) < 1100, "cut before it is written"
