"""What `launch.jacobian` prints of a result."""

from typing import Any

from launch import prompts

_WHOLE = {
  "total mixing": lambda x: f"{100 * x['total_mixing']:.1f} %",
  "effective reach": lambda x: f"{x['effective_reach']:.2f} tokens",
}

_CHOSEN = {"at other tokens": lambda x: _mean(x["share_at_other_tokens"])}
"""Of chosen columns: of what needs no other one."""


def show(data: dict[str, Any]) -> None:
  """The numbers that matter."""
  first = prompts.describe_first(data["first_token"])
  print(f"\n  {data['model']}, {data['tokens']} tokens. {first}\n")
  columns = {"as it is": data}
  if data["edited"]:
    columns[data["edit"]] = data["edited"]
  print(" " * 22 + "".join(f"{name:>20}" for name in columns))
  rows = {
    **(_WHOLE if "total_mixing" in data else _CHOSEN),
    "loss": lambda x: f"{x['nll']:.3f} nats",
    "loss by first token": lambda x: f"{x['loss_sensitivity'][0]:.3g}",
  }
  if data["method"] == "exact":
    rows["self check"] = lambda x: _checked(x["check"])
  if data.get("stderr_relative") is not None:
    rows["largest error"] = lambda x: f"{100 * x['stderr_relative']:.1f} %"
  for form in ("paper", "frozen", "full") if data.get("bounds") else ():
    # The default binds this form: a plain closure would see the loop's last
    # one.
    rows[f"bound: {form}"] = lambda x, form=form: _decades(x, form)
  for label, value in rows.items():
    cells = "".join(f"{value(column):>20}" for column in columns.values())
    print(f"  {label:<20}{cells}")


def _decades(data: dict[str, Any], form: str) -> str:
  return f"{data['bounds']['forms'][form]['decades_median']:.1f} decades above"


def _checked(error: float | None) -> str:
  return "passed before" if error is None else f"{error:.1e}"


def _mean(shares: list[float]) -> str:
  """Of the chosen source tokens."""
  return f"{100 * sum(shares) / len(shares):.1f} %"
