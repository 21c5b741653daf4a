"""Every operator's tests, once more for each instruction set below the best one of this processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from potloc_fast import ops
from potloc_fast.ops._library import _C

CAPABILITIES = ["baseline", "avx2", "avx512"]
LOWER = CAPABILITIES[: CAPABILITIES.index(_C.cpu_capability())]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def answers() -> dict[str, list[Tensor]]:
    """What every operator says to fixed inputs."""
    found: dict[str, list[Tensor]] = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        *leaves, grad = normal(2, 67, 4, 2, 13, dtype=dtype).permute(2, 0, 3, 1, 4).unbind()
        leaves = [leaf.requires_grad_() for leaf in leaves]
        out = ops.local_attention(*leaves, 19, normal(2, 67, seed=1, dtype=dtype) > -0.5)
        found[f"local_attention {dtype}"] = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
        x, weight = (normal(*shape, dtype=dtype).requires_grad_() for shape in ((2, 67, 13), (3, 3, 13)))
        outputs = ops.depthwise_conv(x, weight, 2, normal(2, 67, seed=1, dtype=dtype) > -0.5)
        found[f"depthwise_conv {dtype}"] = [o.detach() for o in outputs]
        grads = list(normal(3, 2, 34, 13, seed=2, dtype=dtype))
        found[f"depthwise_conv {dtype}"] += torch.autograd.grad(outputs, [x, weight], grads)
        logits, targets = (
            (4 * normal(67, 6, dtype=dtype)).requires_grad_(),
            (normal(67, 6, seed=1, dtype=dtype) > 0).to(dtype),
        )
        loss = ops.sigmoid_focal_loss(logits, targets)
        found[f"sigmoid_focal_loss {dtype}"] = [loss.detach(), *torch.autograd.grad(loss.sum(), logits)]
        act, bg = ops.fused_focal_loss(logits, targets[:, 1:], targets[:, 0] > 0, targets[:, 0] == 0)
        found[f"fused_focal_loss {dtype}"] = [act.detach(), bg.detach(), *torch.autograd.grad(act + bg, logits)]
        curves = normal(6, 67, seed=2, dtype=dtype).sigmoid()
        found[f"background_seeds {dtype}"] = [ops.background_seeds(curves[:3], curves[3:] > 0.7, (50, 17), 0.6)]
        segments = ops.score_segments(curves, torch.tensor([0.3, 0.5, 0.7], dtype=dtype), upsample=4)
        found[f"score_segments {dtype}"] = list(segments)
        merged = ops.batched_nms(segments[0], segments[1], segments[2], iou_threshold=0.4, voting=0.6)
        found[f"batched_nms {dtype}"] = list(merged)
        found[f"soft_nms {dtype}"] = list(ops.soft_nms(segments[0], segments[1]))
    return found


def run_python(arguments: list[str], capability: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "POTLOC_FAST_CPU_CAPABILITY": capability}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("capability", LOWER)
def test_every_operator_passes_its_tests(capability: str, tmp_path: Path) -> None:
    here = Path(__file__).resolve()
    arguments = ["-m", "pytest", "-q", "--config-file", str(here.parents[2] / "pyproject.toml"), str(here.parent)]
    done = run_python([*arguments, "-p", "no:cacheprovider", "--ignore", str(here)], capability, tmp_path)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.parametrize("capability", LOWER)
def test_all_instruction_sets_agree(capability: str, tmp_path: Path) -> None:
    code = f"""
import runpy, torch
from potloc_fast.ops._library import _C
torch.save(runpy.run_path({__file__!r})["answers"](), "answers.pt")
print(_C.cpu_capability())
"""
    done = run_python(["-c", code], capability, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == capability
    found, want = torch.load(tmp_path / "answers.pt"), answers()
    assert found.keys() == want.keys()
    for name, tensors in want.items():
        # What decides by thresholds decides the same; sums may round another way, half types in their last bit.
        decides = name.startswith(("background", "score", "batched"))
        for one, other in zip(found[name], tensors, strict=True):
            eps = torch.finfo(other.dtype).eps if other.is_floating_point() and not decides else 0
            tolerance = eps * (2 if other.dtype.itemsize == 2 else 100)
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text)


def test_an_unknown_instruction_set_is_refused(tmp_path: Path) -> None:
    done = run_python(["-c", "from potloc_fast.ops._library import _C; _C.cpu_capability()"], "sse9", tmp_path)
    assert done.returncode != 0
    assert "POTLOC_FAST_CPU_CAPABILITY must be baseline, avx2 or avx512" in done.stderr
    assert "got sse9" in done.stderr
