"""The sink profile as files: summary.json, heads.csv, PNGs and report.html."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sinkjax import artifacts
from sinkjax.report import figures, html

SCHEMA = 1


def summary(profile, *, eps: Sequence[float]) -> dict[str, Any]:
  """Every number of the profile, as plain values; means over prompts.

  Args:
    profile: a `SinkProfile`.
    eps: thresholds of the sink rate.

  Returns:
    The part of `summary.json` that the data decide.
  """
  names = [f"{value:g}" for value in eps]
  rates = {n: profile.sink_rate(e) for n, e in zip(names, eps, strict=True)}
  mean_first = {
    name: profile.sink_rate(value, "mean_first")
    for name, value in zip(names, eps, strict=True)
  }
  stderr = {
    name: profile.sink_rate_stderr(value)
    for name, value in zip(names, eps, strict=True)
  }
  fields = (
    "value_norm_first",
    "value_norm_rest",
    "key_norm_first",
    "key_norm_rest",
    "hidden_norm_first",
    "hidden_norm_median",
    "entropy",
    "entropy_share",
  )
  massive = profile.largest_activation()
  return {
    "token_ids": profile.prompts[0],
    "prompts": profile.prompts,
    "tokens": [len(prompt) for prompt in profile.prompts],
    "sink_rate": rates,
    "sink_rate_mean_first": mean_first,
    "sink_rate_stderr": stderr,
    "first_token_mass": float(profile.alpha.mean()),
    "alpha_first": profile.alpha.mean(axis=0),
    **{name: getattr(profile, name).mean(axis=0) for name in fields},
    "massive": massive,
    "massive_by_layer": {
      name: values[massive["prompt"]]
      for name, values in profile.massive.items()
    },
    "nll": float(profile.nll.mean()),
  }


def head_rows(profile) -> tuple[list[str], list[list[Any]]]:
  """One row a head: score, entropy, and its KV head's value norms."""
  alpha = profile.alpha.mean(axis=0)
  layers, heads = alpha.shape
  group = heads // profile.value_norm_first.shape[2]
  columns = {
    "alpha": alpha,
    "entropy": profile.entropy.mean(axis=0),
    "entropy_share": profile.entropy_share.mean(axis=0),
  }
  for name in ("value_norm_first", "value_norm_rest"):
    by_kv_head = getattr(profile, name).mean(axis=0)
    columns[name] = np.repeat(by_kv_head, group, axis=1)
  header = ["layer", "head", *columns, "first_token_id"]
  first = profile.first_token()
  rows = [
    [layer, head, *(float(c[layer, head]) for c in columns.values()), first]
    for layer in range(layers)
    for head in range(heads)
  ]
  return header, rows


