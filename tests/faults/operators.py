"""Random calls of every operator, their inputs held between inaccessible pages and read-only, against the reference.

    python -m tests.faults.operators --count 200000

A read or write beside an input ends the process, so each operator has one of its own; what ends it is reported, and the
next case goes on. `--operator nms --first 1234 --count 1` runs one case again.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import mmap
import os
import pickle
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from potloc_fast import ops, reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MOST_FAILURES = 10  # of an operator, after which it is left

_libc = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Memory between two inaccessible pages, for one tensor at a time."""

    SIZE = 2**18

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, self.SIZE + 2 * mmap.PAGESIZE)
        self.begin = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + mmap.PAGESIZE
        for page in (self.begin - mmap.PAGESIZE, self.begin + self.SIZE):
            self._protect(page, mmap.PAGESIZE, 0)

    def copy(self, tensor: Tensor, at_end: bool) -> Tensor:
        """A read-only copy, its strides kept, that ends or begins at an inaccessible page."""
        if tensor.numel() == 0:
            return tensor
        count = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        size = count * tensor.element_size()
        self._protect(self.begin, self.SIZE, mmap.PROT_READ | mmap.PROT_WRITE)
        memory = (ctypes.c_char * size).from_address(self.begin + (self.SIZE - size if at_end else 0))
        copied = torch.frombuffer(memory, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())
        copied.copy_(tensor.detach())
        self._protect(self.begin, self.SIZE, mmap.PROT_READ)
        return copied

    @staticmethod
    def _protect(begin: int, size: int, protection: int) -> None:
        if _libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(size), protection) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")


