"""The experiments, each in a file or folder of its own: see `REGISTRY`."""

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from sinkjax.experiments.harness.api import Experiment

GROUPS = {
  "paper": "measure the claims of Barbero et al. on a given model",
  "applications": "ask what sinks are good and bad for on a given model",
  "training": "train models of their own, at a --scale that fits the machine",
}
"""What the experiments of a group do; each group is a folder here."""

SCALES = ("demo", "cpu", "gpu", "paper")
"""Sizes of the experiments that train: minutes on two cores, an afternoon on
two cores, one card, and the paper's own."""


class Entry(NamedTuple):
  """One experiment.

  Attributes:
    name: of its file or folder, and of its folder in --out.
    group: one of `GROUPS`.
    question: what it asks, for --help and the docs.
    recorded: whether docs/results has a result of it; the page of experiments
      says of the others that they have none yet.
  """

  name: str
  group: str
  question: str
  recorded: bool = True

  def load(self) -> "Experiment":
    """The experiment: `EXPERIMENT` of the module GROUP.NAME."""
    path = f"sinkjax.experiments.{self.group}.{self.name}"
    return importlib.import_module(path).EXPERIMENT


REGISTRY = (
  Entry(
    "perturbation",
    "paper",
    "Does a swapped word change later tokens more without the sink?",
  ),
  Entry(
    "smoothing",
    "paper",
    "Where does the sink go when the first token is removed or hidden?",
  ),
  Entry(
    "jacobian",
    "paper",
    "How much do tokens mix, by exact Jacobians, with and without the sink?",
  ),
  Entry(
    "bound",
    "paper",
    "How do the over-squashing bounds compare with the exact Jacobian?",
  ),
  Entry(
    "carriers",
    "paper",
    "Which heads carry the exact map between tokens, and are they sink heads?",
    recorded=False,
  ),
  Entry(
    "collapse",
    "paper",
    "Do representations collapse, and do repeated digits merge in 16 bits?",
  ),
  Entry(
    "noop_heads",
    "paper",
    "Which heads act on a trigger and otherwise attend to the sink?",
  ),
  Entry(
    "prompts", "paper", "What is the sink rate over 200 prompts of ten domains?"
  ),
  Entry(
    "massive",
    "paper",
    "What makes massive activations, and what depends on them?",
  ),
  Entry(
    "sink_circuit",
    "paper",
    "Which layer and neurons build the sink, and why do queries attend to it?",
  ),
  Entry(
    "experts",
    "paper",
    "Which experts carry the sink, in a model with experts?",
    recorded=False,
  ),
  Entry(
    "which_queries",
    "paper",
    "Which queries attend to the sink, and is it missed in a long text?",
  ),
  Entry(
    "adds_or_rescales",
    "paper",
    "Does the sink add something, or does it make the others smaller?",
  ),
  Entry(
    "catch_tag_release",
    "paper",
    "Do sinks tag the tokens that attend to them, and are the tags used?",
  ),
  Entry(
    "graded_sink",
    "paper",
    "Is the trained amount of attention on the first token the best one?",
  ),
  Entry(
    "compression_valley",
    "paper",
    "Are the sink and the middle layers' valley of entropy one thing?",
  ),
  Entry(
    "physical_first",
    "paper",
    "Is the sink the token that stands first, the one at index 0, or BOS?",
  ),
  Entry(
    "make_a_sink",
    "paper",
    "Can any token be made a sink, and position 0 be kept from being one?",
  ),
  Entry(
    "secondary_sinks",
    "paper",
    "Which tokens beside the first are sinks, where, and for how many layers?",
  ),
  Entry(
    "sink_birth",
    "paper",
    "When in training is the sink born, and what comes with it?",
    recorded=False,
  ),
  Entry(
    "gradient_sinks",
    "paper",
    "Does the loss's gradient gather on the sink, and do norms take it away?",
  ),
  Entry(
    "lens",
    "paper",
    "What does the Jacobian lens leave out, and is it better than logits?",
  ),
  Entry(
    "model_size",
    "paper",
    "How do the sink rates of several models (--models) compare?",
  ),
  Entry(
    "first_token",
    "paper",
    "What is lost on multiple choice and needles without BOS or the sink?",
  ),
  Entry(
    "answers",
    "paper",
    "Does the sink mass of a question tell whether it is answered rightly?",
  ),
  Entry(
    "pruning",
    "applications",
    "Which dormant heads can be removed, and how much time does it save?",
  ),
  Entry(
    "inactive_heads",
    "applications",
    "How many heads are inactive, and which of twelve scores finds them?",
  ),
  Entry(
    "attack",
    "applications",
    "Do changes of equal norm do more at the sink than at other tokens?",
  ),
  Entry(
    "robustness",
    "applications",
    "Does the sink dampen noise, and what do defences cost?",
  ),
  Entry(
    "kv_quantisation",
    "applications",
    "How much of the loss of few-bit keys and values comes from the sink?",
  ),
  Entry(
    "attention_precision",
    "applications",
    "Does attention in 16 or 8 bits need the sink in full precision?",
  ),
  Entry(
    "predicted_protection",
    "applications",
    "Which tokens' keys and values should stay in full precision?",
    recorded=False,
  ),
  Entry(
    "quantisation_audit",
    "applications",
    "Which tensors cost what at eight bits, and is it the sink's doing?",
    recorded=False,
  ),
  Entry(
    "hidden_prefix",
    "applications",
    "Which hidden prefix takes the largest activations off a text?",
  ),
  Entry(
    "sink_compute",
    "applications",
    "How much attention can be skipped with a proof that it hardly matters?",
  ),
  Entry(
    "streaming",
    "applications",
    "What happens to a long text if the first tokens leave the cache?",
  ),
  Entry(
    "streaming_heads",
    "applications",
    "Which heads need all of a text, and are the others the sink heads?",
  ),
  Entry(
    "bigram_backcopy",
    "training",
    "Does a head with nothing to do grow a sink and drain its value?",
  ),
  Entry(
    "residual_peak",
    "training",
    "With three layers, does the residual norm of BOS peak?",
  ),
  Entry(
    "trigger_mean",
    "training",
    "Does a task that softmax cannot solve without a sink grow one?",
  ),
  Entry(
    "context_length",
    "training",
    "Do sinks grow with the trained context length?",
  ),
  Entry(
    "packing",
    "training",
    "Does the sink belong to BOS, given where training put it?",
  ),
  Entry(
    "attention_variants",
    "training",
    "Which normalisers, biases, gates and registers have sinks?",
  ),
  Entry(
    "optimisation",
    "training",
    "How do learning rate, weight decay, batch and data affect sinks?",
  ),
  Entry("model_family", "training", "Do sinks grow with depth and width?"),
  Entry(
    "progressive_context",
    "training",
    "Do growing context windows change loss, sinks and training time?",
  ),
  Entry(
    "sink_regulariser",
    "training",
    "Can a term in the loss set how strong the sinks are, and at what cost?",
  ),
  Entry(
    "noise_training",
    "training",
    "Does noise on embeddings in training grow sinks or robustness?",
  ),
  Entry("mixing", "training", "Do trained models with weaker sinks mix more?"),
  Entry(
    "mixing_gate",
    "training",
    "Does a model that may choose how much it mixes still build a sink?",
    recorded=False,
  ),
  Entry(
    "head_roles",
    "training",
    "Do heads that are given a role keep it, and does the loss suffer?",
    recorded=False,
  ),
  Entry(
    "adaptive_depth",
    "training",
    "Which tokens stop early where they may, and does the sink?",
    recorded=False,
  ),
  Entry(
    "norms_and_optimisers",
    "training",
    "Which norms and which optimiser give sinks and massive activations?",
    recorded=False,
  ),
  Entry(
    "sink_recipes",
    "training",
    "Which recipe of packing, loss and heads is best at equal compute?",
    recorded=False,
  ),
)
"""Every experiment, in the order of the report. Help, dry run, configs, docs
and tests read this table; a new experiment is its file and one entry here."""

BY_NAME = {entry.name: entry for entry in REGISTRY}


def named(group: str) -> list[str]:
  """The names of a group's experiments, in order."""
  return [entry.name for entry in REGISTRY if entry.group == group]
