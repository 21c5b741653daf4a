from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from potloc_fast.losses import video_scores
from potloc_fast.models import BaseModel, POTLoc, Pyramid
from potloc_fast.models.layers import DepthwiseConv, TemporalConv
from potloc_fast.models.winograd import conv3

FEATURES, CLASSES = 6, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def base(**options: float) -> BaseModel:
    torch.manual_seed(0)
    return BaseModel(FEATURES, CLASSES, **{"hidden": 10, **options})


def potloc(**options: float) -> POTLoc:
    """Small, with residual branches that carry weight, so that what is wrong in one shows."""
    torch.manual_seed(0)
    return POTLoc(
        FEATURES, CLASSES, **{"width": 8, "heads": 2, "levels": 2, "window": 5, "layer_scale": 1.0, **options}
    )


def with_boundaries(**options: float) -> POTLoc:
    return potloc(boundary_head=True, **options)


def expected_lengths(t: int, levels: int) -> tuple[int, ...]:
    return tuple(-(-t // 2**level) for level in range(levels + 1))


@pytest.mark.parametrize("t", [1, 2, 7, 33])
@pytest.mark.parametrize("levels", range(6))
@pytest.mark.parametrize("window", [1, 5, 99])
def test_any_length_levels_and_window(t: int, levels: int, window: int) -> None:
    pyramid = potloc(levels=levels, window=window).eval()(normal(2, t, FEATURES))
    assert pyramid.level_lengths == expected_lengths(t, levels)
    assert pyramid.logits.shape == (2, sum(pyramid.level_lengths), CLASSES + 1)
    assert pyramid.mask.shape == pyramid.logits.shape[:2]
    assert pyramid.mask.all()
    assert pyramid.logits.isfinite().all()


@pytest.mark.parametrize("t", [1, 2, 7, 33])
def test_the_base_model_has_one_level(t: int) -> None:
    pyramid = base().eval()(normal(2, t, FEATURES))
    assert pyramid.level_lengths == (t,)
    assert pyramid.logits.shape == (2, t, CLASSES + 1)
    assert pyramid.mask.all()


def assert_padding_changes_nothing(model: nn.Module, lengths: list[int], padded: int) -> None:
    features = [normal(t, FEATURES, seed=t) for t in lengths]
    mask = torch.arange(padded)[None, :] < torch.tensor(lengths)[:, None]
    # Whatever lies in the padding must not matter, so it is not zero here.
    batch = 10 * normal(len(lengths), padded, FEATURES, seed=99)
    for row, recording in enumerate(features):
        batch[row, : len(recording)] = recording
    model.standardize.fit(normal(FEATURES, seed=7), normal(FEATURES, seed=8).abs() + 0.5)
    model.eval()
    with torch.no_grad():
        together: Pyramid = model(batch, mask)
        for row, recording in enumerate(features):
            alone: Pyramid = model(recording[None])
            for (logits, valid), (want, _) in zip(together.levels(), alone.levels(), strict=True):
                length = want.shape[1]
                torch.testing.assert_close(logits[row, :length], want[0], rtol=0, atol=1e-5)
                assert valid[row, :length].all()
                assert not valid[row, length:].any()
            if together.distances is not None and alone.distances is not None:
                mask_of_row = together.mask[row]
                torch.testing.assert_close(together.distances[row, mask_of_row], alone.distances[0], rtol=1e-5, atol=0)
    assert together.logits.isfinite().all()


@pytest.mark.parametrize("leaks", [False, True])
def test_no_mask_is_one_that_leaves_nothing_out(leaks: bool) -> None:
    for model in (base().eval(), potloc(levels=3, boundary_head=True, padding_leaks=leaks, stem=1).eval()):
        x = normal(2, 45, FEATURES)
        with torch.no_grad():
            alone, given = model(x), model(x, torch.ones(2, 45, dtype=torch.bool))
        for name, value in vars(alone).items():
            torch.testing.assert_close(value, getattr(given, name), rtol=0, atol=0)


def test_a_padded_recording_scores_as_alone_in_the_base_model() -> None:
    assert_padding_changes_nothing(base(), [1, 2, 9, 20], 24)


@pytest.mark.parametrize("levels", [0, 1, 3, 5])
@pytest.mark.parametrize("window", [1, 5, 41])
def test_a_padded_recording_scores_as_alone(levels: int, window: int) -> None:
    model = potloc(levels=levels, window=window, boundary_head=True)
    assert_padding_changes_nothing(model, [1, 2, 7, 8, 9, 19, 20], 29)


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3), extra=st.integers(0, 9), stem=st.integers(0, 2))
def test_a_padded_recording_scores_as_alone_anywhere(lengths: list[int], extra: int, stem: int) -> None:
    assert_padding_changes_nothing(potloc(levels=3, stem=stem), lengths, max(lengths) + extra)


