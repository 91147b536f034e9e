"""Folders of a model: JSON files read with one line of refusal, whole saves."""

import pytest

from sinkjax.weights import folders
from sinkjax.weights.validate import WeightsError


def test_optional_files(tmp_path):
  assert folders.read_optional_json(tmp_path / "a.json") == {}
  (tmp_path / "a.json").write_text('{"a": [1]}')
  assert folders.read_optional_json(tmp_path / "a.json") == {"a": [1]}
  (tmp_path / "a.json").write_text("[1]")
  assert folders.read_json(tmp_path / "a.json") == [1]
  with pytest.raises(WeightsError, match="expected a JSON object"):
    folders.read_optional_json(tmp_path / "a.json")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "no such file"),
    (b"", "not valid JSON"),
    (b"\xff{}", "not valid JSON"),
    (b"[" * 10**5, "not valid JSON"),
    # Python refuses to read integers of more than 4300 digits.
    (b"1" * 5000, "not valid JSON"),
    (b"1" * 101, "101 bytes, at most 100"),
  ],
)
def test_refused_json(content, message, tmp_path, monkeypatch):
  if message.endswith("100"):
    monkeypatch.setattr(folders, "MAX_JSON", 100)
  path = tmp_path / "a.json"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(WeightsError, match=message) as error:
    folders.read_json(path)
  assert str(error.value).startswith(str(path))
  assert "\n" not in str(error.value)


def test_a_folder_in_place_of_a_json_file_is_refused(tmp_path):
  with pytest.raises(WeightsError, match="cannot be read"):
    folders.read_json(tmp_path)


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
  with folders.new_folder(tmp_path / "a" / "b") as folder:
    (folder / "x").write_text("1")
    assert not (tmp_path / "a" / "b").exists()
  assert (tmp_path / "a" / "b" / "x").read_text() == "1"
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
  with pytest.raises(KeyError), folders.new_folder(tmp_path / "c") as folder:
    (folder / "x").write_text("1")
    raise KeyError
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path):
  (tmp_path / "a").mkdir()
  with folders.new_folder(tmp_path / "a") as folder:
    (folder / "x").write_text("1")
  for path in (tmp_path / "a", tmp_path / "a" / "x"):
    with (
      pytest.raises(ValueError, match="not an empty folder"),
      folders.new_folder(path),
    ):
      pass
