from __future__ import annotations

import subprocess
import sys

from mugs import Place


def test_the_program_refuses_a_recipe_in_one_sentence(place: Place) -> None:
    program = [sys.executable, "-m", "listing_lens.finetuning"]
    arguments = ["train", "--name", "x", "--pairs", "mugs", "--parent", place.parent, "--recipe", '{"epoch": 1}']
    ran = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("error: recipe: epoch: Extra inputs are not permitted")
