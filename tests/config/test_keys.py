"""API_KEYS as a list and as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config.keys import Keys, KeysError

FILE = """
[keys.alice]
key = "secret-a"
priority = 5
max_running = 2
tokens_per_minute = 60000
contexts = ["sql"]
[keys.bob]
key = "secret-b"
"""


def test_a_list_has_names() -> None:
    keys = Keys("alice:secret-a, bob:with:colon")
    found = [keys.find(key) for key in (b"secret-a", b"with:colon", b"secret", b"")]
    assert [one and one[0] for one in found] == ["alice", "bob", None, None]
    assert not Keys("")


def test_a_file_has_limits_and_an_invalid_change_keeps_the_previous_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    keys = Keys(str(path), ["sql", "general"])
    found = keys.find(b"secret-a")
    assert found is not None
    name, key = found
    assert (name, key.priority, key.max_running, key.contexts) == ("alice", 5, 2, ["sql"])
    assert "secret-a" not in repr(key)
    path.write_text(FILE.replace("secret-b", "secret-a"))
    with pytest.raises(KeysError, match="alice and bob have the same key"):
        keys.reload()
    assert keys.find(b"secret-b")
    path.write_text(FILE.replace("secret-b", "secret-c"))
    keys.reload()
    assert [keys.find(key) is None for key in (b"secret-b", b"secret-c")] == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys = 3", r"defines no key; write \[keys.NAME\]"),
        ("[keys.a]\nkey = 'hidden'\n[other]", "unknown key 'other'"),
        ("[keys.a]\npriority = 1", "keys.a.key: is required"),
        ("[keys.a]\nkey = ''", "keys.a.key: String should have at least 1 character"),
        (
            "[keys.a]\nkey = 'hidden'\nmax_running = 0",
            "keys.a.max_running: should be greater than or equal",
        ),
        (
            "[keys.a]\nkey = 'hidden'\nquota = 1",
            "keys.a.quota: is unknown; allowed are key, priority",
        ),
        ("[keys.a]\nkey = 'hidden'\ncontexts = ['poem']", "keys.a.contexts: 'poem' should be one of sql"),
        ("[keys.'1.2.3.4']\nkey = 'hidden'", "'1.2.3.4' should begin with a letter"),
        ("[keys.a", "is not valid TOML"),
        (f"keys = {'[' * 10_000}", "is not valid TOML: it is nested too deeply"),
    ],
)
def test_an_invalid_file_is_an_error_without_keys(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(KeysError, match=message) as error:
        Keys(str(path), ["sql"])
    assert str(path) in str(error.value)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("source", ["hidden", "a:", ":hidden", "a:hidden,hidden", "a:hidden,a:hidden2"])
def test_an_invalid_list_is_an_error_without_keys(source: str) -> None:
    with pytest.raises(KeysError, match="API_KEYS") as error:
        Keys(source)
    assert "hidden" not in str(error.value)
