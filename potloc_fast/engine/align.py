"""Pseudo-labels from points and features alone: what looks like the labelled moments, between these moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from potloc_fast.data import Dataset, Recording
from potloc_fast.engine.progress import Progress
from potloc_fast.evaluation.segments import Segments
from potloc_fast.forced_alignment import force_align
from potloc_fast.models.snippets import SnippetClassifier
from potloc_fast.pseudo_labels import Points, PseudoLabels

ROUNDS = 6
STEPS = 200  # of training in a round
REACH = 2  # snippets to either side that the classifier sees
BATCH, CROP = 16, 256  # crops in a step, snippets in a crop
RATE = 1e-3
FIRST_REACH = 0.25  # of the way to its neighbours, and of the usual way, that a segment reaches at first
BLOCK = 1 << 14  # snippets that are classified together: a recording may be larger than memory
OUTLIERS = 0.01  # a probability that every class has in every snippet, whatever the classifier says
DURATION_WEIGHT = 3.0  # snippets that follow each other are no independent evidence: their usual length counts for more
SPREAD = 0.15  # least deviation of the lengths of a class, over the usual length
LEVELS: tuple[float, ...] = (0.0, 0.5, 1.0)  # lambda, ascending
UNTOLD = 0.5  # lambda of a single recording, of which no other one can tell
ALIKE = 0.04  # of the most that other recordings tell: lambdas less apart can't be told from each other
WITHERED = 0.5  # of its usual length with lambda = 0: a class that is shorter has lost more than its borders

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Chain:
    """Points of a recording that follow each other.

    Attributes:
        recording: the recording.
        snippets: int64[N], strictly ascending.
        classes: int64[N].
        origin: int64[N], index of each point; -1 where it stands here as a neighbour alone.
    """

    recording: Recording
    snippets: Integers
    classes: Integers
    origin: Integers


def align(dataset: Dataset, points: Points, *, seed: int, device: torch.device) -> PseudoLabels:
    """Find a segment for each point, without a base model and without thresholds.

    It is the training of a hidden Markov model whose emissions are a classifier's (Bourlard and Morgan 1994), by turns:

    1. A `SnippetClassifier` learns the segments as they are: their classes, and the background between them.
    2. Viterbi's algorithm (`force_align`) draws all segments of a recording anew, each around its point, with

           g_c(t) = ln(p(c | x_t) + 0.01) - ln pi_c - ln(p(b | x_t) + 0.01) + ln pi_b - lambda m_c

       and the usual length of each class. pi is the share that a class, or the background b, had in what was learned.

    The shares settle how much background there is. Where half of a uniform action is labelled, the classifier gives
    each of its snippets one half. That is far more than the class has elsewhere, and less than the background has
    there: so the label grows. Where a label reaches into the background, it shrinks for the same reason.

    What goes on beside an action is often like the action, and then belongs to the label as well. m_c is half-way
    between two medians of g_c: in the segments of the class, and in the background within a usual length of them. With
    lambda = 1 a boundary would lie where g passes half of its height, with lambda = 0 it lies where both are equally
    likely. Labels are drawn for lambda = 0, 1/2 and 1, and the largest is kept of whose labels other recordings tell as
    much as of any other's: what is half an action, as a window that lies half in it, can be told wherever it belongs.
    But no class may become half as long as with lambda = 0: that is no other boundary, it withers.

    The first segments reach a quarter of the way to the next point, and no further than a quarter of the usual way. As
    their lengths tell little, lengths are taken to vary much at first, and as they do vary later.

    Points in the same snippet can't follow each other: they are aligned by turns, each among the others.

    Args:
        dataset: recordings, of which those with points are learned from.
        points: their points, at least one.
        seed: of weights, crops and dropout.
        device: what to train on.

    Returns:
        A pseudo-label for each point, in the order of the points; its score is the mean probability of its class in
        its snippets. A note says which lambda was chosen, and how much they tell.
    """
    chains = list(_chains(dataset, points))
    recordings = len({chain.recording.id for chain in chains})
    levels = LEVELS if recordings > 1 else (UNTOLD,)
    drawn: list[PseudoLabels] = []
    told: list[float] = []
    with Progress("align", classifiers(recordings)) as progress:
        learner = _Learner(dataset, len(points.labels), seed, device, progress)
        for level in levels:
            segments, found = _align(learner, chains, level)
            told.append(_information(learner, chains, segments))
            teller = (
                f"other recordings tell {told[-1]:.2f} nats" if recordings > 1 else "no other recording tells anything"
            )
            note = f"labels: lambda={level:g}, and {teller} of the label of a snippet"
            drawn.append(_pseudo_labels(points, chains, segments, found, note))
    return drawn[choose(told, drawn)]


def choose(told: Sequence[float], drawn: Sequence[PseudoLabels]) -> int:
    """Which lambda to keep: of those that let no class wither the largest that tells as much as any, or nearly.

    Args:
        told: nats that other recordings tell of the labels, for each lambda, ascending.
        drawn: the labels.

    Returns:
        Its number.
    """
    lengths = [_usual_sec(labels.segments) for labels in drawn]
    whole = [number for number, own in enumerate(lengths) if (own >= WITHERED * lengths[0]).all()]
    most = max(told[number] for number in whole)
    return max(number for number in whole if told[number] >= most - ALIKE * abs(most))


def _usual_sec(segments: Segments) -> Floats:
    """The median length of the segments of each class that has some, in seconds."""
    length = segments.end_sec - segments.start_sec
    return np.array([np.median(length[segments.label == label]) for label in np.unique(segments.label)])


def classifiers(recordings: int) -> int:
    """How many classifiers `align` trains, of STEPS steps each, where so many recordings have points."""
    return len(LEVELS) * (ROUNDS + 2) if recordings > 1 else ROUNDS


def _align(learner: _Learner, chains: Sequence[_Chain], level: float) -> tuple[list[Integers], dict[str, Floats]]:
    """Learn and draw by turns: the segments of each chain, and the probabilities from which they were drawn."""
    recordings = {chain.recording.id: chain.recording for chain in chains}
    segments = _first_segments(chains)
    for number in range(ROUNDS):
        targets = _targets(chains, segments, learner.classes)
        share = _log_shares(targets, learner.classes)
        duration, precision = _durations(chains, segments, learner.classes, number)
        model = learner.learn(recordings, targets, number, REACH)
        found = {name: learner.classify(model, recording) for name, recording in recordings.items()}
        gain = {}
        for name, p in found.items():
            likelihood = np.log(p + OUTLIERS) - share
            gain[name] = likelihood[:, :-1] - likelihood[:, -1:]
        middle = level * _middle_levels(gain, targets, chains, segments, duration)
        segments = [
            force_align(gain[chain.recording.id] - middle, chain.snippets, chain.classes, duration, precision)
            for chain in chains
        ]
    return segments, found


def _chains(dataset: Dataset, points: Points) -> Iterator[_Chain]:
    recordings = {recording.id: recording for recording in dataset.recordings}
    for number, name in enumerate(points.videos):
        origin = np.flatnonzero(points.video == number)
        if not len(origin):
            continue
        recording = recordings[name]
        snippets = recording.grid.snippet_of(points.time_sec[origin], len(recording.features))
        order = np.lexsort((points.time_sec[origin], snippets))
        distinct, first, count = np.unique(snippets[order], return_index=True, return_counts=True)
        for turn in range(count.max()):
            own = origin[order[first + np.minimum(turn, count - 1)]]
            yield _Chain(recording, distinct, points.label[own], np.where(turn < count, own, -1))


def _first_segments(chains: Sequence[_Chain]) -> list[Integers]:
    """Segments that reach a part of the way to the neighbouring points."""
    gaps = [np.diff(chain.snippets) for chain in chains]
    usual = float(np.median(np.concatenate(gaps))) if any(map(len, gaps)) else np.inf
    segments = []
    for chain, gap in zip(chains, gaps, strict=True):
        total = len(chain.recording.features)
        way = np.minimum(np.concatenate(([usual], gap, [usual])), min(usual, total)) * FIRST_REACH
        start = np.minimum(np.floor(chain.snippets + 0.5 - way[:-1]), chain.snippets)
        end = np.maximum(np.ceil(chain.snippets + 0.5 + way[1:]), chain.snippets + 1)
        start[1:] = np.maximum(start[1:], end[:-1])
        segments.append(np.stack([start, end], axis=1).clip(0, total).astype(np.int64))
    return segments


def _targets(chains: Sequence[_Chain], segments: Sequence[Integers], background: int) -> dict[str, Integers]:
    """What the snippets of each recording are. Where segments of several turns overlap, the first turn is learned."""
    targets: dict[str, Integers] = {}
    for chain, own in zip(chains, segments, strict=True):
        target = targets.setdefault(chain.recording.id, np.full(len(chain.recording.features), background))
        for (start, end), label in zip(own, chain.classes, strict=True):
            part = target[start:end]
            part[part == background] = label
    return targets


def _log_shares(targets: dict[str, Integers], classes: int) -> Floats:
    """Logarithm of pi, the share of each class and of the background in the snippets, float64[C + 1]."""
    counts = np.bincount(np.concatenate(list(targets.values())), minlength=classes + 1) + 1.0
    share: Floats = np.log(counts / counts.sum())
    return share


def _durations(
    chains: Sequence[_Chain], segments: Sequence[Integers], classes: int, number: int
) -> tuple[Floats, Floats]:
    """The usual length of each class, and the weight of a squared deviation from it, in snippets."""
    label = np.concatenate([chain.classes for chain in chains])
    length = np.concatenate([own[:, 1] - own[:, 0] for own in segments]).astype(np.float64)
    duration, precision = np.zeros((2, classes))
    for name in np.flatnonzero(np.bincount(label, minlength=classes) > 1):
        own = length[label == name]
        usual = np.median(own)
        spread = 1.4826 * np.median(np.abs(own - usual))  # a deviation that outliers don't move
        spread = max(spread, usual * max(SPREAD, 1 / (number + 1) ** 2), 0.5)
        duration[name], precision[name] = usual, DURATION_WEIGHT / (2 * spread**2)
    return duration, precision


def _middle_levels(
    gain: dict[str, Floats],
    targets: dict[str, Integers],
    chains: Sequence[_Chain],
    segments: Sequence[Integers],
    duration: Floats,
) -> Floats:
    """Half-way between the medians of a class's gain in its segments and in the background beside them, float64[C]."""
    classes = len(duration)
    beside = {name: np.zeros(values.shape, dtype=bool) for name, values in gain.items()}
    for chain, own in zip(chains, segments, strict=True):
        for (start, end), label in zip(own, chain.classes, strict=True):
            way = max(2, round(duration[label]))
            beside[chain.recording.id][max(0, start - way) : end + way, label] = True
    middle = np.zeros(classes)
    for label in range(classes):
        inside = np.concatenate([gain[name][target == label, label] for name, target in targets.items()])
        outside = np.concatenate(
            [gain[name][beside[name][:, label] & (target == classes), label] for name, target in targets.items()]
        )
        if len(inside) and len(outside):
            middle[label] = (np.median(inside) + np.median(outside)) / 2
    return middle


