"""The page is one file, escapes everything and can be sorted."""

import base64
import json
import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser

import pytest

from sinkjax.report import html

NASTY = "<script>alert(\"1\")</script> & 'x'\n{{ 7 * 7 }} </td>"


def png(width=3, height=2):
  """A black picture."""

  def chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc

  header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  pixels = zlib.compress(b"\0" * (width + 1) * height)
  parts = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
  return html.PNG_SIGNATURE + b"".join(chunk(*part) for part in parts)


def render(**changes):
  arguments = {
    "title": "Title",
    "subtitle": "",
    "numbers": [],
    "sections": [],
    "warnings": [],
    "command": "",
    "details": {},
  }
  return html.render_report(**arguments | changes)


class Reader(HTMLParser):
  """Every tag with its attributes and its text."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.open = [], []
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append({"tag": tag, "text": "", **dict(attrs)})
    if tag not in ("meta", "link", "img"):
      self.open.append(self.tags[-1])

  def handle_endtag(self, tag):
    assert self.open.pop()["tag"] == tag

  def handle_data(self, data):
    for tag in self.open:
      tag["text"] += data

  def all(self, tag, **attributes):
    wanted = {"tag": tag, **attributes}.items()
    return [found for found in self.tags if wanted <= found.items()]


def full():
  table = html.Table(
    ["layer", "alpha", "token", "mixed"],
    [[0, 0.5, NASTY, 1], [10, float("nan"), "b", "x"], [2, -7.25, "", None]],
  )
  return render(
    title=NASTY,
    subtitle=NASTY,
    numbers=[html.Number(NASTY, NASTY, NASTY), html.Number("rate", 0.12345)],
    sections=[
      html.Section(NASTY, NASTY, png(), NASTY, table),
      html.Section("Second", "one\n\ntwo"),
    ],
    warnings=[NASTY],
    command=NASTY,
    details={NASTY: NASTY, "config": {"rope": {"theta": 1e4}, NASTY: None}},
  )


def test_everything_is_escaped():
  page = full()
  reader = Reader(page)
  assert page.count("<script>") == 1  # ours
  assert "{{ 7 * 7 }}" in page
  assert not reader.open  # every tag is closed in order
  shown = html.show(NASTY)
  assert [t["text"] for t in reader.all("h1")] == [NASTY]
  assert reader.all("title")[0]["text"] == NASTY
  assert reader.all("h2")[0]["text"] == NASTY
  assert reader.all("img")[0]["alt"] == NASTY
  assert reader.all("figcaption")[0]["text"] == NASTY
  assert reader.all("li")[0]["text"] == NASTY
  assert reader.all("dd", **{"class": "value"})[0]["text"] == shown
  assert reader.all("code")[0]["text"] == NASTY
  assert reader.all("td")[2]["text"] == shown


def test_nothing_comes_from_outside():
  page = full()
  for tag in Reader(page).tags:
    for name in ("src", "href", "action", "srcset", "poster"):
      assert tag.get(name, "data:").startswith("data:")
  assert not re.search(r"url\(|@import|https?://|\bfetch\(", page)
  assert "default-src 'none'" in page


def test_figures_are_embedded():
  section = html.Section("s", figure=png(30, 20), caption='what is "seen"')
  (image,) = Reader(render(sections=[section])).all("img")
  prefix, data = image["src"].split(",")
  assert prefix == "data:image/png;base64"
  assert base64.b64decode(data) == png(30, 20)
  assert (image["width"], image["height"]) == ("30", "20")
  assert image["alt"] == 'what is "seen"'


def test_a_figure_must_be_png():
  with pytest.raises(ValueError, match="PNG"):
    render(sections=[html.Section("s", figure=b"GIF89a")])


def test_table_carries_what_sorting_needs():
  reader = Reader(full())
  headers = reader.all("th")
  assert [h["aria-sort"] for h in headers] == ["none"] * 4
  assert [h["text"] for h in headers] == ["layer", "alpha", "token", "mixed"]
  assert [h.get("class") for h in headers] == ["n", "n", None, None]
  assert len(reader.all("button", type="button")) == 4 + 1  # and copy
  cells = reader.all("td")
  numbers = [cell.get("data-number") for cell in cells]
  assert numbers[0::4] == ["0", "10", "2"]
  assert numbers[1::4] == ["0.5", None, "-7.25"]
  assert numbers[3::4] == ["1", None, None]
  assert [cell["text"] for cell in cells[1::4]] == ["0.500", "–", "−7.250"]
  assert ["data-empty" in cell for cell in cells[1::4]] == [False, True, False]


def test_table_rejects_ragged_rows():
  with pytest.raises(ValueError, match="row 1 has 1 cells, the header 2"):
    html.Table(["a", "b"], [[1, 2], [3]])


def test_paragraphs_and_command():
  command = "python -m x \\\n  --text 'a  b'  --n 3"
  section = html.Section("s", "one\n\n two\nlines \n\n\n")
  reader = Reader(render(sections=[section], command=command))
  assert [p["text"] for p in reader.all("p")] == ["one", "two\nlines"]
  assert reader.all("code")[0]["text"] == command


def test_empty_parts_are_left_out():
  reader = Reader(render())
  for tag in ("p", "dl", "ul", "section", "details", "table", "button", "img"):
    assert not reader.all(tag)


def test_details_are_grouped_and_exact():
  details = {"device": "cpu", "config": {"theta": 1e6, "rope": {"a": [1]}}}
  reader = Reader(render(details=details))
  assert [t["text"] for t in reader.all("h3")] == ["config"]
  assert [t["text"] for t in reader.all("dd")] == [
    "cpu",
    "1000000.0",
    '{"a": [1]}',
  ]


def test_control_characters_and_surrogates_are_replaced():
  page = render(title="a\x00b\ud800c\x1bd", subtitle="tab\tline\n")
  assert "a\ufffdb\ufffdc\ufffdd" in page and "tab\tline\n" in page
  page.encode("utf-8")


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0.0, "0"),
    (-0.00012346, "−0.0001235"),
    (1.5e-9, "1.500e−09"),
    (25031.4, "25,031"),
    (-3, "−3"),
    (1234567, "1,234,567"),
    (True, "yes"),
    (float("nan"), "–"),
    ("0.1 ± 0.2", "0.1 ± 0.2"),
    ([1, 2], "[1, 2]"),
  ],
)
def test_show(value, text):
  assert html.show(value) == text


@pytest.mark.parametrize(
  ("column", "texts"),
  [
    ([0.5, None, -0.00001], ["0.5000", "–", "0.0000"]),
    ([25_000.0, 2.25], ["25,000", "2"]),
    ([0.0, 0.0], ["0", "0"]),
    ([1e-8, 2e-9], ["1.000e−08", "2.000e−09"]),
  ],
)
def test_floats_of_a_column_share_their_decimals(column, texts):
  assert html._aligned(column) == texts


OPTIONS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--dump-dom",
]

SORT = """
const test = {};
const column = (i) => [...document.querySelectorAll("tbody tr")].map(
  (row) => row.cells[i].textContent);
