"""The sink profile as files: summary.json, heads.csv, PNGs and report.html."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sinkjax import artifacts
from sinkjax.analysis.sink_profile import SinkProfile
from sinkjax.metrics import registry
from sinkjax.metrics.sinks import uniform_mass
from sinkjax.report import figures, html

SCHEMA = 1

MOST_SINKS = 500
"""Rows of the table of found sinks on the page: long texts may have thousands,
with which a browser is slow. The CSV file has all."""

NORMS = (
  "hidden_norm_first",
  "hidden_norm_median",
  "value_norm_first",
  "value_norm_rest",
)
"""Metrics of the figure of norms, in the order of its panels."""


def summary(profile: SinkProfile, *, eps: Sequence[float]) -> dict[str, Any]:
  """Every number of the profile, as plain values; means over prompts.

  Args:
    profile: what was measured.
    eps: thresholds of the sink rate.

  Returns:
    The part of `summary.json` that the data decide.
  """
  return {
    "token_ids": profile.prompts[0],
    "prompts": profile.prompts,
    "tokens": [len(prompt) for prompt in profile.prompts],
    **registry.summary(profile.values, eps=eps),
    "nll": float(profile.nll.mean()),
  }


def head_rows(profile: SinkProfile) -> tuple[list[str], list[list[Any]]]:
  """One row a head: its metrics, and those of its KV head."""
  heads = profile.alpha.shape[2]
  columns = {}
  for metric in registry.shown_in("summary"):
    measured = metric.name in profile.values
    if measured and metric.by_head and metric.axes in ("L H", "L N"):
      mean = profile.mean(metric.name)
      # A KV head's value stands in the rows of all its query heads.
      columns[metric.name] = np.repeat(mean, heads // mean.shape[1], axis=1)
  header = ["layer", "head", *columns, "first_token_id"]
  first = profile.first_token()
  places = np.ndindex(*profile.alpha.shape[1:])
  rows = [
    [*place, *(float(column[place]) for column in columns.values()), first]
    for place in places
  ]
  return header, rows


def draw(
  profile: SinkProfile,
  tokens: Sequence[str],
  *,
  eps: float,
  step: Callable[[], Any] = lambda: None,
) -> dict[str, bytes]:
  """Every figure as PNG bytes, by file name.

  Args:
    profile: what was measured.
    tokens: the first prompt's tokens, for the attention maps' axes.
    eps: the threshold that the sink map marks.
    step: called after each figure.
  """
  alpha = profile.mean("alpha")
  ranked = profile.ranked_heads()
  many = min(4, len(ranked) // 2) or 1  # two rows of at most four maps
  # Where prompts start differently, no one token can be named.
  first = tokens[0] if profile.first_token() is not None else ""
  chosen = ranked[:many] + ranked[-many:]
  # Functions, so that each figure is drawn between two calls of `step`.
  makers = {
    "sink_map.png": lambda: figures.sink_map(alpha, eps, first),
    "norms.png": lambda: figures.norms_by_layer(
      *(profile.mean(name) for name in NORMS)
    ),
    "attention.png": lambda: figures.attention_maps(
      np.stack([profile.maps[at] for at in chosen]),
      [f"layer {l} head {h}: {alpha[l, h]:.2f}" for l, h in chosen],
      list(tokens),
    ),
    "entropy.png": lambda: figures.entropy_by_layer(
      profile.mean("entropy"), profile.mean("entropy_share")
    ),
  }
  drawn = {}
  for name, make in makers.items():
    drawn[name] = make()
    step()
  return drawn


def _numbers(data: dict[str, Any]) -> list[html.Number]:
  cards = []
  for name, rate in data["sink_rate"].items():
    error = data["sink_rate_stderr"][name]
    note = f"heads with alpha > {name}"
    if error is not None:
      note += f"; standard error {100 * error:.1f}"
    cards.append(
      html.Number(f"sink rate, eps {name}", html.percent(rate), note)
    )
  ratio = data["value_norm_first"].mean() / data["value_norm_rest"].mean()
  hidden = data["hidden_norm_first"] / data["hidden_norm_median"]
  peak = int(np.argmax(hidden))
  uniform = np.mean([uniform_mass(length) for length in data["tokens"]])
  massive, optional = data["massive"], []
  if "learned_sink_mass" in data:
    both = html.percent(data["first_and_learned_mass"])
    optional = [
      html.Number(
        "attention on the learned sink",
        html.percent(data["learned_sink_mass"]),
        f"mean over heads; it is no token; with the first token {both}",
      )
    ]
  if "sink_expert" in data:
    optional.append(_expert_card(data))
  verdict = "massive" if massive["is_massive"] else "not massive"
  return cards + [
    html.Number(
      "attention on the first token",
      html.percent(data["first_token_mass"]),
      f"mean over heads; uniform attention would give {html.percent(uniform)}",
    ),
    *optional,
    html.Number(
      "value norm, first / rest",
      f"{ratio:.2f}",
      "near 0: attending to the first token writes almost nothing",
    ),
    html.Number(
      "hidden norm, first / median",
      f"{hidden[peak]:.0f}x",
      f"largest after layer {peak}",
    ),
    html.Number(
      "largest activation",
      f"{massive['value']:,.0f}",
      f"layer {massive['layer']}, position {massive['position']}, dimension "
      f"{massive['dimension']}: {massive['ratio']:,.0f} times the median, "
      f"{verdict} by the published rule",
    ),
    html.Number("loss", f"{data['nll']:.3f}", "nats a token"),
  ]


def _expert_card(data: dict[str, Any]) -> html.Number:
  """The expert that writes most to the first token."""
  found, peak = data["sink_expert"], data["peak_expert"]
  share = data["expert_first_share"][found["layer"]][found["expert"]]
  return html.Number(
    "expert that writes most to the first token",
    f"{found['layer']}.{found['expert']}",
    f"layer.expert: a norm of {found['value']:,.1f}, "
    f"{html.percent(float(share))} of what its layer's experts write there; "
    f"the largest activation, {peak['value']:,.0f}, is written by "
    f"{peak['layer']}.{peak['expert']}",
  )


def _sections(
  profile: SinkProfile,
  data: dict[str, Any],
  drawn: dict[str, bytes],
  eps: float,
) -> list[html.Section]:
  share = data["entropy_share"].mean()
  found = [_found(data["found_sinks"])] if "found_sinks" in data else []
  return [
    html.Section(
      "Sink score of every head",
      figure=drawn["sink_map.png"],
      caption=_caption_of_the_map(data["alpha_first"], eps),
    ),
    html.Section(
      "Attention of the strongest and the weakest sink heads",
      figure=drawn["attention.png"],
      caption=_caption_of_patterns(profile),
    ),
    html.Section(
      "Norms of the first token",
      figure=drawn["norms.png"],
      caption=(
        "Left: norm of the residual stream after each layer, first token "
        "against the median token. Right: norm of the values, first token "
        "against the mean of the others, over KV heads. A head that attends "
        "to a token with a small value norm writes little."
      ),
    ),
    html.Section(
      "Attention entropy",
      figure=drawn["entropy.png"],
      caption=(
        "Entropy of the rows of attention by layer; each dot is one head. The "
        f"mean over heads is {html.percent(share)} of the entropy of uniform "
        "attention."
      ),
    ),
    *found,
    html.Section(
      "Every metric",
      body=(
        "Means over prompts, and over the heads of a layer where there are "
        "several."
      ),
      table=_metrics(profile),
    ),
    html.Section(
      "All heads",
      body="Click a column's title to sort. heads.csv has the same table.",
      table=html.Table(*head_rows(profile)),
    ),
  ]


def _found(rows: Sequence[dict[str, Any]]) -> html.Section:
  """The sinks that were looked for, those of most heads first."""
  columns = {
    "text": "text",
    "position": "position",
    "token": "token_text",
    "kind": "kind",
    "first layer": "first_layer",
    "last layer": "last_layer",
    "heads": "heads",
    "received": "received",
    "norm": "norm",
    "cosine": "cosine",
    "value norm": "value",
  }
  ranked = sorted(rows, key=lambda row: (-row["heads"], -row["norm"]))
  shown = ranked[:MOST_SINKS]
  of = "" if len(shown) == len(ranked) else f"The first {len(shown)} of them. "
  return html.Section(
    f"Sinks found: {len(rows)}",
    body=(
      f"{of}Every token that heads attend to, of a massive norm, or of the "
      "first token's direction while that is a sink. Lasting: the hidden "
      "state shows it for at least half of the first token's life; passing: "
      "for less; attention: attention alone shows it. Layers are those after "
      "which it shows, heads those that give it more than the threshold in any "
      "layer; received is the most that it gets from a head, norm its largest "
      "over that of the tokens that are no sinks, cosine that with the first "
      "token, value norm that of its values over the text's median. "
      "found_sinks.csv has the same table, sink_masks.npz the masks."
    ),
    table=html.Table(
      list(columns), [[row[key] for key in columns.values()] for row in shown]
    ),
  )


def _caption_of_the_map(alpha: np.ndarray, eps: float) -> str:
  layers, heads = alpha.shape
  over = alpha > eps
  text = (
    f"Mean attention on the first token for each of {layers} x {heads} heads. "
  )
  if not over.any():
    return f"{text}No head exceeds {eps:g} on average."
  most = int(np.argmax(over.sum(axis=1)))
  return (
    f"{text}Marked heads exceed {eps:g} on average: {int(over.sum())} of "
    f"{over.size}. Layer {most} has the most of them."
  )


def _caption_of_patterns(profile: SinkProfile) -> str:
  alpha, ranked = profile.mean("alpha"), profile.ranked_heads()
  top, low = ranked[0], ranked[-1]
  return (
    "Attention of the strongest sink heads (above) and the weakest (below) on "
    "the first prompt. A dark first column is a sink: layer "
    f"{top[0]} head {top[1]} puts {alpha[top]:.2f} of its attention there, "
    f"layer {low[0]} head {low[1]} only {alpha[low]:.2f}."
  )


def _metrics(profile: SinkProfile) -> html.Table:
  """Every metric with a value for each layer: its mean and its extremes."""
  rows = []
  for metric in registry.shown_in("summary"):
    value = profile.values.get(metric.name)
    if not isinstance(value, np.ndarray) or not metric.axes.startswith("L"):
      continue
    # Behind the layers a metric has heads, KV heads or nothing.
    layers = value.mean(axis=0).reshape(value.shape[1], -1).mean(axis=1)
    low, high = int(np.argmin(layers)), int(np.argmax(layers))
    rows.append(
      [
        metric.title,
        float(layers.mean()),
        float(layers[low]),
        low,
        float(layers[high]),
        high,
        metric.source,
      ]
    )
  header = ["metric", "mean", "lowest", "lowest layer", "highest"]
  return html.Table([*header, "highest layer", "source"], rows)


def render(
  profile: SinkProfile,
  data: dict[str, Any],
  drawn: dict[str, bytes],
  *,
  eps: float,
  subtitle: str,
  warnings: Sequence[str],
  command: str,
  details: dict[str, Any],
) -> str:
  """The self-contained HTML page.

  Args:
    profile: what was measured.
    data: `summary`'s result.
    drawn: `draw`'s result.
    eps: the threshold that the figures mark.
    subtitle: model, text and first token in words.
    warnings: what the reader must know first.
    command: how to run it again.
    details: versions, config and device.
  """
  name = f"{details['model']}{html.edited(data.get('edit'))}"
  return html.render_report(
    title=f"Attention sinks of {name}",
    subtitle=subtitle,
    numbers=_numbers(data),
    sections=_sections(profile, data, drawn, eps),
    warnings=list(warnings),
    command=command,
    details=details,
  )


def write(
  folder: pathlib.Path,
  profile: SinkProfile,
  data: dict[str, Any],
  drawn: dict[str, bytes],
  page: str,
) -> None:
  """Writes everything, `summary.json` last.

  Args:
    folder: where to; it must exist.
    profile: what was measured.
    data: the whole of `summary.json`, without `complete`.
    drawn: `draw`'s result.
    page: `render`'s result.
  """
  artifacts.write_csv(folder / "heads.csv", *head_rows(profile))
  for name, png in drawn.items():
    artifacts.write_bytes(folder / name, png)
  artifacts.write_text(folder / "report.html", page)
  artifacts.write_json(
    folder / "summary.json", {"schema": SCHEMA, **data, "complete": True}
  )
