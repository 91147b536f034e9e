"""A page to explore of made-up numbers, in a browser."""

import browser
import explored
import pytest

from sinkjax.report import explore


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
  """A window of the usual size."""
  one = browser.Browser(tmp_path_factory.mktemp("profile"))
  one.size(1280, 800)
  one.prefers("light")
  yield one
  one.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
  """Of the made-up page."""
  page = explore.render(
    explored.exploration(),
    explored.TEXTS,
    title="A page",
    command="python -m launch.explore",
    carriers=explored.carriers(),
  )
  path = page.save(tmp_path_factory.mktemp("page") / "explore.html")
  return path.as_uri()


@pytest.fixture
def page(tab, address):
  """The page as it opens; whatever it then does raises no error."""

  def open_at(view=""):
    tab.open(f"{address}#{view}", explored.READY)
    return tab

  tab.size(1280, 800)
  tab.prefers("light")
  tab.errors.clear()
  yield open_at
  assert not tab.errors
