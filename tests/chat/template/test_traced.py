"""Stand-ins for characters show which output of a template is content, and do not change the output."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.chat.template import traced
from app.chat.template.sandbox import Sandbox, TemplateFailure, TemplateRejection
from app.chat.template.traced import Tracer

PIECES = st.sampled_from(
    ["<think>", "</think>", "\n", "  ", "x", "\U0001f642", "\U00040041", "\U000f0000", '"\\']
)
CONTENTS = st.lists(st.text(max_size=8) | PIECES, max_size=6).map("".join)


def trace(expression: str, content: str) -> tuple[str, str]:
    """The output of a template, and the same with the content's characters crossed out.

    White space at the edges of a content is not crossed out, as its origin is ambiguous.
    """
    sandbox = Sandbox("{% set content = messages[0].content %}" + expression, {})
    rendering = sandbox.render([{"role": "user", "content": content}], add_generation_prompt=True)
    assert rendering.traced == rendering.text
    crossed_out = list(rendering.text)
    for begin, end in rendering.contents:
        crossed_out[begin:end] = "·" * (end - begin)
    return rendering.text, "".join(crossed_out)


@pytest.mark.parametrize(
    ("expression", "text", "crossed_out"),
    [
        ("<a>{{ content }}</a>", "<a>One <b>Two</a>", "<a>··········</a>"),
        ("{{ 'x' + content + 'y' }}", "xOne <b>Twoy", "x··········y"),
        ("{{ 'x' ~ content ~ 1 }}", "xOne <b>Two1", "x··········1"),
        ("{{ '<%s|%s>' % ('One', content) }}", "<One|One <b>Two>", "<One|··········>"),
        ("{{ '<{}|{}>'.format('One', content) }}", "<One|One <b>Two>", "<One|··········>"),
        ("{{ '<%s>' | format(content) }}", "<One <b>Two>", "<··········>"),
        ("{{ content | upper }}-{{ content | lower }}", "ONE <B>TWO-one <b>two", "··········-··········"),
        ("{{ content[::-1] }}{{ content[0] }}", "owT>b< enOO", "···········"),
        ("{{ content | replace('<b>', '<c>') }}", "One <c>Two", "··· <c>···"),
        ("{{ content.split('<b>') | join('+') }}", "One +Two", "··· +···"),
        ("{{ content.rsplit('<b>', 1)[1] }}|{{ content.partition('<')[1] }}", "Two|<", "···|·"),
        ("{{ content.rpartition('>') | join('+') }}", "One <b+>+Two", "······+·+···"),
        ("{{ content.split() | join('+') }}", "One+<b>Two", "···+······"),
        ("{{ content.removeprefix('One').removesuffix('Two') }}|", " <b>|", " ···|"),
        (
            "{{ content.strip('Oo') }}|{{ content.rjust(12, '.') }}",
            "ne <b>Tw|..One <b>Two",
            "········|..··········",
        ),
        ("{{ content | list | join('+') }}", "O+n+e+ +<+b+>+T+w+o", "·+·+·+ +·+·+·+·+·+·"),
        ("{% for c in content %}{{ 'yes' if c == '<' }}{% endfor %}", "yes", "yes"),
        ("{{ {'text': content} | tojson }}", '{"text": "One <b>Two"}', '{"text": "··········"}'),
        (
            "{{ [content, 'é'] | tojson(ensure_ascii=true) }}",
            '["One <b>Two", "\\u00e9"]',
            '["··········", "\\u00e9"]',
        ),
        ("{{ {content: [content]} }}", "{'One <b>Two': ['One <b>Two']}", "{············: [············]}"),
        ("{% set c %}[{{ content }}]{% endset %}{{ c.split('<b>')[1] }}", "Two]", "···]"),
        ("{% macro m(c) %}<{{ c }}>{% endmacro %}{{ m(content)[1:-1] }}", "One <b>Two", "··········"),
        ("{% generation %}{{ content }}{% endgeneration %}!", "One <b>Two!", "··········!"),
        ("{{ content | trim | string | length }}", "10", "10"),
        ("{{ {'One <b>Two': 'found'}[content] }}", "found", "found"),
        ("{{ 'a' if content in ['x', 'One <b>Two'] else 'b' }}", "a", "a"),
        ("{{ ('<b>' in content, content.find('<b>')) }}", "(True, 4)", "(True, 4)"),
        ("{{ content is eq('One <b>Two') }}", "True", "True"),
        ("{{ (content ~ '!').endswith('Two!') and '<b>' in content ~ '!' }}", "True", "True"),
        ("{% set c %}{{ content }}{% endset %}{{ '<b>' in c }}", "True", "True"),
        ("{{ '<b>' in '-%s' % content }}", "True", "True"),
        ("{{ content * 2 }}{{ content.count('<') }}", "One <b>Two" * 2 + "1", "·" * 20 + "1"),
    ],
)
def test_contents_are_traced_through_every_operation(expression: str, text: str, crossed_out: str) -> None:
    assert trace(expression, "One <b>Two") == (text, crossed_out)


@settings(deadline=None)
@given(CONTENTS)
def test_random_contents_are_traced_through_usual_operations(content: str) -> None:
    content = content.encode("utf-8", "replace").decode()
    text, crossed_out = trace(
        "<a>{{ content }}<b>{% if '</think>' in content %}{{ content.split('</think>')[-1].lstrip('\n') }}"
        "{% endif %}<c>{{ content | trim }}<d>{{ content.replace('x', 'yy') }}<e>{{ content | tojson }}",
        content,
    )
    assert text.startswith(f"<a>{content}<b>")
    visible = {c for c in crossed_out if not c.isspace() and c.isprintable()}
    assert visible <= set('<abcde>·"\\nrtfbuy0123456789ef')


def test_escaped_characters_are_traced() -> None:
    content = 'é 🙂 "\\ \x00 <b>'
    text, crossed_out = trace("{{ content | tojson(true) }}", content)
    assert text == json.dumps(content)
    assert "<" not in crossed_out
    assert "u00e9" not in crossed_out
    assert repr(content) in trace("{{ [content] }}", content)[0]


def test_stand_ins_are_replaced_by_their_characters() -> None:
    tracer = Tracer()
    text = "a é 中 🙂 \U0001f643\U00040041\U0010ffff \u2028\x00\x1f"
    marked = tracer.mark(text)
    assert tracer.plain(marked) == text
    assert not set(str.__str__(marked)) & set("aé中🙂\U0001f643")
    assert marked == text
    assert hash(marked) == hash(text)


def test_more_distinct_characters_than_stand_ins_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "_OTHERS", 0x10FFFE)
    sandbox = Sandbox("{{ messages[0].content }}", {})
    messages = [{"role": "user", "content": "\U0001f642\U0001f643\U0001f642"}]
    assert sandbox.render(messages, add_generation_prompt=True).text == messages[0]["content"]
    messages.append({"role": "user", "content": "\U0001f644"})
    with pytest.raises(TemplateRejection, match="the messages have more than 2 distinct characters"):
        sandbox.render(messages, add_generation_prompt=True)


def test_traced_output_differs_if_stand_ins_change_it() -> None:
    sandbox = Sandbox("{{ 'known' if messages[0].content in 'hello world' else '?' }}", {})
    rendering = sandbox.render([{"role": "user", "content": "hello"}], add_generation_prompt=True)
    assert (rendering.text, rendering.traced) == ("known", "?")


def test_a_template_that_fails_with_stand_ins_only_is_a_failure() -> None:
    sandbox = Sandbox("{{ raise_exception('?') if messages[0].content not in 'hello world' }}", {})
    with pytest.raises(TemplateFailure, match="cannot be traced"):
        sandbox.render([{"role": "user", "content": "hello"}], add_generation_prompt=True)