@pytest.mark.parametrize("make", [base, potloc, with_boundaries])
def test_a_recording_without_snippets_breeds_no_nan(make: type[nn.Module]) -> None:
    mask = torch.tensor([[True] * 9, [False] * 9])
    features = normal(2, 9, FEATURES).requires_grad_()
    pyramid = make().eval()(features, mask)
    assert pyramid.logits.isfinite().all()
    pyramid.logits.sum().backward()
    assert features.grad is not None
    assert features.grad[0].isfinite().all()
    assert not features.grad[1].any()


def test_a_score_sees_as_far_as_it_should() -> None:
    # Two embedding convolutions, one block (a convolution and half a window), two decoder convolutions, a classifier.
    reach = 2 + (1 + 2) + 2 + 1
    model = potloc(levels=0, stem=1).eval()
    features = normal(1, 40, FEATURES).requires_grad_()
    model(features).logits[0, 20].square().sum().backward()
    assert features.grad is not None
    seen = features.grad[0].any(dim=-1).nonzero().flatten()
    assert (seen.min(), seen.max()) == (20 - reach, 20 + reach)


@pytest.mark.parametrize("make", [base, potloc, with_boundaries])
def test_every_parameter_learns(make: type[nn.Module]) -> None:
    model = make(dropout=0.0).train()
    pyramid = model(normal(3, 20, FEATURES), torch.arange(20) < torch.tensor([[20], [13], [6]]))
    outputs = [pyramid.logits] if pyramid.distances is None else [pyramid.logits, pyramid.distances]
    sum((output * normal(*output.shape, seed=1)).sum() for output in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # What is added to all keys alike leaves a softmax as it is.
        if not name.endswith(("attention.norms.1.bias", "attention.projections.1.bias")):
            assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("make", [base, potloc])
def test_dropout_is_random_in_training_alone(make: type[nn.Module]) -> None:
    features = normal(2, 20, FEATURES)
    model = make(dropout=0.5).eval()
    assert torch.equal(model(features).logits, model(features).logits)
    model.train()
    assert not torch.equal(model(features).logits, model(features).logits)


def test_drop_path_drops_whole_branches_and_keeps_their_mean() -> None:
    features = normal(1, 8, FEATURES).expand(64, -1, -1)
    model = potloc(drop_path=0.5, levels=0, stem=1).train()
    outputs = {tuple(row.flatten().tolist()) for row in model(features).logits.detach()}
    assert len(outputs) == 4  # either branch of the one block is there or not, each recording on its own
    branch, nothing = model.blocks[0].branches[0], torch.zeros(())
    torch.testing.assert_close(branch(nothing, torch.ones(20000, 1, 8)).mean(), torch.tensor(1.0), rtol=0, atol=0.05)


def test_the_levels_share_the_decoder() -> None:
    sizes = [
        sum(parameter.numel() for module in (model.decoder, model.classifier) for parameter in module.parameters())
        for model in (potloc(levels=0), potloc(levels=4))
    ]
    assert sizes[0] == sizes[1]
    assert len(potloc(levels=4, stem=2).blocks) == 6


def test_the_boundary_head_changes_nothing_else() -> None:
    features = normal(2, 19, FEATURES)
    plain, headed = potloc().eval(), with_boundaries().eval()
    assert not any(name.startswith("boundar") for name in plain.state_dict())
    shared = {name: value for name, value in headed.state_dict().items() if not name.startswith("boundar")}
    assert shared.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, shared[name]) for name, value in plain.state_dict().items())
    without, with_them = plain(features), headed(features)
    assert without.distances is None
    assert torch.equal(with_them.logits, without.logits)


