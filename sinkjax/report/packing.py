"""Figures and sections of the experiment `packing`."""

from sinkjax.report import html, text_sweep


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  panels = text_sweep.standard_panels(result.numbers)
  panels[0] = (f"ours: {panels[0][0]}", panels[0][1])
  paper = ("paper: heads above eps 0.3, %", lambda row: row["paper"][0])
  return {
    "rows.png": text_sweep.bars(
      result, [paper, *panels],
      label=lambda row: f"{row['variant']}: {text_sweep.FORMS[row['form']]}",
    ),
    "curves.png": text_sweep.curves(result),
  }  # fmt: skip


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  return [
    html.Section(
      result.title,
      body=(
        "The first word of a row is the mask: causal, or separate for one that "
        "hides other documents. The second is where BOS was in training: none, "
        "at each document's start, or pinned at the start of every window. "
        "Measured on starts of held-out documents, with BOS in front and "
        "without; the loss is on the same tokens in both. The paper's models "
        "have 120M parameters and 30B tokens: compare signs, not sizes."
      ),
      figure=drawn["rows.png"],
      caption=(
        f"Ticks are the seeds ({len(numbers['seeds'])}), bars their mean. "
        f"Dotted: even attention, {numbers['uniform_mass']:.3f}."
      ),
      table=text_sweep.table(result, paper=True),
    ),
    text_sweep.training_section(result, drawn),
  ]
