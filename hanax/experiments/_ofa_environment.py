"""A virtual environment with the `ofa` package and a CPU build of torch, and stand-ins for what `ofa` cannot import."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

REQUIREMENTS = ("ofa==0.1.0.post202307202001", "torch==2.13.0", "numpy", "pillow", "tqdm", "pyyaml")
FOLDER = "ofa-env"
"""Name of the environment in the cache of Hanax."""


def prepare_environment(directory: Path) -> Path:
    """The Python of a virtual environment at `directory` that holds `REQUIREMENTS`; made if it is not there.

    pip decides which build of torch that is; for the small CPU build, let ``PIP_EXTRA_INDEX_URL`` name an index of it.

    Raises:
        ValueError: `directory` holds something other than a virtual environment.
        RuntimeError: pip did not install `REQUIREMENTS`.
    """
    # Imported here because the processes of that environment read this file, too, and have no Hanax.
    from hanax.experiments import _peer_environment

    return _peer_environment.prepare_environment(directory, REQUIREMENTS)


def stub_missing_modules() -> None:
    """Stand in for what `ofa` imports for its data loaders only: torchvision, and `torch._six`, gone since torch 2."""

    class Unused:
        """Base class and call target that its data loaders name at import."""

    def stub(name: str, **members: object) -> ModuleType:
        module = ModuleType(name)
        for member, value in members.items():
            setattr(module, member, value)
        sys.modules[name] = module
        return module

    functional = stub("torchvision.transforms.functional")
    transforms = stub("torchvision.transforms", functional=functional, RandomResizedCrop=Unused)
    stub("torchvision", transforms=transforms, datasets=stub("torchvision.datasets"))
    stub("torch._six", string_classes=(str, bytes))


def count(net: Any, resolution: int) -> tuple[int, int]:
    """MACs for one image of `resolution` pixels and parameters of the torch module `net`.

    MACs are counted by forward hooks on every nn.Conv2d and nn.Linear, so `net` must be static.
    """
    torch = importlib.import_module("torch")

    assert isinstance(net, torch.nn.Module)
    macs = 0

    def add(layer: Any, _: object, output: Any) -> None:
        nonlocal macs
        macs += output.numel() * layer.weight[0].numel()

    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(add)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, resolution, resolution))
    return macs, sum(parameter.numel() for parameter in net.parameters())
