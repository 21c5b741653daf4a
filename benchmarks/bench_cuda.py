"""The operators on a GPU, replayed from CUDA graphs where they can be captured, beside peers in the same form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_proposals import OUTER, SEGMENTS_IN_A_GROUP, THRESHOLDS, random_segments, smooth_curves
from benchmarks.harness import Case, Unavailable, Work, log, start_peak
from benchmarks.peers import attention
from benchmarks.peers import focal as focal_peers
from potloc_fast import ops
from potloc_fast.engine.device import unusable

WINDOW = 19
REPLAYS = 50

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def replayed(call: Callable[[], Any]) -> Callable[[], Any]:
    """Captures a call in a CUDA graph; what is returned replays it `REPLAYS` times, waits, and gives its result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    before = start_peak()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
        return result

    replay.peak_bytes = torch.cuda.max_memory_allocated() - before  # type: ignore[attr-defined]
    return replay


def waited(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call, and a wait for the GPU."""

    def run() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return run


def all_replayed(
    ours: Callable[[], Any], peers: Mapping[str, Callable[[], Any]], check: Callable[[Any, Any], None]
) -> Work:
    captured = {}
    for name, peer in peers.items():
        try:
            captured[name] = replayed(peer)
        except Exception as error:  # a peer that can't be compiled or captured here costs its own row alone
            log(f"{name}: not measured: {error}")
    return Work(replayed(ours), captured, check, repeat=REPLAYS)


def copied(tensors: int, like: Tensor) -> Callable[[], Any]:
    """A copy within the memory of a device that reads and writes as many bytes as `tensors` times those of `like`."""
    source = torch.empty(tensors * like.numel() * like.element_size() // 2, dtype=torch.uint8, device=like.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def need_gpu() -> None:
    """Raise where there is no GPU, or are no kernels for it."""
    if (reason := unusable(0)) is not None:
        raise Unavailable(f"there is no GPU to use: {reason}")


def forward(shape: tuple[int, ...], against_copy: bool = False) -> Work:
    """bfloat16, no gradient."""
    need_gpu()
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))

    def check(found: Tensor, other: Tensor) -> None:
        if not against_copy:
            torch.testing.assert_close(found.float(), other.float(), rtol=3e-2, atol=3e-2)

    peers: dict[str, Callable[[], Any]]
    if against_copy:
        peers = {"copy of as many bytes": copied(4, q)}
    else:
        flex = attention.flex_attention(shape[2], WINDOW, "cuda")
        peers = {
            "flex_attention": lambda: flex(q, k, v),
            "sliding_chunks": lambda: attention.sliding_chunks(q, k, v, WINDOW),
        }
    return all_replayed(lambda: ops.local_attention(q, k, v, WINDOW), peers, check)


def forward_backward(shape: tuple[int, ...]) -> Work:
    """bfloat16, with gradients."""
    need_gpu()
    qkv = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    grad = torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    def step(call: Attention) -> list[Tensor]:
        out = call(*qkv)
        return [out.detach(), *torch.autograd.grad(out, qkv, grad)]

    def check(found: list[Tensor], others: list[Tensor]) -> None:
        for one, other in zip(found, others, strict=True):
            torch.testing.assert_close(one.float(), other.float(), rtol=5e-2, atol=5e-2)

    def sliding_chunks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.sliding_chunks(q, k, v, WINDOW)

    peers = {
        "flex_attention": partial(step, attention.flex_attention(shape[2], WINDOW, "cuda")),
        "sliding_chunks": partial(step, sliding_chunks),
    }
    return all_replayed(partial(step, lambda q, k, v: ops.local_attention(q, k, v, WINDOW)), peers, check)


def focal(rows: int, classes: int) -> Work:
    """float32, with gradients; the copy moves what the losses must: logits and targets twice, the gradient once."""
    need_gpu()
    logits = torch.randn(rows, classes + 1, device="cuda", requires_grad=True)
    targets = (torch.rand(rows, classes, device="cuda") > 0.9).float()
    positive = torch.rand(rows, device="cuda") > 0.5
    negative = ~positive

    def step(loss: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        act, bg = loss(logits, targets, positive, negative)
        return [act.detach(), bg.detach(), *torch.autograd.grad(act + bg, logits)]

    def check(found: list[Tensor], others: Any) -> None:
        if isinstance(others, list):
            torch.testing.assert_close(found[:2], others[:2], rtol=1e-3, atol=0)

    peers = {
        "eager on probabilities": partial(step, focal_peers.fused_focal_loss),
        "its compiled form": partial(step, torch.compile(focal_peers.fused_focal_loss)),
        "copy of as many bytes": copied(5, logits),
    }
    return all_replayed(partial(step, ops.fused_focal_loss), peers, check)


def proposals() -> Work:
    """score_segments, then batched_nms on what it gave."""
    need_gpu()
    curves = smooth_curves(210 * 20, 2304).cuda()
    thresholds = torch.from_numpy(THRESHOLDS).float().cuda()

    def ours() -> Any:
        segments, scores, row, _ = ops.score_segments(curves, thresholds, upsample=4, outer=OUTER)
        return ops.batched_nms(segments, scores, row, iou_threshold=0.5)

    return Work(waited(ours), {}, lambda *_: None)


def groups() -> Work:
    """1M segments in 4,200 groups; torchvision takes segments as boxes of height 1."""
    need_gpu()
    segments, scores = random_segments(1_000_000, "short")
    segments, scores = (segments / 1_000_000 * 2 * SEGMENTS_IN_A_GROUP).cuda(), scores.cuda()
    group = torch.randint(0, 4200, (1_000_000,), device="cuda")
    peers = {}
    try:
        from torchvision.ops import batched_nms
    except ImportError:
        pass
    else:
        boxes = torch.stack((segments[:, 0], torch.zeros_like(scores), segments[:, 1], torch.ones_like(scores)), dim=1)
        peers["torchvision"] = waited(lambda: batched_nms(boxes, scores, group, 0.5))

    def check(found: tuple[Tensor, ...], kept: Tensor) -> None:
        # torchvision decides in float32, and keeps what overlaps by the threshold exactly.
        assert abs(len(found[2]) - len(kept)) < 1e-3 * len(kept)

    return Work(waited(lambda: ops.batched_nms(segments, scores, group, iou_threshold=0.5)), peers, check)


PAPER, LONG = (3, 4, 2304, 128), (4, 8, 65_536, 64)
PEERS = {"flex_attention": 4.0, "sliding_chunks": 30.0}
CASES = [
    Case(
        "cuda-attn-fwd",
        "local_attention, forward, replayed",
        f"B 3, H 4, T 2304, D 128, window {WINDOW}",
        "bfloat16",
        partial(forward, PAPER),
        PEERS,
        15e-6,
        device="cuda",
    ),
    Case(
        "cuda-attn-fwdbwd",
        "local_attention, forward and backward, replayed",
        f"B 3, H 4, T 2304, D 128, window {WINDOW}",
        "bfloat16",
        partial(forward_backward, PAPER),
        PEERS,
        50e-6,
        device="cuda",
    ),
    Case(
        "cuda-attn-long",
        "local_attention, forward, replayed",
        f"B 4, H 8, T 65,536, D 64, window {WINDOW}",
        "bfloat16",
        partial(forward, LONG, against_copy=True),
        {"copy of as many bytes": 0.6},
        device="cuda",
    ),
    Case(
        "cuda-focal",
        "fused_focal_loss, forward and backward, replayed",
        "4M x 21",
        "float32",
        partial(focal, 2**22, 20),
        {"eager on probabilities": 8.0, "its compiled form": 1.0, "copy of as many bytes": 0.75},
        device="cuda",
    ),
    Case(
        "cuda-proposals",
        "score_segments and batched_nms",
        "210 videos, 20 classes, T 2304, upsampled 4 times, 36 thresholds",
        "float32",
        proposals,
        limit_s=5e-3,
        device="cuda",
    ),
    Case(
        "cuda-nms-groups",
        "batched_nms",
        "1,000,000 in 4,200 groups",
        "float32",
        groups,
        {"torchvision": 5.0},
        10e-3,
        device="cuda",
    ),
]
