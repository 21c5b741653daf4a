"use strict";
// Labels that are mended by eye: changes, taking them back, keeping them in the browser, and writing them as files.

class Mending {
  constructor(recordings, changed) {
    this.recordings = recordings;
    this.changed = changed; // called after each change
    this.key = `potloc_fast ${document.title} ${FACTS.recordings.length} ${recordings.lanes.detections.score.length}`;
    this.own = new Map(); // of recordings that were changed: instances, points, and rows of deleted detections
    this.past = [];
    this.number = 0;
    try {
      const kept = JSON.parse(localStorage.getItem(this.key) || "{}");
      for (const [r, labels] of Object.entries(kept)) this.own.set(Number(r), labels);
    } catch {
      // A browser may keep nothing for files: then a change lasts as long as the page.
    }
  }

  /** The labels of a recording as they are now. */
  labels(r) {
    if (this.own.has(r)) return this.own.get(r);
    const taken = (lane) =>
      this.recordings.items(lane, r).map(({ row, label, start, end }) => ({ row, label, start, end, by: "file" }));
    return { truth: taken("truth"), points: taken("points"), deleted: [] };
  }

  change(r, mend) {
    const before = this.own.get(r);
    const labels = structuredClone(this.labels(r));
    const item = mend(labels);
    this.past.push([r, before]);
    this.own.set(r, labels);
    this.keep();
    return item;
  }

  undo() {
    const last = this.past.pop();
    if (!last) return null;
    const [r, before] = last;
    if (before) this.own.set(r, before);
    else this.own.delete(r);
    this.keep();
    return r;
  }

  keep() {
    try {
      localStorage.setItem(this.key, JSON.stringify(Object.fromEntries(this.own)));
    } catch {
      // see above
    }
    this.changed();
  }

  /** Add an instance or a point; `by` says where it came from. Returns its place. */
  add(r, lane, label, start, end, by) {
    return this.change(r, (labels) => labels[lane].push({ row: -1, label, start, end, by }) - 1);
  }

  set(r, lane, place, values) {
    this.change(r, (labels) => {
      const item = labels[lane][place];
      Object.assign(item, values);
      if (item.by === "file") item.by = "moved";
    });
  }

  remove(r, lane, place) {
    this.change(r, (labels) => labels[lane].splice(place, 1));
  }

  hide(r, row) {
    this.change(r, (labels) => labels.deleted.push(row));
  }

  /** How many labels differ from the files. */
  count() {
    let changes = 0;
    for (const [r, labels] of this.own) {
      for (const lane of ["truth", "points"]) {
        const left = labels[lane].filter((item) => item.row >= 0).length;
        changes += this.recordings.items(lane, r).length - left;
        changes += labels[lane].filter((item) => item.by !== "file").length;
      }
      changes += labels.deleted.length;
    }
    return changes;
  }

  /** All points, and the middle of each instance that was accepted or added and holds no point of its class. */
  points(r) {
    const { truth, points } = this.labels(r);
    const added = truth.filter(
      (item) =>
        (item.by === "accepted" || item.by === "added") &&
        !points.some((point) => point.label === item.label && item.start <= point.start && point.start <= item.end),
    );
    const rows = points.map((point) => [point.label, point.start]);
    return rows.concat(added.map((item) => [item.label, (item.start + item.end) / 2]));
  }

  pointsFile() {
    const rows = [["recording", "label", "time_sec"]];
    FACTS.recordings.forEach(({ id }, r) => {
      for (const [label, time] of this.points(r)) rows.push([id, FACTS.classes[label], seconds(time, r)]);
    });
    return csv(rows);
  }

  instancesFile() {
    const rows = [["recording", "label", "start_sec", "end_sec"]];
    FACTS.recordings.forEach(({ id }, r) => {
      for (const { label, start, end } of this.labels(r).truth) {
        rows.push([id, FACTS.classes[label], seconds(start, r), seconds(end, r)]);
      }
    });
    return csv(rows);
  }

  truthFile() {
    const database = Object.create(null); // a recording may be called __proto__
    FACTS.recordings.forEach(({ id, subset, duration }, r) => {
      const annotations = this.labels(r).truth.map(({ label, start, end }) => ({
        label: FACTS.classes[label],
        segment: [seconds(start, r), seconds(end, r)],
      }));
      database[id] = { subset: subset || "test", ...(duration > 0 ? { duration } : {}), annotations };
    });
    return JSON.stringify({ database }, null, 1);
  }
}

/** Times as they are written: to the millisecond, finer in recordings that last only seconds (or parts of a whole). */
function seconds(time, r) {
  return Number(time.toFixed(FACTS.recordings[r].duration < 20 ? 6 : 3));
}

function csv(rows) {
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return rows.map((row) => `${row.map(cell).join(",")}\n`).join("");
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
