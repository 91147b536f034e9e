"""The model that `launch.reproduce` measures: loaded once, with its edits."""

from collections.abc import Mapping, Sequence
from typing import Any

from launch import devices, edit_flag, given_texts
from sinkjax.experiments import BY_NAME


class Subject:
  """The model with its tokenizer and prefix, loaded when first asked for.

  Args:
    model: its name or path.
    prefix: of --prefix.
    configs: of the experiments to run, by name.
    edits: of --edit.
  """

  def __init__(
    self,
    model: str,
    prefix: str,
    configs: Mapping[str, Any],
    edits: Sequence[Any],
  ) -> None:
    self._loaded: Any = None
    self._model, self._prefix = model, prefix
    self._configs, self._edits = configs, edits

  def __call__(self) -> Any:
    if self._loaded is None:
      from launch import prompts
      from sinkjax.experiments.harness import api

      params, cfg, tokenizer = devices.load(self._model)
      prompts.need_tokenizer(tokenizer, self._model)
      chat, texts = given_texts.of_tokenizer(tokenizer, self._configs)
      prefix, _ = prompts.resolve_prefix(self._prefix, tokenizer)
      prefix = prefix if chat is None else chat.ids
      edit_flag.check(self._edits, cfg, cfg.max_len)
      cfg, _ = edit_flag.of_model(self._edits, params, cfg, [])
      prompts.require_finite(params, cfg, tokenizer, prefix)
      self._loaded = api.Subject(
        self._model, params, cfg, tokenizer, prefix, chat, texts
      )
    return self._loaded


def check_edits(names: Sequence[str], edits: Sequence[Any]) -> None:
  """Refuses experiments that do not run the model that is given, edited.

  Raises:
    ValueError: naming them, and those that take an edit.
  """
  if not edits:
    return
  if any(getattr(edit, "to", None) == "mean" for edit in edits):
    raise ValueError(
      "--edit: to=mean is over a given text, and experiments have texts of "
      'their own; give numbers, as "edit_with_means" in the summary.json of '
      "launch.analyze has them for neurons"
    )
  sites = {site for edit in edits for site in edit.sites()}
  refused = [name for name in names if not takes(name, sites)]
  if refused:
    able = [name for name in BY_NAME if takes(name, sites)]
    raise ValueError(
      f"--edit at {', '.join(sorted(sites))} does not go with "
      f"{', '.join(refused)}; it goes with --experiment={','.join(able)}"
    )


def takes(name: str, sites: set[str]) -> bool:
  """Whether an experiment measures the model that is given, edited there."""
  experiment = BY_NAME[name].load()
  return experiment.scales is None and not sites & experiment.unedited
