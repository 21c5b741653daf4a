"""A trained model in a program: loaded once, called as often as recordings come, or fed by a stream."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from potloc_fast.config import Config
from potloc_fast.config.schema import Device
from potloc_fast.data import Grid, Recording
from potloc_fast.data.dataset import whole
from potloc_fast.data.grid import FPS_RANGE
from potloc_fast.data.inputs import makes_snippets
from potloc_fast.data.recording import Features, JoinedFeatures, blocks, feature_faults
from potloc_fast.data.signals.live import Cutter
from potloc_fast.data.signals.source import windows_of
from potloc_fast.data.signals.windows import Windows
from potloc_fast.engine.detect import LONGEST_PASS, Rules, detect
from potloc_fast.engine.device import float32_products, pick_device
from potloc_fast.engine.run import Model, Run
from potloc_fast.engine.sections import SECTION, Section
from potloc_fast.errors import InputError
from potloc_fast.evaluation import Segments
from potloc_fast.names import normalize

Values: TypeAlias = NDArray[np.floating] | Tensor
_ONE_AT_A_TIME = RLock()  # on GPUs: how torch rounds matrix products there is a setting of the process


class Detection(NamedTuple):
    """An action that was found, `[start_sec, end_sec)`."""

    recording: str
    label: str
    start_sec: float
    end_sec: float
    score: float


class Detector:
    """The POTLoc model of a run, ready to detect.

    Threads may share one. It can be pickled, with its weights; where it is unpickled it chooses its device anew.

    Args:
        config: the run's configuration.
        classes: names of the classes, in the order of the model's outputs.
        features: channels of a snippet.
        grid: where snippets lie in time; None where each recording says so itself.
        model: the trained model.
        section: recordings from 1.5 times as many snippets on, and streams, are detected in by sections of so many
            snippets.
        source: names in errors where the model is from.

    Attributes:
        config, classes, features, grid, model, section, source: see the args.

    Example:
        >>> detector = Detector.load("runs/own")  # doctest: +SKIP
        >>> detector(np.load("walk.npy"))[0]  # doctest: +SKIP
        Detection(recording='recording', label='WALKING', start_sec=3.1, end_sec=21.4, score=0.93)
    """

    def __init__(
        self,
        config: Config,
        classes: tuple[str, ...],
        features: int,
        grid: Grid | None,
        model: Model,
        section: int = SECTION,
        source: str = "detector",
    ) -> None:
        if section < 1:
            raise ValueError(f"Detector: section must be 1 or more snippets, got {section}")
        self.config, self.classes, self.features, self.grid = config, classes, features, grid
        self.section, self.source = section, source
        self.snippet_sec: float | None = None  # where it was said, not known from training
        self.model: Model = model.to(pick_device(config.engine)).eval().requires_grad_(False)
        self._rules = Rules(self.model, len(classes), config.detect, config.loss.topk_ratio, config.engine.precision)

    @classmethod
    def load(
        cls,
        run: Run | str | Path,
        *,
        device: Device | None = None,
        snippet_sec: float | None = None,
        section: int = SECTION,
    ) -> Detector:
        """Load the model of a run, or of a folder that `potloc-fast export` wrote.

        Args:
            run: a run, or its folder.
            device: "auto", "cpu" or "cuda"; by default as the run's configuration says.
            snippet_sec: how long a snippet lasts, in seconds; by default as in training, if it was the same in all
                recordings there.
            section: snippets of a section, see the class.

        Raises:
            InputError: the run has no trained model, or there is no such device.
        """
        if snippet_sec is not None and not 1 / FPS_RANGE[1] <= snippet_sec <= 1 / FPS_RANGE[0]:
            raise InputError(
                f"snippet_sec: expected {1 / FPS_RANGE[1]:g} to {1 / FPS_RANGE[0]:g} seconds, got {snippet_sec:g}"
            )
        run = run if isinstance(run, Run) else Run.open(run)
        config = run.config
        if device is not None:
            config = config.model_copy(update={"engine": config.engine.model_copy(update={"device": device})})
        grid = run.grid if snippet_sec is None else Grid(fps=1 / snippet_sec, window=1, stride=1)
        model = run.load("potloc")
        made = cls(config, run.classes, run.features, grid, model, section, str(run.folder))
        made.snippet_sec = snippet_sec
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickled weights have to find a place wherever that is.
        model = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        arguments = (self.config, self.classes, self.features, self.grid, model, self.section, self.source)
        return Detector, arguments, {"snippet_sec": self.snippet_sec}

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._rules.device

    @cached_property
    def digest(self) -> str:
        """A digest of all that detections follow from: weights, classes, time grid, rules."""
        loss, rules = self.config.loss.topk_ratio, self.config.detect.model_dump_json()
        grid = self.grid and (float(self.grid.fps), self.grid.window, self.grid.stride)
        facts = (self.classes, self.features, grid, self.section, float(loss), rules, str(self.model))
        found = sha256(repr(facts).encode())
        for name, value in self.model.state_dict().items():
            found.update(name.encode() + value.cpu().numpy().tobytes())
        return found.hexdigest()

    def recording(self, name: str, features: Features | Values, place: str | None = None) -> Recording:
        """Check features, and make a recording of them.

        Args:
            name: of the recording.
            features: `[T, F]`.
            place: names it in errors; by default `name`.

        Raises:
            InputError: the model can't detect in them, or it is not known how long a snippet lasts.
        """
        place = name if place is None else place
        if self.grid is None:
            raise InputError(
                f"{place}: expected how long a snippet lasts (--snippet-sec), which differs between the recordings "
                f"that {self.source} was trained on, got none"
            )
        if isinstance(features, Tensor):
            features = features.detach().cpu().float().numpy()
        elif not isinstance(features, JoinedFeatures):
            features = np.asanyarray(features, dtype=np.float32)  # what is mapped from a file stays so, and is let go
        self.check(Recording(place, features, self.grid, "test"))
        return Recording(normalize(name), features, self.grid, "test")

    def check(self, recording: Recording) -> None:
        """Look at all features of a recording.

        Raises:
            InputError: the model can't detect in them.
        """
        width = recording.features.shape[-1] if recording.features.ndim else 0
        if width != self.features:
            raise InputError(
                f"{recording.id}: expected width {self.features}, which the model was trained on, got {width}"
            )
        for fault in feature_faults(recording):
            raise InputError(fault.message)

    def __call__(self, features: Recording | Values, name: str = "recording") -> list[Detection]:
        """Detect actions in a recording.

        Args:
            features: `[T, F]`, or a recording.
            name: of the recording, where it has none yet.

        Returns:
            The detections, by falling score.

        Raises:
            InputError: the features can't be used.
        """
        return typed(self.segments([self._taken(features, name)]))

    def batch(self, recordings: Sequence[Recording] | Mapping[str, Values]) -> list[list[Detection]]:
        """Detect actions in several recordings, those of like length together.

        Args:
            recordings: recordings, or features by the recordings' names.

        Returns:
            For each recording its detections, by falling score.
        """
        given = recordings.items() if isinstance(recordings, Mapping) else ((each.id, each) for each in recordings)
        taken = [self._taken(each, name) for name, each in given]
        if not taken:
            return []
        found = self.segments(taken)
        return [typed(found.take(found.video == video)) for video in range(len(taken))]

    def segments(self, recordings: Sequence[Recording], alone: bool = True) -> Segments:
        """Do as `batch`, and give columns; recordings are as `recording` checks them.

        Args:
            recordings: at least one.
            alone: False shares the work with the other processes that torchrun started; all get all.
        """
        with self._computing():
            return detect(
                self.model,
                recordings,
                self.classes,
                self.config.detect,
                self.config.loss.topk_ratio,
                self.config.engine.precision,
                self.section,
                alone,
            )

    def scores(self, features: Recording | Values) -> NDArray[np.float32]:
        """The fused class probabilities of each snippet, from the finest level of the model.

        Args:
            features: `[T, F]`, or a recording.

        Returns:
            `[T, C]`.
        """
        taken = self._taken(features, "recording").features
        with self._computing():
            return np.concatenate(list(self._curves(taken)))

    def _taken(self, features: Recording | Values, name: str) -> Recording:
        if not isinstance(features, Recording):
            return self.recording(name, features)
        self.check(features)
        return features

    def _curves(self, features: Features) -> Iterator[NDArray[np.float32]]:
        def fused(logits: Tensor) -> NDArray[np.float32]:
            p = logits.float().sigmoid()
            curves: NDArray[np.float32] = (p[:, :-1] * (1 - p[:, -1:])).cpu().numpy()
            return curves

        if len(features) <= LONGEST_PASS:
            batch = whole([Recording("", features, Grid(1, 1, 1), "test")])
            yield fused(self._rules.score(batch.features, batch.mask).levels()[0][0][0])
            return
        for section in self._rules.cut(blocks(features), SECTION):
            own = slice(
                max(0, int(max(section.start, 0)) - section.first),
                None if section.end == math.inf else int(section.end) - section.first,
            )
            yield fused(section.pyramid.levels()[0][0][0, own])[: len(features)]

    def stream(self, name: str = "stream", section: int | None = None, rate_hz: float | None = None) -> Stream:
        """Begin to detect in snippets or samples that come one after the other, without an end.

        Args:
            name: of the recording in the detections.
            section: snippets of a section, which decide the latency; by default as the detector has it.
            rate_hz: samples a second, if samples are pushed: where the model was trained on raw recordings, their
                windows are cut as in files. By default snippets are pushed.

        Raises:
            InputError: the model was not trained on raw recordings, or `rate_hz` is no rate.
        """
        return Stream(self, name, self.section if section is None else section, rate_hz)

    def windows(self) -> Windows | None:
        """How it makes snippets of samples, where the model was trained on raw recordings.

        Raises:
            InputError: it was also said how long a snippet lasts.
        """
        data = self.config.data
        if not makes_snippets(data):
            return None
        if self.snippet_sec is not None:
            raise InputError(
                f"snippet_sec: expected none, as the run makes snippets of {data.windows.stride_sec:g} s itself, got "
                f"{self.snippet_sec:g}"
            )
        return windows_of(data.windows)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        if self.device.type == "cpu":
            with torch.inference_mode():
                yield
        else:
            with _ONE_AT_A_TIME, float32_products(self.config.engine.precision), torch.inference_mode():
                yield


class Stream:
    """Detection in a recording that comes piece by piece.

    What `push` and `close` give together is what a detector with the same `section` gives for the whole recording,
    however it is cut into pieces; of samples, up to how sums round. Memory and latency depend on `section` and on the
    length of a window alone. One thread at a time may push.

    Args:
        detector: what detects.
        name: of the recording in the detections.
        section: snippets of a section.
        rate_hz: samples a second, if samples are pushed.
    """

    def __init__(self, detector: Detector, name: str, section: int, rate_hz: float | None = None) -> None:
        if section < 1:
            raise ValueError(f"Stream: section must be 1 or more snippets, got {section}")
        self._detector, self._name, self._section, self._rate_hz = detector, name, section, rate_hz
        if detector.grid is None:
            detector.recording(name, np.zeros((1, detector.features), np.float32))  # says what is missing
        self._grid = detector.grid or Grid(1, 1, 1)
        self._begin()

    def _begin(self) -> None:
        self._sections = self._detector._rules.sections(self._section)
        self._cutter = None if self._rate_hz is None else self._cutter_of(self._rate_hz)
        self._pushed = 0

    def _cutter_of(self, rate_hz: float) -> Cutter:
        windows = self._detector.windows()
        if windows is None:
            raise InputError(
                f"rate_hz: expected none, as {self._detector.source} was trained on snippets, not on raw recordings, "
                f"got {rate_hz:g}"
            )
        if not 0 < rate_hz < math.inf:
            raise InputError(f"rate_hz: expected samples a second, got {rate_hz:g}")
        return Cutter(windows, self._detector.features // windows.width(1), rate_hz)

    @property
    def latency(self) -> int:
        """A detection is given after so many snippets at most from the one that its centre lies in."""
        lag = 0 if self._cutter is None else math.ceil(self._cutter.lag_sec / self._grid.snippet_sec)
        return self._sections.latency + lag

    @property
    def latency_sec(self) -> float:
        """The same in seconds."""
        return self.latency * self._grid.snippet_sec

    def push(self, values: ArrayLike | Tensor) -> list[Detection]:
        """Take the next snippets, or the next samples if the stream was given their rate.

        Args:
            values: snippets `[n, F]`, or one snippet `[F]`; samples `[n, C]`, or one sample `[C]`, or `[n]` of a single
                channel.

        Returns:
            Detections that are final now, by section and falling score.

        Raises:
            InputError: a snippet has another width, or a value is not finite; the stream is as it was before.
        """
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        pushed = np.array(values, dtype=np.float32)  # a copy: callers fill the same array again
        if pushed.ndim < 2:
            pushed = pushed.reshape(-1, 1) if self._cutter is not None and self._cutter.channels == 1 else pushed[None]
        if not len(pushed):
            return []
        if self._cutter is None:
            place = f"{self._name} from snippet {self._pushed} on"
            self._detector.check(Recording(place, pushed, self._grid, "test"))
            snippets = pushed
        else:
            snippets = self._cutter.push(pushed, f"{self._name} from sample {self._pushed} on")
        self._pushed += len(pushed)
        return self._found(self._sections.push(snippets))

    def close(self) -> list[Detection]:
        """Say that nothing comes any more.

        Returns:
            The detections that are left.
        """
        left, cutter = self._sections, self._cutter
        last = [] if cutter is None else left.push(cutter.close(self._name))
        self._begin()
        return self._found(chain(last, left.close()))

    def _found(self, sections: Iterable[Section]) -> list[Detection]:
        detector, found = self._detector, []
        with detector._computing():
            for section in sections:
                label, start, end, score = detector._rules.of_section(section, self._grid).T
                numbers = np.zeros(len(label), np.int64)
                made = Segments((self._name,), detector.classes, numbers, label.astype(np.int64), start, end, score)
                found.extend(typed(made))
        return found


def typed(segments: Segments) -> list[Detection]:
    """Detections one by one, those of each recording by falling score."""
    order = np.lexsort((-segments.score, segments.video))
    columns = (segments.video, segments.label, segments.start_sec, segments.end_sec, segments.score)
    video, label, *numbers = (column[order].tolist() for column in columns)
    names = (map(segments.videos.__getitem__, video), map(segments.labels.__getitem__, label))
    return list(map(Detection._make, zip(*names, *numbers, strict=True)))
