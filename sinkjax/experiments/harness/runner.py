"""Runs experiments, and writes their files; `records` reads them again.

A folder of results holds one folder an experiment:

  result.json   config, numbers and claims; `complete: true` last
  arrays.npz    what is too long for JSON
  *.csv, *.png  the tables and figures
  runs/*.json   the outcome of each run, where models were trained
  unfinished/   parts of a measurement that was stopped; see `kept`

Claims, figures and the report are functions of these files, so they are made
again without measuring. `compact` has the form of the folder that git keeps.
"""

import functools
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sinkjax import artifacts, finite, outputs, provenance
from sinkjax.experiments import Entry
from sinkjax.experiments.harness import (
  chat_start,
  claims_page,
  compact,
  leases,
  protocol,
  together,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.kept import FOLDER, Kept
from sinkjax.experiments.harness.records import Recorded, read, recorded, stored
from sinkjax.weights import identity


class Request(NamedTuple):
  """What decides an experiment's result.

  Attributes:
    entry: the experiment.
    config: its config.
    of: what it is measured on: model, prefix, edits of the model where there
      are some, the file of texts where one was given and, where texts are
      messages in the model's chat template, the system message; or the scale.
  """

  entry: Entry
  config: Any
  of: dict[str, Any]

  def models(self) -> list[str]:
    """Names of the models that are read, none for one that trains its own."""
    if "model" not in self.of:
      return []
    # Fields whose values are names of models.
    beside = [
      name
      for field in ("models", "checkpoints")
      for name in getattr(self.config, field, ())
    ]
    return list(dict.fromkeys([self.of["model"], *beside]))

  def plain(self) -> dict[str, Any]:
    """As `result.json` keeps it."""
    return artifacts.plain({**self.of, "config": self.config})


def is_missing(
  folder: pathlib.Path, request: Request, *, overwrite: bool
) -> bool:
  """Whether an experiment is still to be run.

  Raises:
    ValueError: where the folder holds another command's.
  """
  old = None if overwrite else read(folder)
  if old is None:
    return True
  if old["request"] != request.plain():
    of = old["request"]
    on = f"on {of['model']}" if "model" in of else f"--scale={of['scale']}"
    chat = " with --chat" if "chat" in of else ""
    if "texts" in of:
      chat += f" with --prompts_file={of['texts']['file']}"
    chat += f" with --edit={of['edit']!r}" if "edit" in of else ""
    raise ValueError(
      f"{folder} holds the result of another command, {on}{chat}; choose "
      "another --out or give --overwrite"
    )
  if not _same_weights(folder, request, old):
    print(
      f"{folder.name}: the record does not say which bytes of the model it was "
      "made from: measured again"
    )
    return True
  print(f"{folder.name}: already done, --overwrite runs it again")
  return False


def _same_weights(
  folder: pathlib.Path, request: Request, old: dict[str, Any]
) -> bool:
  """Whether the models are those measured; `False` where the file lacks that.

  Raises:
    ValueError: where the bytes under a model's name have changed.
  """
  known = old.get("weights", {})
  return all(
    identity.made_from(known.get(name), name, folder)
    for name in request.models()
  )


def run(
  folder: pathlib.Path,
  request: Request,
  subject: Callable[[], Any],
  *,
  overwrite: bool,
) -> None:
  """One experiment, measured, written and drawn.

  A measurement whose drawing failed before is drawn, not measured again.

  Args:
    folder: where to.
    request: what is asked for.
    subject: gives the model, for an experiment on one.
    overwrite: measure, and train, again what was done before.
  """
  experiment = request.entry.load()
  # Processes may share a sweep, each run of which has a lease of its own.
  sweeps = experiment.scales is not None
  alone = functools.partial(outputs.alone, keeps=_measured)
  with (outputs.folder if sweeps else alone)(folder):
    old = None if overwrite else stored(folder / "result.json")
    if (
      old is None
      or old.get("request") != request.plain()
      or not _same_weights(folder, request, old)
    ):
      # Before they are read: a file replaced meanwhile is another one.
      weights = {
        name: identity.of(name, without=folder) for name in request.models()
      }
      # A sweep goes on from the runs of a compact folder, which are in its
      # archive.
      artifacts.unpack(folder)
      start = time.monotonic()
      with artifacts.bar(request.entry.name) as progress:
        if experiment.scales is None:
          kept = Kept(folder, request.plain(), weights, overwrite=overwrite)
          together.begin(request.entry.name, request.plain())
          model = subject()._replace(kept=together.kept(kept))
          found = together.measured(
            experiment.measure,
            request.entry.name,
            model,
            request.config,
            progress=progress,
          )
          start -= kept.seconds
          if model.chat is not None:
            found.numbers["chat_template"] = chat_start.record(model)
        else:
          if overwrite:
            # Kept outcomes would be taken for the new ones. Evaluations of
            # trained models are in a folder of their own, one level below.
            for runs in (folder / "runs", *folder.glob("*/runs")):
              shutil.rmtree(runs, ignore_errors=True)
          found = experiment.measure(
            request.config, folder=folder, progress=progress
          )
      finite.require_result(found.numbers, found.arrays, request.entry.name)
      _write(folder, request, found, weights, time.monotonic() - start)
      outputs.remove(folder / FOLDER)
    _draw(folder)


def run_all(
  out: pathlib.Path,
  requests: Mapping[str, Request],
  subject: Callable[[], Any],
  overwrite: bool,
) -> None:
  """Each experiment that no other process with the same `out` has measured.

  Those that measure a model are taken whole; of one that trains models each
  process takes some runs, see `jobs`. With `overwrite` nothing is shared: what
  another process has measured meanwhile would be measured again.

  Args:
    out: the folder of the experiments' folders.
    requests: by name, in their order.
    subject: as for `run`.
    overwrite: likewise.
  """

  def work(name: str) -> None:
    run(out / name, requests[name], subject, overwrite=overwrite)

  def is_whole(name: str) -> bool:
    return not overwrite and requests[name].entry.load().scales is None

  leases.share(
    out,
    [name for name in requests if is_whole(name)],
    lambda name: is_missing(out / name, requests[name], overwrite=False),
    work,
  )
  for name in requests:
    if not is_whole(name):
      work(name)


def _measured(path: pathlib.Path) -> bool:
  """Whether a new file stays after a failure: what was measured does."""
  return path.name == FOLDER or (path.parent / "result.json").exists()


def _write(
  folder: pathlib.Path,
  request: Request,
  found: Result,
  weights: dict[str, Any],
  seconds: float,
) -> None:
  """The numbers, before anything is drawn; not complete yet."""
  from sinkjax.experiments.harness.jobs import seconds_of

  artifacts.write_npz(folder / "arrays.npz", found.arrays)
  for name, table in found.tables.items():
    artifacts.write_csv(folder / name, *table)
  about = {
    "name": request.entry.name,
    "title": request.entry.load().title,
    "request": request.plain(),
    **({"weights": weights} if weights else {}),
    "numbers": found.numbers,
    # Its runs may have been others' work, or that of an earlier command.
    "seconds": max(seconds, seconds_of(folder)),
    "device": _device(folder),
    "commit": provenance.commit(),
    "versions": provenance.versions(),
  }
  artifacts.write_json(folder / "result.json", about | {"complete": False})


def _draw(folder: pathlib.Path) -> None:
  """Figures and claims of what is measured, which completes the folder."""
  about = stored(folder / "result.json")
  found = recorded(folder, about)
  experiment = found.entry.load()
  for name, png in experiment.draw(found.result).items():
    artifacts.write_bytes(folder / name, png)
  if "texts" not in about["request"] and experiment.draws_new_texts(
    found.result.config
  ):
    # Kept as it was said when these texts were read: a claim or a margin of
    # later code was made by those who may have seen what came out.
    about.setdefault("stated", protocol.stated(experiment.claims(found.result)))
    found = found._replace(about=about)
  claims = [claim.record() for claim in found.claims()]
  about |= {"claims": claims, "complete": True}
  about["complete"] = about.pop("complete")  # last in the file
  artifacts.write_json(folder / "result.json", about)


def _device(folder: pathlib.Path) -> str:
  """What computed: this process, or the makers of the runs that it found."""
  import jax

  from sinkjax.experiments.harness.jobs import made_on, makers

  here, found = made_on(jax.devices()[0]), makers(folder)
  others = [one for one in found if one != here]
  own = [] if others and here not in found else [provenance.device()]
  return "; ".join(own + others)


def report(
  out: pathlib.Path,
  found: Sequence[Recorded],
  *,
  command: str | None = None,
  seconds: float = 0.0,
  page: bool = True,
) -> None:
  """claims.csv, claims.md, summary.json and report.html of what is complete.

  Args:
    out: the folder of results.
    found: what `every` gave.
    command: the command line that measured; `None` keeps what summary.json has
      of an earlier one, as nothing is measured again.
    seconds: what this command took.
    page: whether to write report.html.
  """
  given = [one for one in found if one.result.model is not None]
  models = [one.result.model for one in given]
  edits = {one.about["request"].get("edit") for one in given}
  # Where experiments have different ones, each section names its own.
  edit = edits.pop() if len(edits) == 1 else None
  claims = [(one.entry.name, claim) for one in found for claim in one.claims()]
  data = {
    "model": models[0] if models else None,
    **({} if edit is None else {"edit": edit}),
    "command": command or provenance.command("reproduce"),
    "device": "; ".join(dict.fromkeys(one.about["device"] for one in found)),
    "commit": provenance.commit(),
    "versions": provenance.versions(),
    "seconds": sum(one.about["seconds"] for one in found),
    "seconds_of_this_run": seconds,
    "experiments": [one.entry.name for one in found],
    "claims": [claim.record() for _, claim in claims],
  }
  if command is None:
    kept = ("command", "commit", "versions", "seconds_of_this_run")
    old = stored(out / "summary.json") or {}
    data |= {name: old[name] for name in kept if name in old}
  artifacts.write_csv(out / "claims.csv", *claims_page.table(claims))
  artifacts.write_text(out / "claims.md", claims_page.markdown(claims))
  if page:
    text = claims_page.page(
      claims,
      [section for one in found for section in one.sections()],
      model=data["model"],
      edit=edit,
      seconds=data["seconds"],
      command=data["command"],
      details={name: data[name] for name in ("device", "commit", "versions")},
    )
    artifacts.write_text(out / "report.html", text)
  artifacts.write_json(out / "summary.json", {**data, "complete": True})


def compact_all(out: pathlib.Path, found: Sequence[Recorded]) -> None:
  """Brings a folder of results into the form that git keeps, without a page.

  Args:
    out: the folder of results.
    found: what `every` gave.

  Raises:
    ValueError: as `compact.compact`.
  """
  for one in found:
    compact.compact(one.folder, one.about, one.entry.load(), one.result)
  (out / "report.html").unlink(missing_ok=True)
