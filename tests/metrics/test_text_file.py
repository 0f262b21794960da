"""Texts that cannot be measured are refused before the run."""

import pytest

from quantize.errors import DataError
from quantize.metrics import Text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "0 documents"),
        (b"one document only", "1 documents"),
        (b"---\n---\n", "0 documents"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_text_that_gives_no_interval_is_refused_before_the_run(tmp_path, content, sentence):
    path = tmp_path / "prose.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        Text(name="prose", path=str(path)).identity()
    assert caught.value.where == str(path)


def test_a_missing_text_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no such text"):
        Text(name="prose", path=str(tmp_path / "none.txt")).identity()