class Draw:
    """What a case is made of, drawn from its number."""

    def __init__(self, operator: str, case: int, guards: Sequence[Guarded]) -> None:
        self.random = random.Random(f"{operator} {case}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(62))
        self.dtype = self.random.choice(FLOATS)
        self.wild = self.random.random() < 0.3  # values that are no numbers, infinite or extreme
        self.at_end = self.random.random() < 0.75
        self.guards = iter(guards)

    def size(self, most: int) -> int:
        """From 0 to `most`, often small."""
        return min(int(self.random.expovariate(3 / most)), most) if self.random.random() < 0.9 else most

    def normal(self, *shape: int) -> Tensor:
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * self.random.choice((0.1, 1, 4))
        values = values.to(self.dtype)
        if self.wild:
            limits = torch.finfo(self.dtype)
            extreme = torch.tensor(
                [math.nan, math.inf, -math.inf, 0.0, -0.0, limits.max, limits.min, limits.tiny], dtype=self.dtype
            )
            chosen = extreme[torch.randint(len(extreme), shape, generator=self.generator)]
            values = torch.where(torch.rand(shape, generator=self.generator) < 0.2, chosen, values)
        return values

    def unit(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def flags(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < self.random.random()

    def whole(self, most: int, *shape: int) -> Tensor:
        return torch.randint(most + 1, shape, generator=self.generator)

    def maybe(self, tensor: Tensor) -> Tensor | None:
        return tensor if self.random.random() < 0.5 else None

    def guard(self, tensor: Tensor | None) -> Any:
        return None if tensor is None else next(self.guards).copy(tensor, self.at_end)

    def exact(self) -> bool:
        """Whether the reference in float64 says, up to rounding, what must come out."""
        return self.dtype.itemsize >= 4 and not self.wild


def close(found: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for one, other in zip(found, want, strict=True):
        tolerance = 1e-7 if one.dtype == torch.float64 else 2e-4
        scale = max(1.0, float(other.detach().abs().max()) if other.numel() else 0.0)
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def equal(found: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def extreme(*tensors: Tensor) -> bool:
    """Whether there are finite numbers so large that sums of them may be infinite."""
    return any(bool(((x.double().abs() > 1e30) & x.isfinite()).any()) for x in tensors)


def gradients(draw: Draw, call: Callable[..., Any], leaves: list[Tensor], guard: bool) -> list[Tensor]:
    """What a call gives, and the gradients of its leaves; what comes in from above is drawn and guarded too."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = call(*leaves)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    generator = torch.Generator().manual_seed(0)
    above = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    above = [draw.guard(grad) for grad in above] if guard else above
    return [o.detach() for o in outputs] + list(torch.autograd.grad(outputs, leaves, above))


def smooth(draw: Draw, ours: Callable[..., Any], plain: Callable[..., Any], leaves: list[Tensor]) -> list[Tensor]:
    """Run an operator and its gradient, and where that is sure compare both with the reference."""
    found = gradients(draw, ours, [draw.guard(leaf) for leaf in leaves], guard=True)
    if draw.exact():
        close(found, gradients(draw, plain, [leaf.double() for leaf in leaves], guard=False))
    return found


def local_attention(draw: Draw) -> None:
    b, h, t, d = draw.size(3), draw.size(3), draw.size(40), max(1, draw.size(33))
    order = draw.random.choice(((0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 2, 3)))
    q, k, v = (
        draw.normal(*((b, h, t)[i] for i in order[:3]), d).permute(*(order.index(i) for i in range(3)), 3)
        for _ in range(3)
    )
    mask = draw.maybe(draw.flags(b, t))
    window, guarded_mask = 2 * draw.size(24) + 1, draw.guard(mask)
    smooth(
        draw,
        lambda *x: ops.local_attention(*x, window, guarded_mask),
        lambda *x: reference.local_attention(*x, window, mask),
        [q, k, v],
    )


def depthwise_conv(draw: Draw) -> None:
    b, t, c, n = draw.size(3), draw.size(40), draw.size(70), draw.random.randint(1, 3)
    mask, stride = draw.maybe(draw.flags(b, t)), draw.random.choice((1, 2))
    guarded_mask = draw.guard(mask)
    x, weight = draw.normal(b, t, c), draw.normal(n, 3, c)
    if draw.dtype.itemsize == 2:
        weight = weight.float()
    found = smooth(
        draw,
        lambda x, w: ops.depthwise_conv(x, w, stride, guarded_mask),
        lambda x, w: reference.depthwise_conv(x, w, stride, mask),
        [x, weight],
    )
    # What is infinite or no number reaches the same places; sums of extreme numbers may overflow in another order.
    if draw.dtype.itemsize >= 4 and not extreme(x, weight):
        want = gradients(draw, lambda x, w: reference.depthwise_conv(x, w, stride, mask), [x, weight], guard=False)
        equal([o.isfinite() for o in found], [o.isfinite() for o in want])


def targets_of(draw: Draw, *shape: int) -> Tensor:
    return draw.flags(*shape).to(draw.dtype) if draw.random.random() < 0.5 else draw.unit(*shape)


def finite_where_logits_are(logits: Tensor, gradient: Tensor) -> None:
    assert bool(gradient[logits.isfinite()].isfinite().all()), "a gradient that is not finite for a finite logit"


def sigmoid_focal_loss(draw: Draw) -> None:
    shape = [draw.size(9) for _ in range(draw.random.randint(0, 3))] or [draw.size(5000)]
    logits, targets = draw.normal(*shape), targets_of(draw, *shape)
    options: dict[str, Any] = {
        "gamma": draw.random.choice((0.0, 0.5, 2.0, 3.7)),
        "alpha": draw.random.choice((-1.0, 0.25, 1.0)),
        "reduction": draw.random.choice(("none", "sum", "mean")),
    }
    guarded = draw.guard(targets)
    _, gradient = smooth(
        draw,
        lambda x: ops.sigmoid_focal_loss(x, guarded, **options),
        lambda x: reference.sigmoid_focal_loss(x, targets.double(), **options),
        [logits],
    )
    finite_where_logits_are(logits, gradient)


def fused_focal_loss(draw: Draw) -> None:
    n, c = draw.size(70), max(1, draw.size(25))
    logits, targets = draw.normal(n, c + 1), targets_of(draw, n, c)
    rows, gamma = [draw.flags(n), draw.flags(n)], draw.random.choice((0.0, 0.5, 2.0, 3.7))
    guarded = [draw.guard(tensor) for tensor in (targets, *rows)]
    *_, gradient = smooth(
        draw,
        lambda x: ops.fused_focal_loss(x, *guarded, gamma),
        lambda x: reference.fused_focal_loss(x, targets.double(), *rows, gamma),
        [logits],
    )
    sane = logits.isfinite().all(1)  # the background's logit is shared by its row
    finite_where_logits_are(logits[sane], gradient[sane])


def background_seeds(draw: Draw) -> None:
    b, lengths = draw.size(4), [draw.size(30) for _ in range(draw.random.randint(1, 4))]
    p = draw.normal(b, sum(lengths)) if draw.wild else draw.unit(b, sum(lengths))
    action, mask = draw.flags(*p.shape), draw.maybe(draw.flags(*p.shape))
    options = (lengths, draw.random.random(), draw.random.random() < 0.5)
    found = ops.background_seeds(
        draw.guard(p), draw.guard(action), lengths, options[1], draw.guard(mask), outer_argmax=options[2]
    )
    equal([found], [reference.background_seeds(p, action, lengths, options[1], mask, outer_argmax=options[2])])


def score_segments(draw: Draw) -> None:
    n, t, k = draw.size(3), draw.size(25), draw.size(5)
    stride, upsample = draw.random.choice((1, 1, 2, 4)), draw.random.choice((1, 2, 3, 8))
    curves = draw.normal(n, t)
    scores = draw.maybe(draw.normal(n, t))
    thresholds = draw.normal(k) if draw.random.random() < 0.7 else draw.whole(2, k).to(draw.dtype)
    lengths = draw.maybe(draw.whole(t * stride, n))
    options = {"stride": stride, "upsample": upsample, "outer": draw.random.choice((0.0, 0.25, 1.0, 100.0))}
    found = ops.score_segments(
        draw.guard(curves), draw.guard(thresholds), lengths=draw.guard(lengths), scores=draw.guard(scores), **options
    )
    if extreme(curves, curves if scores is None else scores):
        return  # differences of sums of these are noise
    segments, contrast, row, threshold = reference.score_segments(
        curves, thresholds, lengths=lengths, scores=scores, **options
    )
    equal([found[0], *found[2:]], [segments, row, threshold])
    close([found[1]], [contrast])


def nms_inputs(draw: Draw) -> tuple[Tensor, Tensor]:
    n = draw.size(14) if draw.random.random() < 0.95 else draw.size(300)
    if draw.random.random() < 0.5:  # many ties, and tIoU exactly at the threshold
        start = draw.whole(8, n).to(draw.dtype)
        segments = torch.stack([start, start + draw.whole(6, n).to(draw.dtype) - 1], dim=1)
        scores = draw.whole(4, n).to(draw.dtype)
    else:
        segments, scores = draw.normal(n, 2), draw.normal(n)
    if draw.dtype == torch.float64:  # lengths of float64 itself overflow, in the reference too
        segments, scores = (x.where(x.isinf() | (x.abs() < 1e300), 0.0) for x in (segments, scores))
    return segments, scores


def thresholds_of(draw: Draw) -> dict[str, Any]:
    return {
        "iou_threshold": draw.random.choice((1e-3, 0.25, 0.5, 1.0)),
        "offset": draw.random.choice((0.0, 0.0, 1.0, 1e6)),
    }


def nms(draw: Draw) -> None:
    segments, scores = nms_inputs(draw)
    options = thresholds_of(draw)
    found = ops.nms(draw.guard(segments), draw.guard(scores), **options)
    equal([found], [reference.nms(segments, scores, **options)])


def soft_nms(draw: Draw) -> None:
    segments, scores = nms_inputs(draw)
    options = {
        **thresholds_of(draw),
        "method": draw.random.choice(("linear", "gaussian")),
        "sigma": draw.random.choice((0.1, 0.5, 2.0)),
        "min_score": draw.random.choice((0.0, 0.001, 0.5)),
    }
    keep, lowered = ops.soft_nms(draw.guard(segments), draw.guard(scores), **options)
    want, want_lowered = reference.soft_nms(segments, scores, **options)
    equal([keep], [want])
    close([lowered], [want_lowered])


def batched_nms(draw: Draw) -> None:
    segments, scores = nms_inputs(draw)
    groups = draw.whole(3, len(scores)) * draw.random.choice((1, -5, 2**40))
    options = {
        **thresholds_of(draw),
        "method": draw.random.choice(("hard", "linear", "gaussian")),
        "max_per_group": draw.random.choice((None, 0, 2)),
        "voting": draw.random.choice((None, 0.3, 1.0)),
    }
    found = ops.batched_nms(draw.guard(segments), draw.guard(scores), draw.guard(groups), **options)
    want = reference.batched_nms(segments, scores, groups, **options)
    equal([found[2]], [want[2]])
    if not draw.wild and draw.dtype.itemsize >= 4:  # votes of extreme scores and bounds overflow in another order
        close(found[:2], want[:2])


OPERATORS: dict[str, Callable[[Draw], None]] = {
    "background_seeds": background_seeds,
    "batched_nms": batched_nms,
    "depthwise_conv": depthwise_conv,
    "fused_focal_loss": fused_focal_loss,
    "local_attention": local_attention,
    "nms": nms,
    "score_segments": score_segments,
    "sigmoid_focal_loss": sigmoid_focal_loss,
    "soft_nms": soft_nms,
}


def run_cases(operator: str, first: int, last: int, at: mmap.mmap, report: int) -> None:
    """In a process of its own: run cases, note at which it is, and send what fails."""
    guards = [Guarded() for _ in range(10)]
    for case in range(first, last):
        at[:8] = case.to_bytes(8, "little")
        try:
            OPERATORS[operator](Draw(operator, case, guards))
        except Exception:
            os.write(report, pickle.dumps((case, traceback.format_exc()[-1500:])))
            os._exit(1)  # what stands on the heap may be what is wrong


def find_failures(operator: str, first: int, last: int) -> list[tuple[int, str]]:
    """The cases that failed, and how."""
    failures: list[tuple[int, str]] = []
    at = mmap.mmap(-1, 8)
    while first < last and len(failures) < MOST_FAILURES:
        read, write = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                run_cases(operator, first, last, at, write)
            except BaseException:
                traceback.print_exc()
                os._exit(2)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            sent = pipe.read()
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        case = int.from_bytes(at[:8], "little")
        if sent:
            failures.append(pickle.loads(sent))
        elif os.WIFSIGNALED(status):
            failures.append((case, f"ended by {signal.Signals(os.WTERMSIG(status)).name}"))
        else:
            failures.append((case, f"ended with status {os.WEXITSTATUS(status)}"))
        first = case + 1
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="cases of each operator")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--operator", choices=sorted(OPERATORS), action="append", help="all where none is named")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a fork has no other
    close([torch.zeros(1)], [torch.zeros(1)])  # once, not in each process: its first call takes a second
    failed = 0
    for operator in arguments.operator or OPERATORS:
        begin = time.monotonic()
        failures = find_failures(operator, arguments.first, arguments.first + arguments.count)
        failed += len(failures)
        seconds = time.monotonic() - begin
        left = " and was left" if len(failures) == MOST_FAILURES else ""
        print(f"{operator}: {arguments.count} cases, {len(failures)} failed{left}, {seconds:.1f} s", flush=True)
        for case, what in failures:
            print(f"  case {case}: {what}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
