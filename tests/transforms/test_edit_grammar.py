"""Edits as text: each is the Python edit of the same name, or one line."""

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.transforms.edit_grammar import check, parse_edits, written
from sinkjax.transforms.written_edits import WORDS

EXPERTS = sinkjax.TINY.replace(n_experts=2, experts_per_token=1)


def one_head(layer, head, by):
  factor = np.ones((1, 1, 4, 1))
  factor[:, :, head] = by
  return sinkjax.scale(factor, layers=[layer])


def heads(*chosen):
  mask = np.zeros((3, 4), bool)
  for layer, head in chosen:
    mask[layer, head] = True
  return mask


SAME = {
  "knockout key=0": {"scores": sinkjax.knockout([0])},
  "knockout key=0,3 from=2 head=1": {
    "scores": sinkjax.knockout(
      [0, 3], from_layer=2, heads=heads(*((i, 1) for i in range(3)))
    )
  },
  "graded key=0 by=2": {"scores": sinkjax.graded([0], 2.0)},
  "graded key=1 by=0.5 layers=1: head=3": {
    "scores": sinkjax.graded(
      [1], 0.5, layers=[1, 2], heads=heads(*((i, 3) for i in range(3)))
    )
  },
  "graded key=1 by=0 head=2.3": {
    "scores": sinkjax.graded([1], 0.0, heads=heads((2, 3)))
  },
  "scale head=2.1 by=0": {"z": one_head(2, 1, 0)},
  "scale head=2.1,0.3 by=-0.1": {
    "z": sinkjax.chain(one_head(2, 1, -0.1), one_head(0, 3, -0.1))
  },
  "scale site=mlp_out layers=:2 by=0.1": {
    "mlp_out": sinkjax.scale(0.1, layers=[0, 1])
  },
  "ablate neurons=1:7,2:0": {
    "mlp_act": sinkjax.ablate_neurons([(1, 7), (2, 0)])
  },
  "ablate neurons=1:7,2:0 to=1.5,-2": {
    "mlp_act": sinkjax.ablate_neurons([(1, 7), (2, 0)], to=[1.5, -2.0])
  },
  "ablate head=0.1,2.2": {"z": sinkjax.ablate_heads(heads((0, 1), (2, 2)))},
  "hold site=pattern layers=0,2": {"pattern": sinkjax.hold(layers=[0, 2])},
}


def same(one, other):
  """The same kinds of edits with the same numbers, on the tiny model."""
  one, other = (
    {site: edit.placed(sinkjax.TINY, 12, site) for site, edit in edits.items()}
    for edits in (one, other)
  )
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("text", SAME)
def test_a_text_is_the_python_edit(text):
  (edit,) = parse_edits(text)
  same(edit.edits(sinkjax.TINY), SAME[text])
  assert str(edit) == text
  assert hash(edit) == hash(parse_edits(text)[0])


def test_every_word_is_tested_and_its_example_is_one():
  assert {text.split()[0] for text in SAME} == set(WORDS)
  for word, cls in WORDS.items():
    (edit,) = parse_edits(cls.example)
    assert edit.word == word and str(edit) == cls.example


def test_a_list_of_edits():
  text = "scale by=2.50 head=3.2 ;knockout from=0 key=0;"
  edits = parse_edits(text)
  assert written(edits) == "scale head=3.2 by=2.5; knockout key=0"
  assert parse_edits(written(edits)) == edits
  assert parse_edits("none") == parse_edits(" ") == ()
  assert written(()) == "none"
  assert parse_edits("knockout:3@1") == parse_edits("knockout key=3 from=1")
  assert parse_edits("knockout:3") == parse_edits("knockout key=3")


def test_edits_of_one_site_are_chained_in_order():
  cfg = sinkjax.edited(sinkjax.TINY, "graded key=0 by=2; knockout key=1")
  _, edits = cfg.apart()
  same(
    edits,
    {"scores": sinkjax.chain(sinkjax.graded([0], 2.0), sinkjax.knockout([1]))},
  )


