"""Argument checks shared by the operators: what is wrong, expected and got, as `ValueError` or `TypeError`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import SymInt, Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from potloc_fast.ops._library import _C

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on the tensor's device; None where it is off, or there are no kernels."""
    kind = tensor.device.type
    # Of torch.amp.is_autocast_available, which would be asked, the compiler of torch 2.10 knows nothing.
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def check_dense(op: str, **tensors: Tensor) -> None:
    """All of `tensors` are dense tensors of floating dtypes that the kernels know.

    Where autocast may cast them, this comes first: a cast drops the imaginary part of complex numbers.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{op}: {name} must be a dense tensor, got {tensor.layout}")
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{op}: {name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")


def check_floating(op: str, **tensors: Tensor) -> None:
    """All of `tensors` are dense, of one floating dtype that the kernels know, and on one device they were built for.

    None has a forward-mode derivative: the kernels would drop it, and what comes back would count as constant. Every
    operator has to call this for all its floating tensors before it detaches them.
    """
    check_dense(op, **tensors)
    first_name, first = next(iter(tensors.items()))
    if first.is_cuda and not _C.cuda_architectures:
        raise RuntimeError(
            f"{op}: potloc_fast was built without CUDA kernels: put nvcc on PATH and install it again with "
            "`POTLOC_FAST_CUDA=1 pip install --force-reinstall --no-deps .`"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != first.dtype:
            raise TypeError(f"{op}: {name} must have the dtype of {first_name}, {first.dtype}, got {tensor.dtype}")
        check_device(op, name, tensor, first)
        if forward_ad._current_level >= 0 and _may_have_tangent(tensor):
            raise RuntimeError(
                f"{op}: forward-mode derivatives (jvp, jacfwd, forward_ad) are not supported, and {name} has one: "
                "detach it, or use backward()"
            )


def _may_have_tangent(tensor: Tensor) -> bool:
    # What a transform of torch.func has wrapped hides the tangents of the levels around it.
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return wrapped or forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def check_dtype(op: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """`tensor` is a tensor of `dtype`."""
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{op}: {name} must be a Tensor of {dtype}, got {found}")


def check_device(op: str, name: str, tensor: Tensor, like: Tensor) -> None:
    """`tensor` lies on the device of `like`."""
    if tensor.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device} as the first argument is, got {tensor.device}")


def check_shape(op: str, name: str, tensor: Tensor, letters: str, sizes: Sequence[int]) -> None:
    """`tensor` has the shape `sizes`; -1 stands for any size. `letters` names the dimensions, as in "B, H, T, D"."""
    if tensor.dim() != len(sizes) or any(want not in (-1, got) for want, got in zip(sizes, tensor.shape, strict=True)):
        want = ", ".join(
            letter if size == -1 else str(size) for letter, size in zip(letters.split(", "), sizes, strict=True)
        )
        raise ValueError(f"{op}: {name} must have shape [{want}], got {list(tensor.shape)}")


def size_from_data(like: Tensor, most: int) -> int | SymInt:
    """A size that data decide: unknown where `like` is a fake tensor, the most that it can be on the meta device."""
    return torch.library.get_ctx().new_dynamic_size() if isinstance(like, FakeTensor) else most
