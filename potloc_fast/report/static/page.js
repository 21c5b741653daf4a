"use strict";
// The page: filters, the list, the keys, the link to a place, and what is selected.

const SHOWN = 300; // recordings in the list, and items in the table

const make = (tag, text, attributes = {}) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text; // names and labels are data, never markup
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

class Page {
  constructor(recordings) {
    this.recordings = recordings;
    this.mending = new Mending(recordings, () => this.mended());
    this.timeline = new Timeline(element("timeline"), recordings, this.mending, {
      looked: () => this.remember(),
      select: (item) => this.select(item),
      moved: (item, values) => this.moved(item, values),
      describe: (item) => this.describe(item),
    });
    this.fill();
    this.listen();
    this.follow();
  }

  get wanted() {
    const wanted = {};
    for (const name of ["search", "class", "error", "subset", "sort"]) wanted[name] = element(name).value;
    return { ...wanted, score: this.timeline.score };
  }

  /** Fill in what follows from the data: choices, the range of scores, the legend. */
  fill() {
    FACTS.classes.forEach((name, number) => {
      element("class").append(make("option", name, { value: number }));
      element("label").append(make("option", name, { value: number }));
    });
    element("error").append(make("option", "missed instances", { value: "missed" }));
    const words = { "double detection": "double detections", localization: "bad boundaries", "wrong label": "wrong labels" };
    KINDS.forEach(({ name }, number) => {
      if (number) element("error").append(make("option", words[name] ?? name, { value: `kind ${number}` }));
    });
    for (const subset of new Set(FACTS.recordings.map((recording) => recording.subset))) {
      if (subset) element("subset").append(make("option", subset, { value: subset }));
    }
    const { lowest, highest } = this.recordings;
    for (const id of ["score", "score-number"]) Object.assign(element(id), { min: lowest, max: highest });
    this.setScore(FACTS.threshold ?? lowest);
    for (const { name, mark, colour } of KINDS) {
      const sign = make("span", mark, { class: "sign", "aria-hidden": "true" });
      sign.style.background = colour;
      sign.style.color = dark(colour) ? "#fff" : "#000";
      element("legend").append(sign, make("span", `${name} `));
    }
    const missed = make("span", "\u2717", { class: "sign missed", "aria-hidden": "true" });
    element("legend").append(missed, make("span", `missed instance; detections are judged at tIoU ${FACTS.tiou}`));
    const curves = FACTS.recordings.some((_, r) => element(`signals-${r}`));
    for (const id of ["levels", "channels"]) element(id).parentElement.hidden = !curves;
  }

