"""What the operators' backward operators have in common."""

from __future__ import annotations

from typing import Any, NoReturn

import torch


def refuse_double_backward(name: str) -> None:
    """Give the operator `name`, which computes a gradient, a backward that says that there is none.

    Args:
        name: the operator with its namespace, for example `potloc_fast::_local_attention_backward`.
    """

    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(f"{name} has no gradient: second derivatives are not supported (create_graph=True)")

    torch.library.register_autograd(name, backward)
