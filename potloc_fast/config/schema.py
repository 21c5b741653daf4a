"""The configuration of a run: every key, its type, its default and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from potloc_fast.data.grid import FPS_RANGE, MOST_FRAMES

Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=FPS_RANGE[0], le=FPS_RANGE[1])]
Frames = Annotated[int, Field(ge=1, le=MOST_FRAMES)]
Device = Literal["auto", "cpu", "cuda"]
Switch = Annotated[
    Literal["auto", "on", "off"],  # the last two are booleans in YAML
    BeforeValidator(lambda value: ("off", "on")[value] if isinstance(value, bool) else value),
]
DerivedKey = Literal["train.length", "train.batch_size", "train.epochs", "train.warmup_epochs", "loss.topk_ratio"]


def _expand(path: Path) -> Path:
    if "\0" in str(path) or any(len(part.encode(errors="replace")) > 255 for part in path.parts):
        raise ValueError("expected a path that there can be")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("expected a user whose home is known after ~") from None


Location = Annotated[Path, AfterValidator(_expand)]  # ~ is the user's home
PointDistribution = Literal["gaussian", "uniform", "centre", "start", "end", "human"]


class Section(BaseModel):
    """What all sections share: unknown keys are refused, values are checked, nothing changes afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class GridConfig(Section):
    """Where snippets lie in time, where the layout does not say so or says it wrongly."""

    fps: Rate | None = None
    """Frames (or samples) a second of what the snippets were cut from."""
    window: Frames | None = None
    """Frames in a snippet."""
    stride: Frames | None = None
    """Frames from one snippet to the next."""


class SignalsConfig(Section):
    """How raw recordings are read."""

    columns: tuple[str, ...] | None = None
    """Names of the columns to read, in this order; by default all that hold numbers but the time."""
    sensors: tuple[str, ...] = ()
    """Where a recording has several files, what their names end with after its name: phone for walk1_phone.csv."""
    time: str | None = None
    """The column of time stamps; by default one that is called time, timestamp or the like."""
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    """Unit of the time stamps, where neither the column's name nor their size says it."""


class WindowsConfig(Section):
    """How samples become snippets.

    What is not set follows from the recordings and their points when training starts; in the run's config.yaml all is
    resolved.
    """

    length_sec: PositiveFloat | None = None
    """Seconds of the window that a snippet is made of, which is centred on the snippet's cell."""
    stride_sec: PositiveFloat | None = None
    """Seconds from one snippet to the next: snippet i is [i, i + 1) times this."""
    features: Literal["raw", "statistics", "log-mel"] | None = None
    """The window's samples, channel by channel; statistics of each channel; or a sound's energies in mel bands."""
    rate_hz: PositiveFloat | None = None
    """Samples a second that windows are cut from. A recording of another rate is resampled; one that says no rate is
    taken to have this one."""

    @property
    def given(self) -> bool:
        """Whether any key is set."""
        return self != WindowsConfig()

    @property
    def resolved(self) -> bool:
        """Whether all keys are set."""
        return None not in (self.length_sec, self.stride_sec, self.features, self.rate_hz)


class FolderData(Section):
    """A data set in one of the layouts that are in use."""

    layout: Literal["auto", "plain", "lacp", "hrpro", "wtalc", "backtal", "actionformer", "opentad", "hapt"]
    """How the folder is laid out; auto finds out, and says what it saw."""
    root: Location | None = None
    """The folder, or the archive that holds one."""
    name: str | None = None
    """The data set, where a folder holds several."""
    annotations: Location | None = None
    """The annotations, where they are not where the layout has them."""
    features: Location | None = None
    """The features, where they are not where the layout has them."""
    points_file: Location | None = None
    """The points, where they are not where the layout has them: a table, or what an annotation tool wrote."""
    points: Literal["file"] | PointDistribution = "file"
    """Point labels as they are on disk, or drawn from the instances."""
    kept_points: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the points of each recording that is kept."""
    grid: GridConfig = GridConfig()
    signals: SignalsConfig = SignalsConfig()
    windows: WindowsConfig = WindowsConfig()
    trusted: bool = False
    """Whether pickled arrays may be loaded, which can run any code: only for files whose source is trusted."""
    standardize: bool = False
    """Subtract the mean and divide by the standard deviation of the training features."""
    resident: Switch = "auto"
    """Keep the training features on the device and crop there; auto where they fit into half of a GPU's free memory."""