  listen() {
    const again = () => this.list();
    for (const id of ["search", "error", "subset", "sort"]) element(id).addEventListener("input", again);
    element("class").addEventListener("input", () => {
      const { value } = element("class");
      this.timeline.only = value === "" ? null : Number(value);
      this.list();
      this.timeline.layout();
      this.remember();
    });
    for (const id of ["score", "score-number"]) {
      element(id).addEventListener("input", () => {
        if (element(id).value === "") return;
        this.setScore(Number(element(id).value), id);
        clearTimeout(this.later); // the list waits for the hand to rest
        this.later = setTimeout(() => this.list(), 150);
        this.timeline.layout();
        this.describeRecording();
        this.remember();
      });
    }
    for (const id of ["levels", "channels"]) {
      element(id).addEventListener("input", () => {
        this.timeline[id] = element(id).checked;
        this.timeline.layout();
      });
    }
    document.querySelectorAll("[data-do]").forEach((button) => {
      button.addEventListener("click", () => this.do(button.dataset.do));
    });
    element("label").addEventListener("input", () => this.mend({ label: Number(element("label").value) }));
    for (const id of ["start", "end"]) {
      element(id).addEventListener("change", () => {
        const [start, end] = ["start", "end"].map((name) => Number(element(name).value));
        const item = this.timeline.selected;
        if (!item || element(id).value === "") return;
        if (item.lane === "points") this.mend({ start: Number(element(id).value), end: Number(element(id).value) });
        else if (start < end) this.mend({ start, end });
        else this.say("An instance ends after it starts.");
      });
    }
    element("items-box").addEventListener("toggle", () => this.table());
    document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("hashchange", () => this.follow());
    window.addEventListener("beforeprint", () => this.print(true));
    window.addEventListener("afterprint", () => this.print(false));
    element("theme").addEventListener("click", () => this.setTheme(!this.isDark));
    this.setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches);
  }

  get isDark() {
    return document.documentElement.dataset.theme === "dark";
  }

  setTheme(isDark) {
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    element("theme").setAttribute("aria-pressed", String(isDark));
    this.timeline.refresh();
    Charts.again();
  }

  print(begins) {
    if (begins) this.before = this.isDark;
    this.setTheme(begins ? false : this.before);
    Charts.fit(begins);
    this.timeline.draw();
  }

  setScore(score, from = "") {
    this.timeline.score = score;
    if (from !== "score") element("score").value = score;
    if (from !== "score-number") element("score-number").value = score.toFixed(3);
    element("score").setAttribute("aria-valuetext", `scores from ${score.toFixed(2)}`);
  }

  // The list

  list() {
    this.found = listed(this.recordings, this.wanted);
    const more = this.found.length > SHOWN ? `, the first ${SHOWN} are shown` : "";
    element("count").textContent = `${this.found.length} of ${FACTS.recordings.length} recordings${more}`;
    const rows = this.found.slice(0, SHOWN).map(([r, own]) => {
      const row = make("li");
      const button = make("button", undefined, { type: "button" });
      button.append(make("span", FACTS.recordings[r].id, { class: "id" }), make("span", verdict(own), { class: "verdict" }));
      if (r === this.timeline.r) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => this.open(r));
      row.append(button);
      return row;
    });
    element("recordings").replaceChildren(...rows);
  }

  async open(r, from, to) {
    const loaded = this.timeline.show(r, from, to);
    this.list();
    const current = element("recordings").querySelector("[aria-current]");
    if (current) {
      // Within the list: the page itself stays where it is.
      const { parentElement: row } = current;
      const list = element("recordings");
      if (row.offsetTop < list.scrollTop) list.scrollTop = row.offsetTop;
      const bottom = row.offsetTop + row.offsetHeight - list.clientHeight;
      if (bottom > list.scrollTop) list.scrollTop = bottom;
    }
    this.select(null);
    this.describeRecording();
    this.table();
    this.remember();
    await loaded;
  }

  describeRecording() {
    const { timeline } = this;
    const { id, subset, duration, snippets } = timeline.recording;
    const own = this.recordings.judge(timeline.r, timeline.score);
    element("name").textContent = id;
    const length = duration ? `${Number(duration.toPrecision(6))} s` : "";
    const facts = [subset, length, snippets ? `${snippets.toLocaleString("en")} snippets` : "", verdict(own)];
    element("summary").textContent = facts.filter(Boolean).join(", ");
    const words = `Timeline of ${id}: ${own.instances} instances, ${own.shown} detections`;
    element("timeline").setAttribute("aria-label", words);
    element("timeline").textContent = words;
  }

  step(by) {
    const place = this.found.findIndex(([r]) => r === this.timeline.r);
    const next = this.found[Math.min(Math.max(place + by, 0), this.found.length - 1)];
    if (next) this.open(next[0]);
  }

  // The link

  remember() {
    if (!this.found) return;
    clearTimeout(this.remembering);
    this.remembering = setTimeout(() => history.replaceState(null, "", this.link()), 200);
  }

  link() {
    const { recording, from, to, score, only } = this.timeline;
    const digits = Math.max(2, Math.min(7, Math.ceil(-Math.log10(to - from)) + 4));
    const parts = { r: recording.id, from: from.toFixed(digits), to: to.toFixed(digits), s: score.toFixed(4) };
    if (only !== null) parts.class = FACTS.classes[only];
    return `#${new URLSearchParams(parts)}`;
  }

  follow() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const r = FACTS.recordings.findIndex(({ id }) => id === parts.get("r"));
    if (this.found && r < 0) return; // a link to a section of the page
    const number = (name, otherwise) => {
      const value = parseFloat(parts.get(name));
      return Number.isFinite(value) ? value : otherwise;
    };
    if (r >= 0) {
      this.setScore(number("s", this.timeline.score));
      const only = FACTS.classes.indexOf(parts.get("class"));
      this.timeline.only = only < 0 ? null : only;
      element("class").value = only < 0 ? "" : only;
    }
    this.list();
    const first = r >= 0 ? r : this.found[0]?.[0] ?? 0;
    if (FACTS.recordings.length) this.open(first, number("from", 0), number("to", Infinity));
    if (r >= 0) element("browser").scrollIntoView();
  }

  // What is selected

  describe(item) {
    const names = { truth: "instance", points: "point", proposals: "proposal", pseudo: "pseudo-label", detections: "detection" };
    const time = (value) => `${seconds(value, this.timeline.r)}`;
    const when = item.lane === "points" ? `at ${time(item.start)} s` : `${time(item.start)} to ${time(item.end)} s`;
    const scored = item.lane === "detections" || item.lane === "proposals";
    const score = scored ? `, score ${item.score.toFixed(3)}` : "";
    return `${names[item.lane]} ${FACTS.classes[item.label]}, ${when}${score}${this.is(item) ? `: ${this.is(item)}` : ""}`;
  }

  /** What is right or wrong with an item, in words. */
  is(item) {
    if (item.lane === "detections") return KINDS[item.kind]?.name ?? "";
    if (item.by && item.by !== "file") return item.by;
    if (item.lane === "truth") return item.found >= this.timeline.score ? "found" : "missed";
    return "";
  }

  select(item) {
    this.timeline.selected = item;
    this.timeline.refresh();
    element("item").disabled = !item;
    element("what").textContent = item ? this.describe(item) : "nothing";
    element("label").value = item ? item.label : "";
    element("end").parentElement.hidden = item?.lane === "points";
    for (const side of ["start", "end"]) element(side).value = item ? seconds(item[side], this.timeline.r) : "";
    this.say(item ? this.describe(item) : "");
    this.showWay(item);
  }

  showWay(item) {
    if (!item) {
      element("way").replaceChildren();
      return;
    }
    const list = make("ol", undefined, { class: "way", "aria-label": "The way from point to detection" });
    for (const [title, items, tiou] of this.timeline.way(item)) {
      const row = make("li", `${title}: ${items.length ? "" : "none"}`);
      for (const other of items) {
        const same = key(other) === key(item);
        const near = same || other.lane === "points" || item.lane === "points" ? "" : `, tIoU ${tiou(other).toFixed(2)}`;
        const times = [...new Set([other.start, other.end])].map((time) => seconds(time, this.timeline.r)).join(" - ");
        const score = other.lane === "detections" || other.lane === "proposals" ? `, ${other.score.toFixed(2)}` : "";
        const button = make("button", `${times} s${score}${near}`, { type: "button" });
        button.addEventListener("click", () => {
          this.select(other);
          this.timeline.reveal(other);
        });
        row.append(button);
      }
      list.append(row);
    }
    element("way").replaceChildren(list);
  }

  jump(by) {
    const { timeline } = this;
    const items = ["truth", "points", "detections"].flatMap((lane) => timeline.items(lane));
    items.sort((a, b) => a.start - b.start || a.end - b.end || key(a).localeCompare(key(b)));
    let place = items.findIndex((item) => timeline.isSelected(item));
    if (place < 0) {
      const after = items.findIndex((item) => item.start >= timeline.from);
      place = by > 0 ? (after < 0 ? items.length : after) - 1 : after;
    }
    const item = items[place + by];
    if (!item) return;
    this.select(item);
    timeline.reveal(item);
  }

  say(words) {
    element("said").textContent = words;
  }

  // Mending

  /** The place among the labels of an item; one that is no label becomes an instance first. */
  label(item) {
    if (item.lane === "truth" || item.lane === "points") return [item.lane, item.place];
    return ["truth", this.mending.add(this.timeline.r, "truth", item.label, item.start, item.end, "accepted")];
  }

  mend(values, item = this.timeline.selected) {
    if (!item) return;
    const [lane, place] = this.label(item);
    if (values) this.mending.set(this.timeline.r, lane, place, values);
    this.select(this.timeline.items(lane).find((own) => own.place === place) ?? null);
  }

  moved(item, values) {
    this.mend(values, item);
  }

  do(what) {
    const { timeline, mending } = this;
    const { selected } = timeline;
    const middle = (timeline.from + timeline.to) / 2;
    const label = selected?.label ?? timeline.only ?? 0;
    const act = {
      previous: () => this.step(-1),
      next: () => this.step(1),
      in: () => timeline.zoom(1 / 1.6),
      out: () => timeline.zoom(1.6),
      whole: () => timeline.look(0, Infinity),
      before: () => this.jump(-1),
      after: () => this.jump(1),
      accept: () => selected && selected.lane !== "points" && this.mend(null),
      delete: () => {
        if (!selected) return;
        if (selected.place !== undefined) mending.remove(timeline.r, selected.lane, selected.place);
        else if (selected.lane === "detections") mending.hide(timeline.r, selected.row);
        else this.say("Only instances, points and detections can be deleted.");
      },
      instance: () => {
        const half = (timeline.to - timeline.from) / 16;
        const place = mending.add(timeline.r, "truth", label, Math.max(middle - half, 0), middle + half, "added");
        this.select(timeline.items("truth").find((own) => own.place === place) ?? null);
      },
      point: () => {
        const place = mending.add(timeline.r, "points", label, middle, middle, "added");
        this.select(timeline.items("points").find((own) => own.place === place) ?? null);
      },
      undo: () => {
        const r = mending.undo();
        if (r === null) this.say("There is nothing to take back.");
        else if (r !== timeline.r) this.open(r);
      },
      "save-points": () => save("points.csv", mending.pointsFile()),
      "save-instances": () => save("instances.csv", mending.instancesFile()),
      "save-truth": () => save("ground_truth.json", mending.truthFile()),
    };
    act[what]();
  }

  mended() {
    this.select(null);
    this.timeline.layout();
    this.table();
    this.countChanges();
  }

  countChanges() {
    const changes = this.mending.count();
    const words = changes === 1 ? "1 change" : `${changes} changes`;
    element("changes").textContent = changes ? `${words}, kept in this browser: save them as files.` : "No changes yet.";
  }

  /** The recording as a table, for those who can't see the timeline, and for paper. */
  table() {
    const body = element("items").tBodies[0];
    body.replaceChildren();
    if (!element("items-box").open) return;
    const { timeline } = this;
    const items = LANES.flatMap(([lane, title]) => timeline.items(lane).map((item) => [title, item]));
    for (const [title, item] of items.slice(0, SHOWN)) {
      const row = make("tr");
      const score = item.lane === "detections" || item.lane === "proposals" ? item.score.toFixed(3) : "";
      const times = [item.start, item.end].map((time) => String(seconds(time, timeline.r)));
      row.append(make("th", title, { scope: "row" }));
      for (const cell of [FACTS.classes[item.label], ...times, score, this.is(item)]) row.append(make("td", cell));
      body.append(row);
    }
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
    const onTimeline = event.target === element("timeline");
    const keys = { "+": "in", "=": "in", "-": "out", 0: "whole", j: "after", k: "before", n: "next", p: "previous" };
    Object.assign(keys, { a: "accept", d: "delete", Delete: "delete", i: "instance", o: "point", u: "undo" });
    const what = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (what) this.do(what);
    else if (onTimeline && event.key === "ArrowLeft") this.timeline.pan(-0.2);
    else if (onTimeline && event.key === "ArrowRight") this.timeline.pan(0.2);
    else if (event.key === "Escape") this.select(null);
    else return;
    event.preventDefault();
  }
}

function verdict({ f1, missed, wrong, shown }) {
  if (f1 === null) return `${shown} detections`;
  const words = [`F1 ${(100 * f1).toFixed(0)}`];
  if (missed) words.push(`${missed} missed`);
  if (wrong) words.push(`${wrong} wrong`);
  return words.join(", ");
}

Charts.start();
let page = null;
unpack(element("segments").textContent).then(({ arrays }) => {
  page = new Page(new Recordings(arrays));
  page.countChanges();
  document.documentElement.dataset.ready = "yes";
});
