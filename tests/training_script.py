"""A training in a process of its own that can be killed at a known step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanax.supernet import Recipe


def training_script(space_settings: Mapping[str, Any], recipe: Recipe, watch: tuple[int, int] | None = None) -> str:
    """A program that trains a supernet on the digits; arguments: its folder, and the step after which it waits.

    It prints the number of every step that is done.
    """
    return f"""
import sys, time
from pathlib import Path
from hanax.search_spaces import mobilenet_v3
from hanax.supernet import Augmentation, Recipe, load_images, split_validation, train_supernet

def report(done, todo):
    print(done, flush=True)
    if done == int(sys.argv[2]):
        time.sleep(3600)  # until killed

split = split_validation(load_images("digits"), fraction=0.2, seed=0)
space = mobilenet_v3(**{dict(space_settings)!r})
train_supernet(space, split, {recipe!r}, Path(sys.argv[1]), watch={watch!r}, on_progress=report)
"""