class SyntheticData(Section):
    """Recordings made on the spot, for trying things out."""

    layout: Literal["synthetic"]
    """Recordings that are made up."""
    recordings: Annotated[int, Field(ge=2)] = 24
    """How many, two thirds of them to train on."""
    classes: PositiveInt = 5
    """Kinds of actions in them."""
    length: Annotated[int, Field(ge=50)] = 400
    """Mean number of snippets in a recording."""
    width: PositiveInt = 32
    """Channels of a snippet."""
    points: PointDistribution = "gaussian"
    """Where in an instance its point is drawn."""
    kept_points: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the points of each recording that is kept."""
    standardize: bool = False
    """Subtract the mean and divide by the standard deviation of the training features."""
    resident: Switch = "auto"
    """Keep the training features on the device and crop there; auto where they fit into half of a GPU's free memory."""


class BaseModelConfig(Section):
    """The base model."""

    hidden: PositiveInt = 2048
    """Channels between the two convolutions."""
    dropout: Fraction = 0.7
    """Rate of dropout before the second one."""


class ModelConfig(Section):
    """The POTLoc model."""

    width: PositiveInt = 512
    """Channels of a snippet in the model, a multiple of heads."""
    heads: PositiveInt = 4
    """Heads of the attention."""
    levels: Annotated[int, Field(ge=0, le=20)] = 4
    """Down-sampling blocks; 0 leaves the level of the input alone."""
    window: PositiveInt = 19
    """Width of the attention's band in snippets of each level, odd."""
    stem: Annotated[int, Field(ge=0, le=100)] = 2
    """Transformer blocks before the pyramid."""
    mlp_ratio: PositiveInt = 4
    """Hidden channels of a block's MLP, over the width."""
    layer_scale: PositiveFloat = 1e-4
    """Initial factor on the residual branches."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Rate of stochastic depth."""
    dropout: Fraction = 0.0
    """Rate of dropout on the input features."""
    padding_leaks: bool = False
    """Let convolutions and pooling read what earlier layers left in the padding, as the released code does."""
    boundary_head: bool = False
    """Beside the classifier, regress the distances from every snippet to its action's start and end."""

    @field_validator("window")
    @classmethod
    def _odd(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError("expected an odd number")
        return window

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError("expected a width that is a multiple of heads")
        return self


class LossConfig(Section):
    """How the losses are formed and weighed (equation 4)."""

    mil: NonNegativeFloat = 1.0
    """Weight of L_MIL."""
    act: NonNegativeFloat = 0.5
    """Weight of L_Act."""
    bg: NonNegativeFloat = 1.0
    """Weight of L_BG."""
    gamma: NonNegativeFloat = 2.0
    """Focusing parameter of the focal losses."""
    topk_ratio: Annotated[float, Field(ge=1)] = 8.0
    """L_MIL pools the K = T // topk_ratio best snippets of a class: K should not exceed what a class covers."""
    pool_absent: bool = False
    """Pool classes that a recording lacks over all its snippets, as the released code does."""
    background_threshold: Fraction = 0.95
    """Background probability over which a snippet can be a background seed."""
    radius: NonNegativeFloat | None = 2.0
    """Sampling radius r around the points, in snippets of each level; null takes whole pseudo-labels."""
    positives: Literal["centres", "rounded"] = "centres"
    """Where a snippet must lie to be a positive: with its centre in the label; or, as in the released code, strictly
    inside it, with point, start and end rounded to snippets, and labels whose point is outside the crop left out."""
    overlap: Literal["all", "shortest"] = "all"
    """Which of the labels that hold a snippet it is a positive of; the released code takes the shortest."""
    gaps: Literal["labels", "positives"] = "labels"
    """What background seeds lie between: labels as a whole, or, as in the released code, the sampled positives."""
    outer_seeds: Literal["argmax", "edge", "between"] = "argmax"
    """Seeds before the first and after the last action where none is over the threshold: the most probable snippet; all
    from the edge to it, as the released base model has it; or none, as the released main model, whose other seeds then
    are those from the first to the last over the threshold, and none in a level without action."""
    act_background: bool = False
    """Let L_Act lower the background probability of positives too, as the released code does."""
    average: Literal["snippets", "recordings"] = "snippets"
    """Average L_Act and L_BG over all snippets of a batch, or, as in the released code, over its recordings."""
    mil_mean: bool = False
    """Average L_MIL over the classes, as the released code does, instead of adding them up."""
    pool_padding: bool = False
    """Count padding as snippets that score 0 where L_MIL pools, as the released code does: K grows with it."""
    boundary: NonNegativeFloat = 1.0
    """Weight of the boundary head's DIoU loss, where there is such a head."""


class TrainConfig(Section):
    """How a model is trained."""

    epochs: PositiveInt = 50
    """How often all training recordings are seen."""
    batch_size: PositiveInt = 4
    """Recordings in a step, a crop of each."""
    length: PositiveInt | None = 2304
    """Snippets of a crop; null takes whole recordings."""
    sampling: Literal["random", "linear"] = "random"
    """A random crop, or the whole recording interpolated to `length`."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam, or with the weight decay apart from the gradient."""
    lr: PositiveFloat = 1e-4
    """Learning rate, after the warm-up."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the optimizer."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: as it is, or in half a cosine down to zero."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs in which the learning rate rises linearly from zero."""
    clip: PositiveFloat | None = None
    """Largest norm of the gradient."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an average of the weights, which is then what is saved; the first steps average over fewer."""
    ema_warmup: bool = True
    """False: the average starts at the untrained weights with the full decay, as in the released code."""
    decay_weights_only: bool = False
    """Spare biases, normalizations and scales the weight decay, as the released code does."""
    stop_epoch: PositiveFloat | None = None
    """Epoch, perhaps a part of one, after which training ends, although the schedule goes on to `epochs`."""
    drop_last: bool = False
    """Leave out the last batch of an epoch where it is not full."""
    pad: bool = False
    """Pad every crop to `length` instead of the longest of its batch."""

    @model_validator(mode="after")
    def _linear_needs_length(self) -> TrainConfig:
        if self.sampling == "linear" and self.length is None:
            raise ValueError("expected a length to interpolate to where sampling is linear")
        return self

    @model_validator(mode="after")
    def _pad_needs_length(self) -> TrainConfig:
        if self.pad and self.length is None:
            raise ValueError("expected a length to pad to where pad is set")
        return self


class Thresholds(Section):
    """Evenly spaced thresholds: start, start + step, ... up to and including stop."""

    start: Fraction
    """The first threshold."""
    stop: Fraction
    """The last one, where the steps meet it."""
    step: Annotated[float, Field(ge=0.001)]
    """From one to the next."""

    def values(self) -> list[float]:
        """The thresholds."""
        return [self.start + i * self.step for i in range(int((self.stop - self.start) / self.step + 1e-9) + 1)]


class NmsConfig(Section):
    """What is done with overlapping proposals of a class."""

    method: Literal["hard", "linear", "gaussian"] = "hard"
    """Remove proposals, or lower their scores by how much they overlap a better one."""
    iou: Fraction = 0.6
    """Hard and linear: overlap from which a proposal is removed, or its score lowered."""
    sigma: PositiveFloat = 0.5
    """Gaussian: width of the decay."""
    min_score: float = 0.001
    """Linear and Gaussian: score under which a proposal is removed."""
    voting: Fraction | None = None
    """Replace a kept proposal by the mean of all that overlap it by this much, weighted by score."""
    offset_sec: NonNegativeFloat = 0.0
    """Seconds added to every length and overlap; 1 in the released code."""


class Padding(Section):
    """To how many snippets a recording is padded."""

    shortest: PositiveInt
    """At least to so many,"""
    multiple: PositiveInt
    """and to a multiple of this."""

    def length(self, snippets: int) -> int:
        """The padded length of a recording of so many snippets."""
        return -(-max(snippets, self.shortest) // self.multiple) * self.multiple


class DetectConfig(Section):
    """From scores to proposals and detections."""

    class_threshold: Fraction = 0.5
    """Video-level score from which a class is looked for; the best class always is."""
    class_per_level: bool = False
    """Look in each level for the classes that its own score chooses, as the released code does."""
    class_thresholds: Thresholds | None = Thresholds(start=0.0, stop=0.2, step=0.025)
    """Thresholds on the class scores."""
    actionness_thresholds: Thresholds | None = Thresholds(start=0.3, stop=0.9, step=0.025)
    """Thresholds on one minus the background score."""
    outer: NonNegativeFloat = 0.25
    """The contrast's outer region on either side, over the length of the segment."""
    contrast: Literal["whole", "cut"] = "whole"
    """What a class threshold's contrast is taken on: the whole curve, or, as the released code does, with everything
    under the threshold set to zero. Cut, a fragment at a high threshold outranks the action that it is a part of: use
    it with low thresholds alone."""
    video_weight: NonNegativeFloat = 0.2
    """Weight of the video-level score in a proposal's score."""
    upsample: Annotated[int, Field(ge=1, le=1000)] = 8
    """Points to a snippet at which the score curves are interpolated."""
    align: Literal["centre", "start"] = "centre"
    """Where values stand on an upsampled curve: at the centres of their snippets, constant beyond; or, as in LACP and
    the released code, at their starts, extrapolated linearly beyond the last."""
    truncate_outer: bool = False
    """Cut the bounds of the outer region down to whole points, as LACP and the released code do, which gives the left
    side a point more unless its length is whole; `align: start` alone."""
    drop_first_point: bool = False
    """Find nothing where the first point alone is over a threshold, as LACP and the released code; `align: start`."""
    pad: Padding | None = None
    """Pad recordings as the released code does, one in a batch; padding then scores 0 in curves and counts for K."""
    proposals: Literal["thresholds", "boundaries"] = "thresholds"
    """What proposals come from: the thresholds above, or the boundary head."""
    finest_level: Annotated[int, Field(ge=0)] = 0
    """Finest level whose snippets make proposals of the boundary head: the fine ones see little of a long action."""
    nms: NmsConfig = NmsConfig()
    batch_size: PositiveInt = 8
    """Recordings in one pass of the model."""

    @model_validator(mode="after")
    def _some_thresholds(self) -> DetectConfig:
        if self.class_thresholds is None and self.actionness_thresholds is None:
            raise ValueError("expected class_thresholds or actionness_thresholds")
        return self

    @model_validator(mode="after")
    def _need_start(self) -> DetectConfig:
        if self.align != "start" and (self.truncate_outer or self.drop_first_point):
            raise ValueError("expected align: start where truncate_outer or drop_first_point is set")
        return self


class BaseStage(Section):
    """The first stage: the base model, trained on points, whose proposals become pseudo-labels."""

    model: BaseModelConfig = BaseModelConfig()
    loss: LossConfig = LossConfig(radius=None)
    train: TrainConfig = TrainConfig()
    detect: DetectConfig = DetectConfig()


class PseudoLabelConfig(Section):
    """Algorithm 1."""

    variant: Literal["paper", "released", "fused", "aligned"] = "paper"
    """To the letter of the paper; as the authors' code does it: every point gets a label; or past both: boundaries
    from all proposals around a point; or from the features alone, without a base model (`engine.align`), and
    "fused" from the second round on."""

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, values: Any) -> Any:
        """Runs of earlier versions wrote down that they did not use `centre_prior`."""
        if isinstance(values, dict) and values.get("centre_prior") is False:
            return {key: value for key, value in values.items() if key != "centre_prior"}
        return values


class EvaluateConfig(Section):
    """How detections are scored."""

    subset: str = "test"
    """The subset that is detected in and scored."""
    tiou: Annotated[tuple[Fraction, ...], Field(min_length=1, max_length=1000)] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    """Thresholds of mAP on the temporal intersection over union."""
    protocol: Literal["activitynet", "thumos"] = "activitynet"
    """The rules of the ActivityNet evaluation, or of the THUMOS kit."""


class EngineConfig(Section):
    """What a run is computed on and how: speed and rounding follow from it, not what is learned."""

    device: Device = "auto"
    """The GPU, or the CPU; auto takes a GPU where there is one and the package was built for it."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """What models compute in, with weights and losses in float32: float32; the same with a GPU's matrix products
    rounded to TF32; or autocast to a half type, where fp16 scales the loss."""
    compile: bool = False
    """Train the models through torch.compile."""
    cuda_graph: Switch = "auto"
    """Capture the training step in a CUDA graph: auto where it can be, and says why where it can't."""


class Config(Section):
    """A whole run. The top-level sections `model`, `loss`, `train` and `detect` are those of the POTLoc model."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Where random numbers begin: points that are drawn, weights, crops."""
    auto: tuple[DerivedKey, ...] = ()
    """Keys whose values follow from the training recordings and their points when training starts. A key that is set
    in a later file or override is none of them any more; in the run's config.yaml all are resolved."""
    supervision: Literal["pseudo-labels", "ground-truth", "proposals", "points"] = "pseudo-labels"
    """What the POTLoc model learns from; all but the first are there for comparison."""
    rounds: PositiveInt = 1
    """Rounds of training the POTLoc model. From the second on, pseudo-labels come from the proposals of the round
    before. All but the last take half the epochs. Other supervisions have one round."""
    backbone: Literal["transformer", "convolutions"] = "transformer"
    """The POTLoc model, or, for comparison, a base model in its place, as `base.model` describes it."""
    data: Annotated[FolderData | SyntheticData, Field(discriminator="layout")]
    base: BaseStage = BaseStage()
    pseudo_labels: PseudoLabelConfig = PseudoLabelConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    detect: DetectConfig = DetectConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    engine: EngineConfig = EngineConfig()

    @property
    def uses_base(self) -> bool:
        """Whether the base model is trained: not where its proposals would be read by nothing."""
        return self.supervision != "pseudo-labels" or self.pseudo_labels.variant != "aligned"

    @field_validator("base")
    @classmethod
    def _base_has_no_boundary_head(cls, base: BaseStage) -> BaseStage:
        if base.detect.proposals == "boundaries":
            raise ValueError("expected detect.proposals: thresholds, as the base model has no boundary head")
        return base

    @field_validator("detect")
    @classmethod
    def _proposals_can_be_made(cls, detect: DetectConfig, info: ValidationInfo) -> DetectConfig:
        model = info.data.get("model")
        if detect.proposals == "boundaries" and model is not None:
            if not model.boundary_head:
                raise ValueError("expected model.boundary_head: true where proposals are boundaries")
            if detect.finest_level > model.levels:
                raise ValueError(f"expected a finest_level of at most model.levels, {model.levels}")
        return detect