const [layer, alpha, token] = document.querySelectorAll("th button");
layer.click(); test.layer = column(0);
alpha.click(); test.up = column(1);
alpha.click(); test.down = column(1);
test.aria = [...document.querySelectorAll("th")].map(
  (th) => th.getAttribute("aria-sort"));
token.click(); test.token = column(2);
document.title = JSON.stringify(test);
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_sorting_in_a_browser(tmp_path):
  rows = [[9, 0.5, "L10"], [10, None, "L9"], [2, -7.0, "L1"], [1, 30.0, "a"]]
  table = html.Table(["layer", "alpha", "token"], rows)
  page = render(sections=[html.Section("s", table=table)])
  file = tmp_path / "report.html"
  file.write_text(page.replace("</script>", SORT + "</script>"), "utf-8")
  profile = f"--user-data-dir={tmp_path / 'profile'}"
  done = subprocess.run(
    ["chromium", *OPTIONS, profile, file.as_uri()],
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  )
  found = json.loads(Reader(done.stdout).all("title")[0]["text"])
  assert found["layer"] == ["1", "2", "9", "10"]
  assert found["up"] == ["−7.00", "0.50", "30.00", "–"]
  assert found["down"] == ["30.00", "0.50", "−7.00", "–"]
  assert found["aria"] == ["none", "descending", "none"]
  assert found["token"] == ["a", "L1", "L9", "L10"]
