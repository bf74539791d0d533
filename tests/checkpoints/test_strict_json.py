import os

import pytest

from rope_jax.checkpoints import strict_json
from rope_jax.errors import ConfigError


def refused(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        strict_json.parse(text, origin="a.json")
    message = str(caught.value)
    assert message.isprintable(), "one line"
    assert message.startswith("a.json: ")
    return message


def test_reads_an_object():
    expected = {"a": [1, 2.5, {"b": None}], "c": "é", "d": -0.0, "e": 1e308}
    assert (
        strict_json.parse('{"a":[1,2.5,{"b":null}],"c":"é","d":-0.0,"e":1e308}'.encode(), origin="a.json") == expected
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 1}', "a: the key appears twice"),
        ('{"x": {"rope_theta": 1, "b": 2, "rope_theta": 3}}', "rope_theta: the key appears twice"),
        ('{"a": NaN}', "a: must be a finite number, got NaN"),
        ('{"a": [1, [-Infinity]]}', "a: must be a finite number, got -Infinity"),
        ('{"a": 1e999}', "a: must be a finite number, got 1e999"),
        ('{"a": ' + "9" * 5000 + "}", "a: must be a finite number, got 999"),
        ("[1, 2]", "must hold a JSON object, got list"),
        ("null", "must hold a JSON object, got nonetype"),
        ("NaN", "must hold a JSON object"),
        ("", "not JSON"),
        ('{"a": 1,}', "not JSON"),
        ("{'a': 1}", "not JSON"),
        ('{"a": 1} {}', "not JSON: Extra data at line 1 column 10"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8 at byte 0"),
        ('{"a": ' * 200_000 + "1" + "}" * 200_000, "nests too deeply"),
        ("[" * 200_000 + "]" * 200_000, "nests too deeply"),
        ('{"a\\nb": 1, "a\\nb": 2}', r"a\nb: the key appears twice"),
    ],
)
def test_refuses_what_could_be_read_in_two_ways(text, says):
    assert says in refused(text)


def test_reads_a_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert strict_json.read(path) == {"a": 1}
    assert strict_json.read(str(path)) == {"a": 1}


def test_refuses_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.json: cannot be read as JSON: No such file"):
        strict_json.read(tmp_path / "missing.json")
    with pytest.raises(ConfigError, match="not a regular file"):
        strict_json.read(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        strict_json.read("a\0b")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ConfigError, match="not a regular file"):
        strict_json.read(fifo)


def test_refuses_an_absurd_size_without_parsing_it(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(strict_json.MAX_BYTES + 1)  # a hole: takes no space
    with pytest.raises(ConfigError, match="larger than 64 MiB"):
        strict_json.read(path)


def test_shows_any_value_on_one_short_line():
    for value in (10**6000, "x" * 1000, [[[[1]]]] * 9, {"a": {"b": {}}}, "a\nb", "\ud800", [10**6000]):
        shown = strict_json.show(value)
        assert shown.isprintable()
        assert len(shown) <= 120
