"""--find_sinks and --mask_out of `launch.analyze`."""

import json
import types

import numpy as np
import pytest
from launcher import run

from launch import found_sinks


@pytest.mark.thorough
def test_finds_sinks_and_writes_their_masks(tmp_path):
  file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
  texts = ["one two three four five six", "the same the same the same", "one"]
  file.write_text(
    "".join(json.dumps({"text": t + " end"}) + "\n" for t in texts)
  )
  done = run(
    "analyze", "--model=glassllm-en", f"--prompts_file={file}", "--find_sinks",
    f"--out={out}", f"--mask_out={tmp_path}/new/masks.npz",
  )  # fmt: skip
  assert "sinks found: " in done.stdout
  written = (tmp_path / "new" / "masks.npz").read_bytes()
  assert written == (out / "sink_masks.npz").read_bytes()
  data = json.loads((out / "summary.json").read_text())
  masks = np.load(out / "sink_masks.npz")
  assert len(masks.files) == 2 * len(texts)
  marked = {
    (i, int(t))
    for i, ids in enumerate(data["prompts"])
    for t in np.flatnonzero(masks[f"mask_{i}"])
    if masks[f"ids_{i}"].tolist() == ids
  }
  found = {(row["text"], row["position"]) for row in data["found_sinks"]}
  assert found == marked
  with open(out / "found_sinks.csv") as stream:
    assert len(stream.readlines()) == 1 + len(found)
  page = (out / "report.html").read_text()
  assert f"Sinks found: {len(found)}</h2>" in page
  for row in data["found_sinks"]:
    assert f"<td>{row['kind']}" in page


def test_masks_replace_no_other_file(tmp_path, monkeypatch):
  def check(name, **options):
    path = types.SimpleNamespace(value=str(tmp_path / name))
    monkeypatch.setattr(found_sinks, "MASK_OUT", path)
    found_sinks.check(tmp_path / "out", **{"overwrite": False, **options})

  (tmp_path / "old.npz").write_bytes(b"mine")
  check("new.npz")
  check("old.npz", overwrite=True)
  with pytest.raises(ValueError, match="exists; choose another file"):
    check("old.npz")
  with pytest.raises(ValueError, match="ends in .npz"):
    check("masks.csv")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "sink_masks.npz").write_bytes(b"mine")
  check("old.npz")  # of this very result
