"""Panics of libraries in Rust: one line, and nothing of their own."""

import contextlib
import os

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from sinkjax.weights import panics


def broken():
  """A tokenizer on whose texts the library itself panics."""
  backend = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
  empty = tokenizers.Regex("")
  backend.normalizer = normalizers.Replace(empty, "x")
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  return backend


def test_a_real_panic_is_one_line(capfd):
  with pytest.raises(BaseException) as raw:
    broken().encode("some words, many of them")
  assert not isinstance(raw.value, Exception)
  assert "panicked" in capfd.readouterr().err
  with pytest.raises(panics.PanicError) as error, panics.as_errors():
    broken().encode("some words, many of them")
  assert str(error.value) == str(raw.value).splitlines()[0]
  assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fails", [False, True])
def test_what_else_is_written_comes_out(fails, capfd):
  """In order, whatever its size; an error is not touched."""
  text = b"warning: a line\n" * 10_000
  os.write(2, b"before\n")
  with contextlib.suppress(KeyError), panics.as_errors():
    os.write(2, text)
    if fails:
      raise KeyError
  os.write(2, b"after\n")
  assert capfd.readouterr().err == f"before\n{text.decode()}after\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_none(error):
  with pytest.raises(error), panics.as_errors():
    raise error


def test_a_closed_standard_error_is_no_trouble():
  kept = os.dup(2)
  os.close(2)
  try:
    with pytest.raises(panics.PanicError), panics.as_errors():
      broken().encode("some words, many of them")
    with panics.as_errors():
      pass
  finally:
    os.dup2(kept, 2)
    os.close(kept)
