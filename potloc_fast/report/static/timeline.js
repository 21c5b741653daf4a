"use strict";
// The timeline of one recording, drawn on a canvas: what is drawn grows with the width of the window, not with the
// length of the recording.

const TITLE = 15; // pixels of a title above what it names
const BAR = 19;
const MOST_ROWS = 6; // of overlapping segments of one lane, ...
const MOST_PROPOSALS = 3; // ... of which proposals are many more
const EDGE = 7; // pixels around an end in which it is taken

class Timeline {
  constructor(canvas, recordings, mending, listener) {
    Object.assign(this, { canvas, recordings, mending, listener });
    this.context = canvas.getContext("2d");
    this.r = 0;
    this.score = 0;
    this.only = null; // the one class that is shown
    this.selected = null;
    this.curves = [];
    this.levels = this.channels = false;
    this.pointers = new Map();
    new ResizeObserver(() => this.layout()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.release(event));
    canvas.addEventListener("dblclick", () => this.selected && this.zoomTo(this.selected));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  get recording() {
    return FACTS.recordings[this.r];
  }

  get end() {
    return Math.max(this.recording.duration, 1e-6);
  }

  /** Show a recording: from and to in seconds, all of it if they are missing. */
  async show(r, from = 0, to = Infinity) {
    const other = r !== this.r;
    this.r = r;
    if (other) this.selected = null;
    this.curves = [];
    this.look(from, to);
    this.layout();
    const packed = element(`signals-${r}`);
    if (!packed) return;
    const { facts, arrays } = await unpack(packed.textContent);
    if (this.r !== r) return; // another one was asked for meanwhile
    this.curves = facts.curves.map((curve, number) => ({ ...curve, ...detail(arrays[number], curve.length) }));
    this.layout();
  }

  look(from, to) {
    const least = Math.min(this.end, Math.max(this.end / 1e5, (this.recording.snippet || 0) * 2, 1e-4));
    const span = Math.min(Math.max(to - from, least), this.end);
    this.from = Math.min(Math.max(from, 0), this.end - span);
    this.to = this.from + span;
    this.refresh();
    this.listener.looked();
  }

  zoom(factor, at = (this.from + this.to) / 2) {
    this.look(at - (at - this.from) * factor, at + (this.to - at) * factor);
  }

  pan(share) {
    const step = (this.to - this.from) * share;
    this.look(this.from + step, this.to + step);
  }

  zoomTo({ start, end }) {
    const room = Math.max(end - start, (this.recording.snippet || 0) * 8, this.end / 1000);
    this.look(start - room, end + room);
  }

  /** Bring an item into view. */
  reveal({ start, end }) {
    if (start >= this.from && end <= this.to) return;
    const span = Math.max(this.to - this.from, (end - start) * 1.5);
    this.look((start + end - span) / 2, (start + end + span) / 2);
  }

  /** The items of a lane that pass score and class; each with its place among the labels, if it can be mended. */
  items(name) {
    let found;
    if (name === "truth" || name === "points") {
      const lane = this.recordings.lanes[name];
      found = this.mending.labels(this.r)[name].map((item, place) => ({
        ...item,
        lane: name,
        place,
        score: 1,
        found: name === "truth" && item.row >= 0 ? lane.found[item.row] : undefined,
      }));
      found.sort((a, b) => a.start - b.start);
    } else {
      found = this.recordings.items(name, this.r);
    }
    if (name === "detections") {
      const deleted = new Set(this.mending.labels(this.r).deleted);
      found = found.filter((item) => item.score >= this.score && !deleted.has(item.row));
    }
    return this.only === null ? found : found.filter((item) => item.label === this.only);
  }

  /** Decide what stands where; called when something else is shown, not when it is only looked at from elsewhere. */
  layout() {
    this.width = this.canvas.clientWidth;
    this.bands = [];
    let y = 24;
    const put = (band) => {
      this.bands.push({ ...band, y });
      y += band.height + TITLE + 4;
    };
    for (const curve of this.curves.filter((own) => own.kind === "energy")) {
      put({ curves: [curve], height: 34, title: "Energy of the features" });
    }
    for (const curve of this.curves.filter((own) => own.kind === "channel" && this.channels)) {
      put({ curves: [curve], height: 30, title: `Channel ${curve.number + 1}` });
    }
    const scores = this.curves.filter((curve) => curve.kind === "score");
    for (const number of new Set(scores.map((curve) => curve.number))) {
      if (this.only !== null && this.only !== number) continue;
      const own = scores.filter((curve) => curve.number === number && (this.levels || curve.level === 0));
      put({ curves: own, height: this.only === null ? 22 : 70, title: `Score of ${FACTS.classes[number]}` });
    }
    for (const [name, title] of LANES) {
      const items = this.items(name);
      if (!items.length && name !== "truth" && name !== "detections") continue;
      const { rows, hidden } = name === "points" ? { rows: [items], hidden: 0 } : stacked(items, name);
      let words = `${title}: ${items.length}`;
      if (name === "detections") words += ` with scores from ${this.score.toFixed(2)}`;
      if (hidden) words += `, ${hidden} under others not drawn`;
      put({ lane: name, rows, height: Math.max(rows.length, 1) * BAR, title: words });
    }
    this.overview = { y: y + 4, height: 22 };
    this.height = y + 32;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.style.height = `${this.height}px`;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.refresh();
  }

  refresh() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = undefined;
      this.draw();
    });
  }

  x(time) {
    return ((time - this.from) / (this.to - this.from)) * this.width;
  }

  time(x) {
    return this.from + (x / this.width) * (this.to - this.from);
  }

  draw() {
    const { context: c, width, height } = this;
    if (!width || !this.bands) return;
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.ink = colour("ink");
    this.soft = colour("soft");
    this.line = colour("line");
    this.accent = colour("accent");
    this.card = colour("card");
    const ratio = window.devicePixelRatio || 1;
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.fillStyle = this.card;
    c.fillRect(0, 0, width, height);
    c.textBaseline = "middle";
    this.drawAxis();
    this.related = this.selected ? new Set(this.way(this.selected).flatMap(([, items]) => items.map(key))) : new Set();
    for (const band of this.bands) {
      c.font = "11px system-ui, sans-serif";
      c.fillStyle = this.soft;
      c.fillText(cut(c, band.title, width - 8), 4, band.y + TITLE / 2 + 1);
      if (band.curves) this.drawCurves(band);
      else band.rows.forEach((row, number) => this.drawRow(band, row, band.y + TITLE + number * BAR));
    }
    if (this.selected) this.drawSelected();
    this.drawOverview();
  }

  drawAxis() {
    const { context: c, width } = this;
    const step = niceStep(((this.to - this.from) / width) * 90);
    c.font = "11px system-ui, sans-serif";
    c.lineWidth = 1;
    for (let k = Math.ceil(this.from / step); k * step <= this.to; k += 1) {
      const x = Math.round(this.x(k * step)) + 0.5;
      c.strokeStyle = this.line;
      c.beginPath();
      c.moveTo(x, 18);
      c.lineTo(x, this.height - 30);
      c.stroke();
      c.fillStyle = this.soft;
      c.fillText(clock(k * step, step), Math.min(x + 3, width - 46), 9);
    }
  }

  drawCurves(band) {
    const c = this.context;
    const top = band.y + TITLE;
    band.curves.forEach((curve) => {
      const snippet = this.recording.snippet * curve.stride;
      const first = this.recording.first;
      // The finest level with no more than two values for a pixel.
      let k = 0;
      const pixel = (this.to - this.from) / this.width;
      while (k + 1 < curve.lows.length && snippet * 4 ** k < pixel / 2) k += 1;
      const step = snippet * 4 ** k;
      const [lows, highs] = [curve.lows[k], curve.highs[k]];
      const begin = Math.max(Math.floor((this.from - first) / step) - 1, 0);
      const end = Math.min(Math.ceil((this.to - first) / step) + 1, lows.length);
      if (end <= begin) return;
      const y = (value) => top + band.height - 1 - (value / 255) * (band.height - 2);
      const x = (i) => this.x(Math.min(first + (i + 0.5) * step, this.end));
      const base = curve.kind === "score" && curve.level === 0;
      c.beginPath();
      c.moveTo(x(begin), y(highs[begin]));
      for (let i = begin + 1; i < end; i += 1) c.lineTo(x(i), y(highs[i]));
      if (base) {
        c.lineTo(x(end - 1), top + band.height);
        c.lineTo(x(begin), top + band.height);
        c.globalAlpha = 0.75;
        c.fillStyle = CLASS_COLOURS[curve.number % CLASS_COLOURS.length];
        c.fill();
        c.globalAlpha = 1;
      } else {
        // Out along the largest values and back along the smallest.
        for (let i = end - 1; i >= begin && k > 0; i -= 1) c.lineTo(x(i), y(lows[i]));
        c.strokeStyle = curve.level ? this.ink : this.soft;
        c.fillStyle = this.soft;
        c.lineWidth = 1;
        c.setLineDash(curve.level ? [6 - Math.min(curve.level, 4), curve.level] : []);
        if (k > 0 && !curve.level) c.fill();
        c.stroke();
        c.setLineDash([]);
      }
    });
    c.strokeStyle = this.line;
    c.strokeRect(-1, top + 0.5, this.width + 2, band.height);
  }

  drawRow(band, row, y) {
    const c = this.context;
    let covered = -Infinity;
    for (let i = firstAfter(row, this.from); i < row.length && row[i].start <= this.to; i += 1) {
      const item = row[i];
      const [x, right] = [this.x(item.start), this.x(item.end)];
      if (band.lane === "points") {
        const free = (i + 1 < row.length ? this.x(row[i + 1].start) : this.width) - x;
        this.drawPoint(item, x, y, free);
      } else if (right > covered + 0.4) {
        covered = Math.max(right, x + 1.5);
        this.drawBar(item, x, Math.max(right, x + 1.5), y);
      }
    }
    c.globalAlpha = 1;
  }

  drawBar(item, x, right, y) {
    const c = this.context;
    const [wide, tall] = [right - x, BAR - 3];
    const left = Math.max(x, -4);
    const kind = KINDS[item.kind];
    const missed = item.lane === "truth" && item.row >= 0 && !(item.found >= this.score);
    const fill = kind ? kind.colour : CLASS_COLOURS[item.label % CLASS_COLOURS.length];
    c.globalAlpha = missed ? 0.25 : 1;
    c.fillStyle = fill;
    c.fillRect(x, y, wide, tall);
    c.globalAlpha = 1;
    if (missed || (item.by && item.by !== "file") || item.lane === "pseudo") {
      c.setLineDash(missed ? [4, 3] : item.lane === "pseudo" ? [1, 2] : []);
      c.strokeStyle = this.ink;
      c.lineWidth = missed || item.by ? 1.5 : 1;
      if (wide > 3) c.strokeRect(x + 0.75, y + 0.75, wide - 1.5, tall - 1.5);
      c.setLineDash([]);
    }
    if (this.related.has(key(item))) {
      c.strokeStyle = this.accent;
      c.lineWidth = 2;
      c.strokeRect(x, y - 1, wide, tall + 2);
    }
    let mark = kind ? kind.mark : "";
    if (item.lane === "truth") mark = item.row < 0 ? "+" : item.by === "moved" ? "\u270e" : missed ? "\u2717" : "\u2713";
    const room = Math.min(right, this.width) - left - 6;
    if (room < 8) return;
    c.fillStyle = missed ? this.ink : dark(fill) ? "#fff" : "#000";
    c.font = "11px system-ui, sans-serif";
    const name = cut(c, `${mark} ${FACTS.classes[item.label]}`.trim(), room);
    if (name) c.fillText(name, Math.max(left, 0) + 4, y + tall / 2 + 1);
    else if (mark) c.fillText(mark, Math.max(left, 0) + 1, y + tall / 2 + 1);
  }

  drawPoint(item, x, y, free) {
    const c = this.context;
    c.fillStyle = CLASS_COLOURS[item.label % CLASS_COLOURS.length];
    c.strokeStyle = this.related.has(key(item)) ? this.accent : this.ink;
    c.lineWidth = this.related.has(key(item)) ? 2.5 : 1;
    c.beginPath();
    c.moveTo(x, y + 1);
    c.lineTo(x + 5, y + 8);
    c.lineTo(x, y + 15);
    c.lineTo(x - 5, y + 8);
    c.closePath();
    c.fill();
    c.stroke();
    c.fillStyle = this.ink;
    c.font = "11px system-ui, sans-serif";
    const mark = item.by === "file" ? "" : "+ ";
    c.fillText(cut(c, mark + FACTS.classes[item.label], free - 16), x + 8, y + 9);
  }

  drawSelected() {
    const c = this.context;
    const { start, end } = this.drag?.values ?? this.selected;
    c.strokeStyle = this.accent;
    c.lineWidth = 1;
    c.setLineDash([3, 3]);
    for (const time of new Set([start, end])) {
      const x = Math.round(this.x(time)) + 0.5;
      c.beginPath();
      c.moveTo(x, 18);
      c.lineTo(x, this.height - 28);
      c.stroke();
    }
    c.setLineDash([]);
    if (this.drag?.values) {
      c.globalAlpha = 0.25;
      c.fillStyle = this.accent;
      c.fillRect(this.x(start), 18, this.x(end) - this.x(start), this.height - 46);
      c.globalAlpha = 1;
    }
  }

  /** The whole recording at the bottom, with what is looked at. */
  drawOverview() {
    const { context: c, width, overview } = this;
    const x = (time) => (time / this.end) * width;
    c.fillStyle = this.line;
    c.fillRect(0, overview.y, width, overview.height);
    const lanes = this.bands.filter((band) => band.lane === "truth" || band.lane === "detections");
    lanes.forEach((band, number) => {
      c.fillStyle = number === lanes.length - 1 ? this.ink : this.soft;
      let covered = -1;
      for (const item of band.rows[0] ?? []) {
        const right = Math.max(x(item.end), x(item.start) + 1);
        if (right < covered + 0.5) continue;
        covered = right;
        c.fillRect(x(item.start), overview.y + 3 + number * 9, right - x(item.start), 7);
      }
    });
    c.strokeStyle = this.accent;
    c.lineWidth = 2;
    c.strokeRect(x(this.from) + 1, overview.y, Math.max(x(this.to) - x(this.from) - 2, 2), overview.height);
  }

  /** The way of an instance: what is near in time and of its class in each lane, as pairs of title and items. */
  way(item) {
    const overlap = (other) => Math.min(other.end, item.end) - Math.max(other.start, item.start);
    const tiou = (other) =>
      Math.max(overlap(other), 0) / (Math.max(other.end, item.end) - Math.min(other.start, item.start) || 1);
    return LANES.map(([name, title]) => {
      const near = this.items(name).filter((other) => other.label === item.label && overlap(other) >= 0);
      near.sort((a, b) => tiou(b) - tiou(a) || b.score - a.score);
      return [title, near.slice(0, name === "points" ? 9 : name === "proposals" ? 3 : 1), tiou];
    });
  }

  // The pointer

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  /** The item at a place, and which of its ends is near. */
  at(x, y) {
    for (const band of this.bands) {
      if (!band.rows || y < band.y + TITLE || y >= band.y + TITLE + band.height) continue;
      const row = band.rows[Math.floor((y - band.y - TITLE) / BAR)] ?? [];
      let found = null;
      for (const item of row) {
        const [left, right] = [this.x(item.start), this.x(item.end)];
        const slack = band.lane === "points" ? EDGE : 3;
        if (x < left - slack || x > right + slack) continue;
        const wide = right - left > 3 * EDGE || key(item) === key(this.selected);
        let side = "";
        if (band.lane === "points") side = "both";
        else if (wide && Math.abs(x - left) < EDGE) side = "start";
        else if (wide && Math.abs(x - right) < EDGE) side = "end";
        found = { item, side };
      }
      return found;
    }
    return null;
  }

  press(event) {
    const [x, y] = this.place(event);
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, x);
    if (this.pointers.size === 2) {
      this.drag = { pinch: [...this.pointers.values()], from: this.from, to: this.to };
      return;
    }
    if (y >= this.overview.y) {
      this.drag = { overview: true };
      this.move(event);
      return;
    }
    const hit = this.at(x, y);
    const mendable = hit && (hit.item.lane === "truth" || hit.item.lane === "points" || this.isSelected(hit.item));
    if (hit) this.listener.select(hit.item);
    if (hit && hit.side && mendable) this.drag = { item: hit.item, side: hit.side, x };
    else this.drag = { x, from: this.from, to: this.to };
  }

  move(event) {
    const [x, y] = this.place(event);
    if (!this.drag) {
      const hit = this.at(x, y);
      this.canvas.style.cursor = !hit ? "grab" : hit.side === "start" || hit.side === "end" ? "ew-resize" : "pointer";
      this.canvas.title = hit ? this.listener.describe(hit.item) : "";
      return;
    }
    this.pointers.set(event.pointerId, x);
    const { drag } = this;
    if (drag.pinch) {
      const [a, b] = [...this.pointers.values()];
      const [c, d] = drag.pinch;
      const factor = Math.max(Math.abs(c - d), 10) / Math.max(Math.abs(a - b), 10);
      const middle = drag.from + ((c + d) / 2 / this.width) * (drag.to - drag.from);
      const span = (drag.to - drag.from) * factor;
      const from = middle - ((a + b) / 2 / this.width) * span;
      this.look(from, from + span);
    } else if (drag.overview) {
      const middle = (x / this.width) * this.end;
      const half = (this.to - this.from) / 2;
      this.look(middle - half, middle + half);
    } else if (drag.item) {
      if (!drag.values && Math.abs(x - drag.x) < 2) return;
      const time = Math.min(Math.max(this.time(x), 0), this.end);
      const { start, end } = drag.item;
      if (drag.side === "both") drag.values = { start: time, end: time };
      else if (drag.side === "start") drag.values = { start: Math.min(time, end - this.end * 1e-6), end };
      else drag.values = { start, end: Math.max(time, start + this.end * 1e-6) };
      this.refresh();
    } else {
      const shift = ((drag.x - x) / this.width) * (drag.to - drag.from);
      this.look(drag.from + shift, drag.to + shift);
    }
  }

  release(event) {
    this.pointers.delete(event.pointerId);
    const { drag } = this;
    this.drag = null;
    if (drag?.item && drag.values && event.type === "pointerup") this.listener.moved(drag.item, drag.values);
    this.refresh();
  }

  isSelected(item) {
    return this.selected !== null && key(item) === key(this.selected);
  }

  wheel(event) {
    const zooms = event.ctrlKey || event.metaKey || document.activeElement === this.canvas;
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) {
      event.preventDefault();
      this.pan((event.deltaX || event.deltaY) / this.width);
    } else if (zooms) {
      event.preventDefault();
      this.zoom(Math.exp(Math.max(-200, Math.min(200, event.deltaY)) / 300), this.time(this.place(event)[0]));
    }
  }
}

