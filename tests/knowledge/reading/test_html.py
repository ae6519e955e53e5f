"""Reading HTML."""

from __future__ import annotations

from tests.knowledge.reading.conftest import Read


def test_visible_blocks_of_html_are_read(read: Read) -> None:
    content = """<!doctype html><html><head><title>Callowmere</title><style>p {}</style></head><body>
<nav>Home</nav><div role=navigation>Menu</div><script>steal()</script><template>later</template>
<p hidden>secret<p style="color:red; display: none">unseen<p>The   <b>Wren</b>
bridge &mdash; opens.<br>Daily.
<h2>Tolls <a class=headerlink>¶</a></h2><details><summary>Who?</summary>Carts.</details>
<ul><li>cart<li>horse<ol start=3><li>foal</ol></ul>
<table><caption>Pumps</caption><tr><th>Name<th>Flow<tr><td>XK-4471-B<td><p>12</p><p>l/s</p></table>
<dl><dt>Wren<dd>A bridge.</dl><pre>a = 1

  b = 2</pre></body></html>"""
    assert read("a.html", content) == [
        (1, "Callowmere"),
        (0, "The Wren bridge — opens.\nDaily."),
        (2, "Tolls"),
        (0, "Who?"),
        (0, "Carts."),
        (0, "- cart\n- horse\n  3. foal"),
        (0, "Pumps\nName | Flow\nXK-4471-B | 12 l/s"),
        (0, "Wren\n  A bridge."),
        (0, "a = 1\n\n  b = 2"),
    ]


def test_the_title_is_left_out_before_a_first_heading(read: Read) -> None:
    assert read("a.htm", "<title>Site</title><h1>Tolls</h1>Three") == [(1, "Tolls"), (0, "Three")]


def test_layout_tables_are_paragraphs(read: Read) -> None:
    content = "<table><tr><td>Left<td><h2>Tolls</h2><table><tr><td>a<td>b</table>Three<td>Right</table>"
    assert read("a.html", content) == [(0, "Left"), (2, "Tolls"), (0, "a | b"), (0, "Three"), (0, "Right")]


def test_the_encoding_in_html_is_used(read: Read) -> None:
    content = '<meta charset="windows-1251"><p>Мост'.encode("windows-1251")
    assert read("a.html", content) == [(0, "Мост")]
