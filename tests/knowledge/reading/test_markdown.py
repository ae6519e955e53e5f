"""Reading Markdown."""

from __future__ import annotations

from tests.knowledge.reading.conftest import Read


def test_blocks_of_markdown_are_read_without_markup(read: Read) -> None:
    content = """---
title: "The: Handbook"
tags: [secret]
---
Bridges
=======
The *Wren* [bridge](http://example.com/a) opens<br>at `06:40`. <b>Bold</b> &amp; ~~old~~
<script>steal()</script>

## Pumps ##

- one
- two
  1. inner

```python
# Not a heading

def pump():
    return 1
```

| Pump | Flow |
|------|-----:|
| XK-4471-B | 12 |

<table><tr><td>raw</td><td>html</td></tr></table>
"""
    assert read("a.md", content) == [
        (1, "The: Handbook"),
        (1, "Bridges"),
        (0, "The Wren bridge opens\nat 06:40. Bold & old"),
        (2, "Pumps"),
        (0, "- one\n- two\n  1. inner"),
        (0, "# Not a heading\n\ndef pump():\n    return 1"),
        (0, "Pump | Flow\nXK-4471-B | 12"),
        (0, "raw | html"),
    ]


def test_a_title_equal_to_the_first_heading_is_not_repeated(read: Read) -> None:
    assert read("a.markdown", "+++\ntitle = 'Tolls'\n+++\n# Tolls\nThree coppers.") == [
        (1, "Tolls"),
        (0, "Three coppers."),
    ]


def test_rules_are_not_front_matter(read: Read) -> None:
    assert read("a.md", "---\n\nText\n\n---\n\nMore") == [(0, "Text"), (0, "More")]