/** What names an item as long as its recording is shown. */
function key(item) {
  return item && `${item.lane} ${item.place ?? item.row}`;
}

/** The smallest and the largest values of each level, from what report/pack.py made of a curve. */
function detail(values, length) {
  const [lows, highs] = [[values.subarray(0, length)], [values.subarray(0, length)]];
  let offset = length;
  for (let size = length; offset < values.length; ) {
    size = Math.ceil(size / 4);
    lows.push(values.subarray(offset, offset + size));
    highs.push(values.subarray(offset + size, offset + 2 * size));
    offset += 2 * size;
  }
  return { lows, highs };
}

/** Segments in rows in which none overlaps another: the best on top, each row by start. */
function stacked(items, lane) {
  const rows = [];
  let hidden = 0;
  const order = lane === "truth" ? items : [...items].sort((a, b) => b.score - a.score);
  for (const item of order) {
    let placed = false;
    for (const row of rows) {
      const i = firstAfter(row, item.start);
      const before = i < row.length ? row[i] : null;
      if (before && before.start < item.end) continue;
      row.splice(i, 0, item);
      placed = true;
      break;
    }
    if (placed) continue;
    if (rows.length < (lane === "proposals" ? MOST_PROPOSALS : MOST_ROWS)) rows.push([item]);
    else hidden += 1;
  }
  return { rows, hidden };
}

/** The first item of a row that ends after a time. */
function firstAfter(row, time) {
  let [low, high] = [0, row.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (row[middle].end > time) high = middle;
    else low = middle + 1;
  }
  return low;
}

function niceStep(least) {
  const minute = [60, 120, 300, 600, 1800, 3600, 7200, 18000, 36000].find((step) => step >= least);
  if (least > 30) return minute ?? 36000 * Math.ceil(least / 36000);
  if (least > 10) return least > 15 ? 30 : 15;
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((times) => times * power).find((step) => step >= least * 0.999);
}

/** A time in words: 12.4 s, or 3:07 in steps of whole seconds over a minute. */
function clock(time, step) {
  const digits = Math.max(0, Math.min(6, Math.ceil(-Math.log10(step) - 1e-9)));
  if (time < 60 || step < 1) return `${time.toFixed(digits)} s`;
  const whole = Math.round(time);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** As much of a text as fits into a width, nothing where that is next to nothing. */
function cut(context, text, width) {
  const size = context.measureText(text).width;
  if (size <= width) return text;
  const letters = Math.floor((text.length * width) / size) - 1;
  return letters < 2 ? "" : `${text.slice(0, letters)}\u2026`;
}

function dark(colour) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b < 120;
}
