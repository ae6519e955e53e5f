"""Markdown of answers: blocks, code, hostile text, and streaming without flicker or repeated work."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.ui.chat_page import ChatPage
from tests.ui.relay import Relay

TRAILER = "\n\x1e" + json.dumps({"finish_reason": "eos_token", "generated_tokens": 9})
CODE = 'def greet(name):\n    return f"Hello, {name}!"  # <b>a comment</b>\n'
ANSWER = f"""# A title

Some **bold** text with `code` and [a link](https://example.org/a?b=1&c=2).

```python
{CODE}```

| City | People |
| :-- | --: |
| Paris | 2,100,000 |

3. First
4. Second

مرحبا بالعالم
"""

# Each attack must remain text, or a link to another site.
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<style>* { display: none }</style>",
    '<a href="javascript:alert(1)">x</a>',
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](vbscript:alert(1))",
    "[x](/contexts)",
    '[x](https://example.org "title\\" onmouseover=alert(1) x=\\"")',
    '[x](https://example.org/"onmouseover="alert(1))',
    "![x](https://example.org/pixel.png)",
    "![x](javascript:alert(1))",
    "[x][ref]\n\n[ref]: javascript:alert(1)",
    "<javascript:alert(1)>",
    '```"><img src=x onerror=alert(1)>\n<script>alert(1)</script>\n```',
    "```html\n<img src=x onerror=alert(1)>\n```",
    "`<img src=x onerror=alert(1)>`",
    "| <img src=x onerror=alert(1)> |\n| --- |\n| <script>alert(1)</script> |",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    '<tool_call>\n{"name": "<img src=x onerror=alert(1)>", "arguments": {"<b>": "<script>"}}\n</tool_call>',
    "<tool_call>\n<img src=x onerror=alert(1)>\n</tool_call>",
]

ELEMENTS = """[...document.querySelectorAll('.answer .text *')].filter((node) =>
  /^(IMG|SCRIPT|STYLE|IFRAME|OBJECT|EMBED|FORM|INPUT|MATH|LINK|META|BASE)$/i.test(node.tagName)
  || (node.tagName === 'svg' && !node.closest('button, .call > p'))
  || [...node.attributes].some(({name}) => /^(on|style|src|srcdoc)/i.test(name))
  || (node.tagName === 'A' && !/^(https?:|mailto:)/.test(node.getAttribute('href') ?? 'none'))
).map((node) => node.outerHTML)"""

# Feeds texts to the renderer piece by piece, without frames. Returns [parsed characters, text].
FEED = """async ([text, size]) => {
  const { StreamedMarkdown } = await import('/ui/streamed-markdown.js');
  const node = document.createElement('div');
  const shown = new StreamedMarkdown(node);
  for (let i = 0; i < text.length; i += size) { shown.append(text.slice(i, i + size)); shown.show(false); }
  shown.finish();
  return [shown.parsed, node.innerText || node.textContent];
}"""

HTML = """async (sizes) => {
  const { StreamedMarkdown } = await import('/ui/streamed-markdown.js');
  const text = sizes.pop();
  const html = [];
  for (const size of sizes) {
    const node = document.createElement('div');
    const shown = new StreamedMarkdown(node);
    for (let i = 0; i < text.length; i += size) { shown.append(text.slice(i, i + size)); shown.show(false); }
    shown.finish();
    await new Promise((resolve) => setTimeout(resolve, 300));  // colours
    html.push(node.innerHTML);
  }
  return html;
}"""


def show(chat: ChatPage, text: str) -> None:
    chat.fake_answers(lambda route: route.fulfill(body=text + TRAILER))
    chat.ask("Show me.")
    chat.wait_until_done()


def test_blocks_are_shown(chat: ChatPage) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    show(chat, ANSWER)
    expect(chat.answer(1)).to_match_aria_snapshot("""
        - heading "A title" [level=3]
        - paragraph:
          - strong: bold
          - code: code
          - link "a link":
            - /url: https://example.org/a?b=1&c=2
        - text: python
        - button "Copy code"
        - group "Code in python"
        - table:
          - rowgroup:
            - row "City People"
          - rowgroup:
            - row "Paris 2,100,000"
        - list:
          - listitem: First
          - listitem: Second
        - paragraph: مرحبا بالعالم
    """)
    code = chat.answer(1).locator("pre")
    expect(code).to_have_text(CODE)
    expect(code.locator(".hljs-keyword").first).to_have_text("def")
    chat.page.get_by_role("button", name="Copy code").click()
    expect(chat.status).to_have_text("Copied.")
    assert chat.page.evaluate("navigator.clipboard.readText()") == CODE
    chat.page.get_by_role("button", name="Copy answer 1").click()
    chat.wait_for(f"navigator.clipboard.readText().then((text) => text === {json.dumps(ANSWER)})")
    link = chat.answer(1).get_by_role("link")
    assert [link.get_attribute(name) for name in ("target", "rel")] == ["_blank", "noopener noreferrer"]
    align = "getComputedStyle(document.querySelector('td:last-child')).textAlign"
    assert chat.page.evaluate(align) == "right"
    assert chat.page.evaluate("document.querySelector('.answer ol').start") == 3
    arabic = "getComputedStyle(document.querySelector('.answer .text > p:last-of-type')).direction"
    assert chat.page.evaluate(arabic) == "rtl"


def test_hostile_markdown_is_text(chat: ChatPage) -> None:
    """The fixture `page` also fails on dialogs, script errors and violations of the policy."""
    show(chat, "\n\n".join(HOSTILE))
    assert chat.page.evaluate(ELEMENTS) == []
    for shown in ("<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "<svg/onload=alert(1)>"):
        expect(chat.answer(1)).to_contain_text(shown)


@pytest.mark.parametrize("size", [1, 7])
def test_hostile_markdown_in_pieces_is_text(page: Page, relay: Relay, size: int) -> None:
    text = "\n\n".join(HOSTILE)
    pieces = [text[i : i + size * 40] for i in range(0, len(text), size * 40)]
    relay.pieces = [*(piece.encode() for piece in pieces), TRAILER.encode()]
    chat = ChatPage(page, relay.url).open()
    chat.ask("Show me.")
    chat.wait_until_done()
    assert chat.page.evaluate(ELEMENTS) == []


@pytest.mark.parametrize("kind", ["paragraphs", "code", "table rows in blocks"])
def test_the_work_grows_with_the_length_only(chat: ChatPage, kind: str) -> None:
    block = {
        "paragraphs": "Some words of a paragraph, and **some** more of them.\n\n",
        "code": "line = of_code(1, 2)\n",
        "table rows in blocks": "| a | b |\n| - | - |\n| 1 | 2 |\n\nAnd so on.\n\n",
    }[kind]
    opening, closing = ("```python\n", "```\n") if kind == "code" else ("", "")
    parsed = []
    for count in (100, 400):
        text = opening + block * count + closing
        n_parsed, shown = chat.page.evaluate(FEED, [text, 4])
        assert len(shown) > len(block) * count / 3
        parsed.append(n_parsed / len(text))
    assert parsed[1] < parsed[0] * 1.5
    assert parsed[1] < 40


def test_one_large_block_takes_a_small_share_of_the_time(chat: ChatPage) -> None:
    """A list is one block, which is rendered again as a whole. Here each character costs a microsecond."""
    script = """async ([piece, count]) => {
      const { StreamedMarkdown } = await import('/ui/streamed-markdown.js');
      const shown = new StreamedMarkdown(document.createElement('div'));
      const busy = () => shown.parsed / 1000;
      let idle = 0;
      let frame = null;
      performance.now = () => idle + busy();
      window.requestAnimationFrame = (callback) => { frame = callback; return 1; };
      for (let i = 0; i < count; i++) {
        shown.append(piece);
        for (let j = 0; j < 6; j++) {
          idle += 1000 / 60;
          const callback = frame;
          frame = null;
          callback?.();
        }
      }
      return busy() / performance.now();
    }"""
    share = chat.page.evaluate(script, ["- an item of a long list\n" * 60, 100])
    assert 0 < share < 0.06


def test_pieces_and_the_whole_give_equal_pages(chat: ChatPage) -> None:
    text = (
        ANSWER
        + '\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n\n[x][1]\n\n[1]: https://a.b\n'
    )
    one, small, whole = chat.page.evaluate(HTML, [1, 5, 100_000, text])
    assert one == small == whole


def test_streamed_text_does_not_flicker(chat: ChatPage) -> None:
    """Elements, once shown, keep their kind: a table is never a paragraph of pipes, code never text."""
    script = """async (text) => {
      const { StreamedMarkdown } = await import('/ui/streamed-markdown.js');
      const node = document.createElement('div');
      const shown = new StreamedMarkdown(node);
      const kinds = [];
      for (const character of text) {
        shown.append(character);
        shown.show(false);
        [...node.children].forEach((child, index) => {
          (kinds[index] ??= new Set()).add(child.className || child.tagName);
        });
      }
      shown.finish();
      return kinds.map((set) => [...set]);
    }"""
    table = "| a | b |\n| - | - |\n| 1 | 2 |"
    text = f"Steps:\n- one\n- two\n\n{table}\n\n```js\nlet a = `b`;\n```\n\n# Title\n\n3. three\n"
    assert chat.page.evaluate(script, text) == [["P"], ["UL"], ["table"], ["code"], ["H3"], ["OL"]]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        "*a " * 20_000,
        ">" * 20_000 + "a",
        "`" * 20_000,
        "\n".join("  " * i + "- a" for i in range(1000)),
    ],
    ids=["brackets", "stars", "quotes", "ticks", "nested lists"],
)
def test_deep_nesting_is_shown_in_time(chat: ChatPage, text: str) -> None:
    begin, end = chat.page.evaluate(
        """async (text) => {
          const begin = performance.now();
          const { parse, render } = await import('/ui/markdown.js');
          render(parse(text));
          return [begin, performance.now()];
        }""",
        text,
    )
    assert end - begin < 10_000


def test_a_tool_call_is_shown_as_a_call(chat: ChatPage) -> None:
    call: dict[str, Any] = {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}
    show(chat, f"I look it up.\n\n<tool_call>\n{json.dumps(call)}\n</tool_call>")
    card = chat.answer(1).get_by_role("group", name="Tool call")
    expect(card).to_have_text("Calls get_weather city Paris days 3", use_inner_text=True)
    expect(chat.answer(1)).not_to_contain_text("<tool_call>")


def test_thoughts_are_folded_away(page: Page, relay: Relay) -> None:
    thinks = [b"<th", b"ink>\nPlants ", b"are green", b".\n</thi", b"nk>\n\nAll of ", b"them."]
    page.route("**/contexts", lambda route: route.fulfill(json={**route.fetch().json(), "thinks": True}))
    relay.pieces = [*thinks, TRAILER.encode()]
    chat = ChatPage(page, relay.url).open()
    chat.ask("Which plants are green?")
    chat.wait_until_done()
    expect(chat.answer(1)).to_have_text("All of them.")
    thoughts = chat.log.get_by_role("group").filter(has_text="Thought for")
    expect(thoughts.get_by_text("Plants are green.")).to_be_hidden()
    thoughts.locator("summary").click()
    expect(thoughts.get_by_text("Plants are green.")).to_be_visible()
    assert chat.recorded("spoken") == ["All of them.\n"]
