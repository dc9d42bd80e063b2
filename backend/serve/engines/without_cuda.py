"""Lets torchvision be imported beside a torch without CUDA: in vLLM's environment, from its first breath.

PyPI's torchvision is built for CUDA, and its operators cannot be loaded then. What prepares pictures needs none of
them; two are looked up by name when it is imported, and are named here before. Only Python's own library is imported.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

OPERATORS = ("nms", "qnms")


class Finder(MetaPathFinder):
    """Finds nothing; when torchvision is looked for first, it names the operators."""

    library: Any = None  # what is named lasts as long as this

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Name the operators once, and leave the rest to others."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            Finder.library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            for name in OPERATORS:
                Finder.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, Finder())
