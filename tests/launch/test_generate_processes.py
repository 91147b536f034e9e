"""Tests of launch.generate by two real processes on one machine."""

import pytest
from launcher import Launched, run
from ports import free_port

ASKED = ("--model=glassllm-en", "--prompt=The king", "--max_tokens=12")


@pytest.mark.slow
@pytest.mark.parametrize("edit", [[], ["--edit=graded key=0 by=2"]])
def test_two_processes_write_the_text_of_one(edit, glassllm_path):
  """Greedily; and what is edited, too. Process 0 alone prints."""
  address = f"--coordinator=localhost:{free_port()}"
  several = ("--mesh=fsdp:2", address, "--processes=2")
  runs = [
    Launched("generate", *ASKED, *edit, *several, f"--process={i}")
    for i in range(2)
  ]
  said = [launched.communicate(timeout=300) for launched in runs]
  assert all(launched.returncode == 0 for launched in runs), said
  alone = run("generate", *ASKED, *edit)
  assert alone.returncode == 0, alone.stderr
  assert [out for out, _ in said] == [alone.stdout, ""]
  assert "tokens of prompt" in said[0][1]
  assert "tokens of prompt" not in said[1][1]


def test_flags_that_do_not_go_together(glassllm_path):
  done = run("generate", *ASKED, "--process=1")
  assert done.returncode == 1
  assert "--processes and --process go together" in done.stderr