def draw(
  profile,
  tokens: Sequence[str],
  *,
  eps: float,
  step: Callable[[], Any] = lambda: None,
) -> dict[str, bytes]:
  """Every figure as PNG bytes, by file name.

  Args:
    profile: a `SinkProfile`.
    tokens: the first prompt's tokens, for the attention maps' axes.
    eps: the threshold that the sink map marks.
    step: called after each figure.
  """
  mean = {
    name: getattr(profile, name).mean(axis=0)
    for name in (
      "alpha",
      "hidden_norm_first",
      "hidden_norm_median",
      "value_norm_first",
      "value_norm_rest",
      "entropy",
      "entropy_share",
    )
  }
  ranked = profile.ranked_heads()
  many = min(4, len(ranked) // 2) or 1
  first = tokens[0] if profile.first_token() is not None else ""
  chosen = ranked[:many] + ranked[-many:]
  makers = {
    "sink_map.png": lambda: figures.sink_map(mean["alpha"], eps, first),
    "norms.png": lambda: figures.norms_by_layer(
      mean["hidden_norm_first"],
      mean["hidden_norm_median"],
      mean["value_norm_first"],
      mean["value_norm_rest"],
    ),
    "attention.png": lambda: figures.attention_maps(
      np.stack([profile.maps[at] for at in chosen]),
      [f"layer {l} head {h}: {mean['alpha'][l, h]:.2f}" for l, h in chosen],
      list(tokens),
    ),
    "entropy.png": lambda: figures.entropy_by_layer(
      mean["entropy"], mean["entropy_share"]
    ),
  }
  drawn = {}
  for name, make in makers.items():
    drawn[name] = make()
    step()
  return drawn


def _percent(value: float) -> str:
  return f"{100 * value:.1f} %"


def _numbers(data: dict[str, Any]) -> list[html.Number]:
  cards = []
  for name, rate in data["sink_rate"].items():
    error = data["sink_rate_stderr"][name]
    note = f"heads with alpha > {name}"
    if error is not None:
      note += f"; standard error {100 * error:.1f}"
    cards.append(html.Number(f"sink rate, eps {name}", _percent(rate), note))
  ratio = data["value_norm_first"].mean() / data["value_norm_rest"].mean()
  hidden = data["hidden_norm_first"] / data["hidden_norm_median"]
  peak = int(np.argmax(hidden))
  massive = data["massive"]
  verdict = "massive" if massive["is_massive"] else "not massive"
  return cards + [
    html.Number(
      "attention on the first token",
      _percent(data["first_token_mass"]),
      f"mean over heads; uniform attention would give "
      f"{_percent(_uniform(data['tokens']))}",
    ),
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


def _uniform(lengths: Sequence[int]) -> float:
  """Mean attention on token 0 if every row were uniform."""
  rows = [np.mean(1 / np.arange(1, length + 1)) for length in lengths]
  return float(np.mean(rows))


def _sections(profile, data, drawn, eps: float) -> list[html.Section]:
  alpha = data["alpha_first"]
  layers, heads = alpha.shape
  over = alpha > eps
  most = int(np.argmax(over.sum(axis=1)))
  marked = f"No head exceeds {eps:g} on average."
  if over.any():
    marked = (
      f"Marked heads exceed {eps:g} on average: {int(over.sum())} of "
      f"{over.size}. The layer with most is layer {most}."
    )
  ranked = profile.ranked_heads()
  top, low = ranked[0], ranked[-1]
  share = data["entropy_share"].mean()
  header, rows = head_rows(profile)
  return [
    html.Section(
      "Where the sinks are",
      figure=drawn["sink_map.png"],
      caption=(
        f"Mean attention on the first token for each of {layers} x {heads} "
        f"heads. {marked}"
      ),
    ),
    html.Section(
      "How it looks",
      figure=drawn["attention.png"],
      caption=(
        "Attention of the strongest sink heads (above) and the weakest "
        f"(below) on the first prompt. A dark first column is a sink: layer "
        f"{top[0]} head {top[1]} puts {alpha[top]:.2f} of its attention there, "
        f"layer {low[0]} head {low[1]} only {alpha[low]:.2f}."
      ),
    ),
    html.Section(
      "What the first token looks like inside",
      figure=drawn["norms.png"],
      caption=(
        "Left: norm of the residual stream after each layer, first token "
        "against the median token. Right: norm of the values, first token "
        "against the mean of the rest, over KV heads. A large hidden norm "
        "with a small value norm is a place to attend to that writes little."
      ),
    ),
    html.Section(
      "How spread the attention is",
      figure=drawn["entropy.png"],
      caption=(
        f"Entropy of attention rows by layer; each dot a head. Heads use "
        f"{_percent(share)} of the entropy that uniform attention would have."
      ),
    ),
    html.Section(
      "Every head",
      body="Click a column's title to sort. The same table is heads.csv.",
      table=html.Table(header, rows),
    ),
  ]


def render(
  profile,
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
    profile: a `SinkProfile`.
    data: `summary`'s result.
    drawn: `draw`'s result.
    eps: the threshold that the figures mark.
    subtitle: model, text and first token in words.
    warnings: what the reader must know first.
    command: how to run it again.
    details: versions, config and device.
  """
  return html.render_report(
    title=f"Attention sinks of {details['model']}",
    subtitle=subtitle,
    numbers=_numbers(data),
    sections=_sections(profile, data, drawn, eps),
    warnings=list(warnings),
    command=command,
    details=details,
  )


def write(
  folder: pathlib.Path,
  profile,
  data: dict[str, Any],
  drawn: dict[str, bytes],
  page: str,
) -> None:
  """Writes everything, `summary.json` last.

  Args:
    folder: where to; it must exist.
    profile: a `SinkProfile`.
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