def test_distances_are_positive_and_in_snippets_of_level_0() -> None:
    model = with_boundaries(levels=2).eval()
    assert model.boundaries is not None
    assert model.boundaries.bias is not None
    assert (model(normal(2, 19, FEATURES)).distances > 0).all()
    nn.init.zeros_(model.boundaries.weight)
    with torch.no_grad():
        model.boundaries.bias.copy_(torch.tensor([1.0, 4.0]).log())
    distances = model(normal(1, 8, FEATURES)).distances[0]
    torch.testing.assert_close(
        distances[[0, 7, 8, 11, 12, 13]], torch.tensor([[1.0, 4.0]]) * torch.tensor([[1], [1], [2], [2], [4], [4]])
    )
    with torch.no_grad():
        model.boundaries.bias.copy_(torch.tensor([-1e4, 1e4]))
    distances = model(normal(1, 8, FEATURES)).distances
    assert (distances > 0).all()
    assert distances.isfinite().all()


def test_the_untrained_classifier_gives_its_prior() -> None:
    model = potloc(prior=0.02)
    nn.init.zeros_(model.classifier.weight)
    torch.testing.assert_close(model(normal(1, 9, FEATURES)).logits.sigmoid(), torch.full((1, 17, 4), 0.02))


@pytest.mark.parametrize("make", [base, potloc])
def test_features_are_standardized_with_what_is_saved(make: type[nn.Module]) -> None:
    features, mean, std = normal(2, 9, FEATURES), normal(FEATURES, seed=1), normal(FEATURES, seed=2).abs() + 0.5
    fitted, plain = make().eval(), make().eval()
    fitted.standardize.fit(mean, std)
    restored = make().eval()
    restored.load_state_dict(fitted.state_dict())
    want = plain((features - mean) / std).logits
    torch.testing.assert_close(fitted(features).logits, want)
    assert torch.equal(restored(features).logits, fitted(features).logits)
    assert not torch.allclose(plain(features).logits, want)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 8 and 3"):
        potloc(heads=3)