def _information(learner: _Learner, chains: Sequence[_Chain], segments: Sequence[Integers]) -> float:
    """What a classifier that learned the labels of one half of the recordings knows of the other half's, in nats.

    It is the mean of ln p(y | x) - ln pi_y over the snippets, a lower bound of the mutual information of features and
    labels. Labels that take in what looks otherwise, or leave out what looks alike, are harder to tell; labels that
    shrink to little hold little to be told. 0 with one recording. The classifier sees one snippet at a time: with its
    neighbours, it could tell where a wrong boundary lies as well as where a right one does.
    """
    recordings = {chain.recording.id: chain.recording for chain in chains}
    targets = _targets(chains, segments, learner.classes)
    share = _log_shares(targets, learner.classes)
    halves, told, snippets = (list(targets)[::2], list(targets)[1::2]), 0.0, 0
    for learned, other in (halves, halves[::-1]) if halves[1] else ():
        model = learner.learn(recordings, {name: targets[name] for name in learned}, ROUNDS, 0)
        for name in other:
            own = targets[name]
            p = learner.classify(model, recordings[name])[np.arange(len(own)), own]
            told += float((np.log(p + 0.1 * OUTLIERS) - share[own]).sum())
            snippets += len(own)
    return told / max(snippets, 1)


class _Learner:
    """Trains classifiers of a data set's snippets."""

    def __init__(self, dataset: Dataset, classes: int, seed: int, device: torch.device, progress: Progress) -> None:
        self.classes, self.seed, self.device = classes, seed, device
        self.progress, self.learned = progress, 0
        self.mean, self.std = (torch.from_numpy(values) for values in dataset.feature_stats("train"))

    def learn(
        self, recordings: dict[str, Recording], targets: dict[str, Integers], number: int, reach: int
    ) -> SnippetClassifier:
        """Train a new classifier on random crops, each snippet with the same chance."""
        torch.manual_seed(self.seed + number)
        rng = np.random.default_rng((self.seed, number))
        model = SnippetClassifier(len(self.mean), self.classes, reach=reach)
        model.standardize.fit(self.mean, self.std)
        model.to(self.device)
        names = list(targets)
        lengths = np.array([len(targets[name]) for name in names])
        size = min(CROP, int(lengths.max()))
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        model.train()
        for _ in range(STEPS):
            features = np.zeros((BATCH, size, len(self.mean)), np.float32)
            label = np.full((BATCH, size), -1)
            for row, pick in enumerate(rng.choice(len(names), BATCH, p=lengths / lengths.sum())):
                first = int(rng.integers(max(1, lengths[pick] - size + 1)))
                own = targets[names[pick]][first : first + size]
                features[row, : len(own)] = recordings[names[pick]].features[first : first + size]
                label[row, : len(own)] = own
            batch, target = torch.from_numpy(features).to(self.device), torch.from_numpy(label).to(self.device)
            loss = F.cross_entropy(model(batch, target >= 0).flatten(0, 1), target.flatten(), ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        self.learned += 1
        self.progress.update(self.learned)
        return model.eval()

    @torch.no_grad()
    def classify(self, model: SnippetClassifier, recording: Recording) -> Floats:
        """The probabilities `[T, C + 1]` of a recording's snippets."""
        reach, total = model.reach, len(recording.features)
        parts: list[Tensor] = []
        for first in range(0, total, BLOCK):
            low = max(0, first - reach)
            block = np.asarray(recording.features[low : first + BLOCK + reach], dtype=np.float32)
            logits = model(torch.from_numpy(np.array(block))[None].to(self.device))[0]
            parts.append(logits[first - low :][:BLOCK].softmax(dim=1).double().cpu())
        return torch.cat(parts).numpy()


def _pseudo_labels(
    points: Points, chains: Sequence[_Chain], segments: Sequence[Integers], found: dict[str, Floats], note: str
) -> PseudoLabels:
    start_sec, end_sec, score = np.zeros((3, len(points)))
    for chain, own in zip(chains, segments, strict=True):
        for (start, end), label, origin in zip(own, chain.classes, chain.origin, strict=True):
            if origin >= 0:
                start_sec[origin], end_sec[origin] = chain.recording.grid.to_sec(np.array([start, end], np.float64))
                score[origin] = found[chain.recording.id][start:end, label].mean()
    columns = (points.video, points.label, start_sec, end_sec, score)
    return PseudoLabels(Segments(points.videos, points.labels, *columns), points.time_sec, (note,))
