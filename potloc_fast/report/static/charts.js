"use strict";
// Charts, drawn by Plotly when they come into view, in the colours of the page.

const PRINTED = 300; // pixels of a chart on paper

const Charts = {
  drawn: json("drawn"),
  ready: null,

  async draw(place, number) {
    this.ready ??= inflate(element("plotly").textContent).then((code) => {
      const script = document.createElement("script");
      script.textContent = new TextDecoder().decode(code);
      document.head.append(script);
    });
    await this.ready;
    const { data, layout, height } = this.drawn[number];
    const style = getComputedStyle(document.documentElement);
    const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const look = {
      height,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: 12 },
      margin: { l: 50, r: 12, t: 8, b: 46 },
      legend: { orientation: "h", yanchor: "bottom", y: 1.02, x: 0, maxheight: 1 },
      hovermode: "closest",
    };
    const options = { displayModeBar: false, responsive: true };
    const axes = { xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
    await window.Plotly.react(place, data, { ...layout, ...look, ...axes }, options);
    place.dataset.drawn = "yes";
  },

  start() {
    this.places = [...document.querySelectorAll(".chart")];
    const watch = new IntersectionObserver(
      (entries) => {
        for (const { isIntersecting, target } of entries) {
          if (isIntersecting && !target.dataset.drawn) this.draw(target, this.places.indexOf(target));
        }
      },
      { rootMargin: "300px" },
    );
    for (const place of this.places) watch.observe(place);
    this.drawRest(0);
  },

  /** Draw one after the other in idle time, so that all are there when the page is printed. */
  drawRest(number) {
    if (number >= this.places.length) return;
    const draw = async () => {
      if (!this.places[number].dataset.drawn) await this.draw(this.places[number], number);
      this.drawRest(number + 1);
    };
    (window.requestIdleCallback ?? setTimeout)(draw);
  },

  /** Shrink charts as wide as they were drawn to the width of two on a page, or back. */
  fit(printed) {
    for (const place of this.places) place.style.zoom = printed ? String(PRINTED / place.clientWidth) : "";
  },

  /** Draw again what was drawn, in new colours. */
  again() {
    this.places.forEach((place, number) => place.dataset.drawn && this.draw(place, number));
  },
};