WRONG = [
  ("nope key=0", "valid are knockout key= "),
  ("knockout", "key= is missing; knockout takes key= [from=] [head=]"),
  ("knockout key=0 layer=3", "'layer=3', but knockout takes"),
  ("knockout key=0 key=1", "'key=1', but"),
  ("knockout key 0", "'key', but"),
  ("knockout key=-1", "key=-1 should be numbers from 0 on"),
  ("knockout key=\u0663", "key=\u0663 should be numbers from 0 on"),
  ("knockout:\u0663", "valid are knockout"),
  (";".join(["knockout key=0"] * 257), "names 257 edits"),
  ("graded key=0 by=1e39", "should be a number of float32"),
  ("scale by=-1e308 head=1", "should be a number of float32"),
  ("ablate neurons=0:1 to=1e39", "should be zero, mean, a number"),
  ("scale by=2 head=1.\u0663", "should be LAYER.HEAD"),
  ("knockout key=0,0", "without one named twice"),
  ("knockout key=0 from=1,2", "should be one number"),
  ("knockout key=0 from=3", "layer 3 is not among 0 to 2"),
  ("knockout key=0 head=4", "head 4 is not among 0 to 3"),
  ("knockout key=0 head=3.0", "layer 3 is not among 0 to 2"),
  ("knockout key=0 from=2 head=1.0", "head 1.0 is not in the layers named"),
  ("knockout key=8", "key 8 is not among the 8 tokens"),
  ("graded key=0", "by= is missing"),
  ("graded key=0 by=much", "should be a number"),
  ("graded key=0 by=nan", "should be a number"),
  ("graded key=0 by=-1", "at least 0"),
  ("graded key=0 by=2 layers=1:4", "layer 3 is not among 0 to 2"),
  ("graded key=0 by=2 layers=2:1", "END after FIRST"),
  ("graded key=0 by=2 layers=x", "should be layers"),
  ("scale by=2", "either head= or site="),
  ("scale by=2 head=1 site=z", "either head= or site="),
  ("scale by=2 site=nope", "should be one of embed, "),
  ("scale by=2 site=expert_out", "this model has no site 'expert_out'"),
  ("hold site=router_logits", "this model has no site 'router_logits'"),
  ("ablate to=0", "either neurons= or head="),
  ("ablate neurons=507", "should be LAYER:INDEX"),
  ("ablate neurons=0:48", "neuron 48 is out of range"),
  ("ablate neurons=0:1 to=half", "should be zero, mean, a number"),
  ("ablate neurons=0:1 to=1,2", "[N, 2]"),
  ("ablate head=0.1 to=3", "heads become zero or mean"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_a_mistake_is_one_line_that_says_what_is_valid(text, said):
  with pytest.raises(ValueError) as caught:
    check(parse_edits(text), sinkjax.TINY, 8)
  message = str(caught.value)
  assert said in message and len(message) <= 300 and "\n" not in message
  with pytest.raises(ValueError):
    check(parse_edits(f"knockout key=1; {text}"), sinkjax.TINY, 8)


@pytest.mark.parametrize("text", [";", " ;; ;"])
def test_edits_that_are_none(text):
  """No edit is "none", or nothing: a variable that is not set gives this."""
  with pytest.raises(ValueError, match="names 0 edits: give from 1 to 256"):
    parse_edits(text)


def test_long_mistakes_stay_short():
  for text in (
    "x" * 900,
    f"knockout key={'1' * 900}",
    "scale head=" + "1," * 900,
  ):
    with pytest.raises(ValueError) as caught:
      parse_edits(text)
    assert len(str(caught.value)) <= 300


def test_models_that_lack_what_an_edit_touches():
  check(parse_edits("hold site=router_logits"), EXPERTS)
  check(parse_edits("ablate neurons=0:95"), EXPERTS)
  cfg = sinkjax.TINY.replace(normalizer="sigmoid")
  with pytest.raises(
    ValueError, match=r"graded key=0 by=2.*only under softmax"
  ):
    check(parse_edits("graded key=0 by=2"), cfg)
  # Latent attention has no keys of its own, but scores, values and heads.
  latent = sinkjax.TINY.replace(kv_rank=8, rope_dim=4, v_dim=6, n_kv_heads=4)
  check(parse_edits("graded key=0 by=2; ablate head=1.2"), latent)


def test_a_mean_is_only_checked():
  edits = parse_edits("ablate neurons=1:7 to=mean")
  check(edits, sinkjax.TINY)
  with pytest.raises(ValueError, match="to=mean needs a text"):
    sinkjax.edited(sinkjax.TINY, edits)