def naive_conv3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.conv1d(x.transpose(1, 2), weight.permute(1, 2, 0), bias, padding=1).transpose(1, 2)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("size", "t"), [(1, 1), (1, 2), (2, 9), (3, 64), (0, 4)])
def test_conv3_is_a_convolution(size: int, t: int, with_bias: bool) -> None:
    tensors = [normal(size, t, 7), normal(3, 5, 7, seed=1), normal(5, seed=2) if with_bias else None]
    inputs = [tensor if tensor is None else tensor.double().requires_grad_() for tensor in tensors]
    out, want = conv3(*inputs), naive_conv3(*inputs)
    torch.testing.assert_close(out, want)
    grad = normal(size, t, 5, seed=3).double()
    learned = [tensor for tensor in inputs if tensor is not None]
    for found, expected in zip(
        torch.autograd.grad(out, learned, grad), torch.autograd.grad(want, learned, grad), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conv3_in_half_is_off_by_at_most_twice_what_conv1d_is(dtype: torch.dtype) -> None:
    inputs = [normal(2, 100, 64), normal(3, 32, 64, seed=1) / 8]
    grad = normal(2, 100, 32, seed=2)

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        rounded = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        out = function(*rounded, None)
        return [tensor.double() for tensor in (out.detach(), *torch.autograd.grad(out, rounded, grad.to(dtype)))]

    exact, ours, plain = run(naive_conv3, torch.float64), run(conv3, dtype), run(naive_conv3, dtype)
    for want, found, other in zip(exact, ours, plain, strict=True):
        assert (found - want).norm() <= 2 * (other - want).norm()


@pytest.mark.parametrize("wide", [1, 8])
def test_a_temporal_conv_is_the_same_wide_and_narrow(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potloc_fast.models.layers.WIDE", wide)
    conv, x = TemporalConv(7, 5), normal(2, 9, 7)
    torch.testing.assert_close(conv(x), naive_conv3(x, conv.weight, conv.bias))


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_conv_holds_convolutions(stride: int) -> None:
    """As many convolutions as it has filters, which start as those that PyTorch would draw."""
    torch.manual_seed(0)
    conv, x, mask = DepthwiseConv(6, 2, stride), normal(2, 9, 6), normal(2, 9, seed=1) > -0.5
    torch.manual_seed(0)
    plain = [nn.Conv1d(6, 6, 3, stride, padding=1, groups=6, bias=False) for _ in range(2)]
    for one, other in zip(conv(x, mask), plain, strict=True):
        torch.testing.assert_close(one, other((x * mask.unsqueeze(-1)).mT).mT)


@pytest.mark.parametrize("make", [base, potloc, with_boundaries])
def test_autocast_and_compilation(make: type[nn.Module]) -> None:
    model, features = make().eval(), normal(2, 9, FEATURES)
    want = model(features).logits
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(features).logits, want)
    with torch.autocast("cpu", torch.bfloat16):
        pyramid = model(features)
    half = pyramid.logits
    assert pyramid.distances is None or pyramid.distances.dtype == torch.float32
    torch.testing.assert_close(half.float(), want, rtol=0.05, atol=0.05)
    half.float().square().mean().backward()
    assert all(parameter.grad is None or parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_a_pyramid_splits_into_its_levels() -> None:
    logits, mask = normal(2, 11, 4), normal(2, 11) > 0
    parts = Pyramid(logits, mask, (6, 3, 2)).levels()
    assert [part.shape[1] for part, _ in parts] == [6, 3, 2]
    assert torch.equal(torch.cat([part for part, _ in parts], dim=1), logits)
    assert torch.equal(torch.cat([part for _, part in parts], dim=1), mask)


@pytest.mark.parametrize("make", [base, with_boundaries])
def test_an_exported_model_takes_other_lengths(make: type[nn.Module]) -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = make().eval()

        def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor | None, ...]:
            pyramid = self.model(x, mask)
            return pyramid.logits, pyramid.mask, pyramid.distances, video_scores(pyramid, 8.0)

    def inputs(t: int) -> tuple[Tensor, Tensor]:
        return normal(2, t, FEATURES, seed=t), normal(2, t, seed=t + 1) > -1

    dynamic = torch.export.Dim.DYNAMIC
    model = Scores()
    exported = torch.export.export(model, inputs(37), dynamic_shapes=({1: dynamic}, {1: dynamic})).module()
    for t in (36, 64, 101):
        for one, other in zip(exported(*inputs(t)), model(*inputs(t)), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("make", [base, potloc, with_boundaries])
@pytest.mark.parametrize("wide", [1, 512])
def test_a_model_on_the_meta_device_says_its_shapes(
    make: type[nn.Module], wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potloc_fast.models.layers.WIDE", wide)
    x = normal(2, 33, FEATURES)
    found, want = make().to("meta")(x.to("meta")), make()(x)
    assert found.logits.device.type == "meta"
    assert (found.logits.shape, found.mask.shape) == (want.logits.shape, want.mask.shape)
    assert found.level_lengths == want.level_lengths
