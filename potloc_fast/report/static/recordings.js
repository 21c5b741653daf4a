"use strict";
// The recordings, what lies in them, and how well each was detected at a score.

const FACTS = json("facts");
const KINDS = FACTS.kinds.map((name, number) => ({
  name,
  mark: ["\u2713", "2", "\u2260", "\u2194", "?", "\u25b2"][number],
  colour: ["#009e73", "#f0e442", "#cc79a7", "#e69f00", "#0072b2", "#999999"][number],
}));
const UNJUDGED = 255;
const CLASS_COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#f0e442", "#999999"];
const LANES = [
  ["truth", "Instances"],
  ["points", "Points"],
  ["proposals", "Proposals"],
  ["pseudo", "Pseudo-labels"],
  ["detections", "Detections"],
];

/** A lane of all recordings in columns; the rows of recording r are first[r] to first[r + 1]. */
function toLane(arrays, name) {
  const video = arrays[`${name}.video`];
  if (!video) return null;
  const first = new Int32Array(FACTS.recordings.length + 1);
  for (const r of video) first[r + 1] += 1;
  for (let r = 0; r < FACTS.recordings.length; r += 1) first[r + 1] += first[r];
  const lane = { first };
  for (const column of ["label", "start", "end", "score", "kind", "took", "found"]) {
    lane[column] = arrays[`${name}.${column}`];
  }
  return lane;
}

class Recordings {
  constructor(arrays) {
    this.lanes = {};
    for (const [name] of LANES) this.lanes[name] = toLane(arrays, name);
    const scores = this.lanes.detections.score;
    this.lowest = scores.reduce((least, score) => Math.min(least, score), Infinity);
    this.highest = scores.reduce((most, score) => Math.max(most, score), -Infinity);
    if (!scores.length) [this.lowest, this.highest] = [0, 1];
  }

  /** The items of a lane in a recording, by start. */
  items(name, r) {
    const lane = this.lanes[name];
    if (!lane) return [];
    const found = [];
    for (let row = lane.first[r]; row < lane.first[r + 1]; row += 1) {
      const item = { lane: name, row, label: lane.label[row], start: lane.start[row], end: lane.end[row] };
      item.score = lane.score[row];
      if (lane.kind) [item.kind, item.took] = [lane.kind[row], lane.took[row]];
      if (lane.found) item.found = lane.found[row];
      found.push(item);
    }
    return found;
  }

  /** What is right and wrong in a recording, of the detections from a score on. */
  judge(r, score) {
    const { detections, truth } = this.lanes;
    const kinds = KINDS.map(() => 0);
    const classes = new Set();
    let shown = 0;
    for (let row = detections.first[r]; row < detections.first[r + 1]; row += 1) {
      if (detections.score[row] < score) continue;
      shown += 1;
      classes.add(detections.label[row]);
      if (detections.kind[row] !== UNJUDGED) kinds[detections.kind[row]] += 1;
    }
    let missed = 0;
    for (let row = truth.first[r]; row < truth.first[r + 1]; row += 1) {
      classes.add(truth.label[row]);
      if (!(truth.found[row] >= score)) missed += 1;
    }
    const instances = truth.first[r + 1] - truth.first[r];
    const wrong = kinds.slice(1).reduce((sum, count) => sum + count, 0);
    const f1 = instances ? (2 * kinds[0]) / (kinds[0] + wrong + instances) : null;
    return { shown, kinds, missed, instances, wrong, classes, f1 };
  }
}

/** Recordings that pass the filters, in the order asked for: pairs of number and judgement. */
function listed(recordings, wanted) {
  const name = wanted.search.trim().toLowerCase();
  const found = [];
  FACTS.recordings.forEach((recording, r) => {
    if (name && !recording.id.toLowerCase().includes(name)) return;
    if (wanted.subset && recording.subset !== wanted.subset) return;
    const own = recordings.judge(r, wanted.score);
    if (wanted.class !== "" && !own.classes.has(Number(wanted.class))) return;
    if (wanted.error === "missed" && !own.missed) return;
    if (wanted.error.startsWith("kind ") && !own.kinds[Number(wanted.error.slice(5))]) return;
    found.push([r, own]);
  });
  const id = ([r]) => FACTS.recordings[r].id;
  const byName = (a, b) => id(a).localeCompare(id(b), "en", { numeric: true });
  const orders = {
    name: byName,
    worst: (a, b) => (a[1].f1 ?? 2) - (b[1].f1 ?? 2) || b[1].wrong + b[1].missed - a[1].wrong - a[1].missed,
    missed: (a, b) => b[1].missed - a[1].missed,
    false: (a, b) => b[1].wrong - a[1].wrong,
    long: (a, b) => FACTS.recordings[b[0]].duration - FACTS.recordings[a[0]].duration,
  };
  return found.sort((a, b) => orders[wanted.sort](a, b) || byName(a, b));
}
