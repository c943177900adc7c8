"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const page = JSON.parse(document.getElementById("data").textContent);
  const charts = [];

  // ---- colours: the system's unless chosen; kept for this view alone, nothing is stored ----
  const theme = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  let chosen = 0;
  theme.classList.remove("hidden");
  theme.addEventListener("click", () => {
    chosen = (chosen + 1) % themes.length;
    const name = themes[chosen];
    if (name === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = name;
    theme.textContent = `Theme: ${name}`;
    theme.setAttribute("aria-label", name === "auto" ? "Colours: as the system" : `Colours: ${name}`);
  });

  // ---- small parts ----
  const element = (name, attributes, parent, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const running = (differences) => {
    let sum = 0;
    return differences.map((step) => (sum += step));
  };
  const clean = (text) => text.replace("-", "\u2212");
  const percent = (value, digits) => `${clean((value * 100).toFixed(digits))} %`;
  const price = (value) => clean(value.toLocaleString("en-US", { maximumSignificantDigits: 7 }));
  const two = (number) => String(number).padStart(2, "0");
  const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  const moment = (seconds) => {
    const at = new Date(seconds * 1000);
    return `${at.getUTCFullYear()}-${two(at.getUTCMonth() + 1)}-${two(at.getUTCDate())} ${two(at.getUTCHours())}:${two(at.getUTCMinutes())}`;
  };
  /** Index of the point nearest to a time. */
  const nearest = (times, at) => {
    let low = 0, high = times.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (times[middle] < at) low = middle + 1; else high = middle;
    }
    return low > 0 && at - times[low - 1] <= times[low] - at ? low - 1 : low;
  };

  // ---- axes ----
  const niceSteps = (low, high, count) => {
    const rough = (high - low) / Math.max(1, count);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
    const ticks = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) ticks.push(n * step);
    return { ticks, step };
  };
  /** Decimals without which two ticks could look alike. */
  const digitsOf = (step) => {
    let digits = 0;
    while (digits < 9 && Math.abs(Math.round(step * 10 ** digits) / 10 ** digits - step) > step * 1e-6) digits += 1;
    return digits;
  };
  const DAY = 86400;
  const SPANS = [60, 300, 900, 1800, 3600, 10800, 21600, 43200, DAY, 2 * DAY, 7 * DAY];
  const timeSteps = (begin, end, count) => {
    const rough = (end - begin) / Math.max(1, count);
    const span = SPANS.find((candidate) => candidate >= rough);
    const ticks = [];
    if (span !== undefined) {
      const origin = span === 7 * DAY ? 4 * DAY : 0; // weeks begin on a Monday
      for (let at = Math.ceil((begin - origin) / span) * span + origin; at <= end; at += span) ticks.push(at);
      return { ticks, label: (at) => {
        const date = new Date(at * 1000);
        const day = `${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]}`;
        return span >= DAY || at % DAY === 0 ? day : `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}`;
      } };
    }
    const months = [1, 2, 3, 6, 12, 24, 60, 120].find((candidate) => candidate * 30.4 * DAY >= rough) ?? 120;
    const first = new Date(begin * 1000);
    let index = Math.ceil((first.getUTCFullYear() * 12 + first.getUTCMonth()) / months) * months;
    for (; ; index += months) {
      const at = Date.UTC(Math.floor(index / 12), index % 12, 1) / 1000;
      if (at > end) break;
      if (at >= begin) ticks.push(at);
    }
    return { ticks, label: (at) => {
      const date = new Date(at * 1000);
      const year = String(date.getUTCFullYear());
      return months >= 12 || date.getUTCMonth() === 0 ? year : `${MONTHS[date.getUTCMonth()]} ${months < 3 ? "" : `\u2019${year.slice(2)}`}`.trim();
    } };
  };

  const SHAPES = {
    buy: (r) => `M0 ${-r}L${r} ${r * 0.8}L${-r} ${r * 0.8}Z`,
    short: (r) => `M0 ${r}L${r} ${-r * 0.8}L${-r} ${-r * 0.8}Z`,
    close: (r) => `M${-r * 0.75} 0a${r * 0.75} ${r * 0.75} 0 1 0 ${r * 1.5} 0a${r * 0.75} ${r * 0.75} 0 1 0 ${-r * 1.5} 0Z`,
    stop: (r) => `M${-r * 0.75} ${-r * 0.75}L${r * 0.75} ${r * 0.75}M${r * 0.75} ${-r * 0.75}L${-r * 0.75} ${r * 0.75}`,
    take_profit: (r) => `M0 ${-r}L${r} 0L0 ${r}L${-r} 0Z`,
  };
  const NAMES = { run: "this run", hold: "buy and hold", price: "price", gross: "mean exposure" };
  const WORDS = { buy: "bought", short: "sold short", close: "closed", stop: "stopped out", take_profit: "took profit" };

  /** One chart over time: drawn at its real width, read by pointer or keyboard, enlarged by dragging. */
  class Chart {
    constructor(box) {
      this.box = box;
      this.readout = document.getElementById(`${box.dataset.chart}-readout`);
      this.cursor = null;
      this.pinned = null;
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-roledescription", "chart");
      box.addEventListener("pointermove", (event) => this.hover(event));
      box.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.leave());
      box.addEventListener("pointerdown", (event) => this.press(event));
      box.addEventListener("pointerup", (event) => this.release(event));
      box.addEventListener("dblclick", () => this.look(null));
      box.addEventListener("keydown", (event) => this.key(event));
      box.addEventListener("blur", () => this.leave());
      charts.push(this);
    }

    show(data) {
      this.data = data;
      this.lines = data.series.map((one) => ({ ...one, t: running(one.t) }));
      this.marks = Object.entries(data.marks ?? {}).map(([kind, one]) => ({ ...one, kind, t: running(one.t) }));
      const times = [...this.lines, ...this.marks].flatMap((one) => [one.t[0], one.t[one.t.length - 1]]);
      for (const edges of Object.values(data.spans ?? {})) times.push(edges[0], edges[edges.length - 1]);
      this.whole = times.length ? [Math.min(...times), Math.max(...times)] : null;
      this.look(null);
    }

    /** Look at a part of the time axis; null for all of it. */
    look(range) {
      this.range = range ?? this.whole;
      this.cursor = null;
      this.draw();
      this.tell(null);
    }

    zoom(factor) {
      if (!this.whole) return;
      const [begin, end] = this.range;
      const half = ((end - begin) / 2) * factor;
      const middle = this.cursor ?? (begin + end) / 2;
      this.clip(middle - half, middle + half);
    }

    shift(share) {
      if (!this.whole) return;
      const [begin, end] = this.range;
      const step = (end - begin) * share;
      const free = Math.max(Math.min(step, this.whole[1] - end), this.whole[0] - begin);
      this.clip(begin + free, end + free);
    }

    clip(begin, end) {
      const [first, last] = this.whole;
      const least = Math.max((last - first) / 400, 60);
      if (end - begin < least) return;
      this.look(begin <= first && end >= last ? null : [Math.max(first, begin), Math.min(last, end)]);
    }

    values() {
      const [begin, end] = this.range;
      const found = [];
      for (const line of this.lines) {
        line.t.forEach((at, n) => {
          if (at < begin || at > end) return;
          found.push(line.y[n]);
          if (line.lo) found.push(line.lo[n], line.hi[n]);
        });
      }
      for (const mark of this.marks) mark.t.forEach((at, n) => at >= begin && at <= end && found.push(mark.y[n]));
      return found;
    }

    draw() {
      this.box.replaceChildren();
      this.plot = null;
      const width = Math.floor(this.box.clientWidth);
      if (!this.whole || width < 50) return;
      const narrow = width < 480;
      const height = Number(this.box.dataset.height) * (narrow ? 0.8 : 1);
      const found = this.values();
      const spans = Object.keys(this.data.spans ?? {}).length > 0;
      let low = found.length ? found.reduce((a, b) => Math.min(a, b)) : 0;
      let high = found.length ? found.reduce((a, b) => Math.max(a, b)) : 1;
      if (this.data.zero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
      const pad = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.01;
      low = this.data.bottom ?? low - pad;
      high = this.data.top ?? high + pad;
      const bottom = height - 22 - (spans ? 14 : 0);
      const { ticks, step } = niceSteps(low, high, Math.max(2, Math.round(height / 52)));
      const digits = digitsOf(step * (this.data.unit === "percent" ? 100 : 1));
      const write = this.data.unit === "percent" ? (value) => percent(value, digits)
        : (value) => clean(value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
      // charts below one another begin at one line
      const left = Math.max(narrow ? 52 : 64, 14 + Math.max(...ticks.map((tick) => write(tick).length)) * 6.6);
      const right = width - 10;
      const [begin, end] = this.range;
      const x = (at) => left + ((at - begin) / Math.max(1, end - begin)) * (right - left);
      const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - 8);
      const svg = element("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" }, this.box);
      const clip = `clip-${this.box.dataset.chart}`;
      element("rect", { x: left, y: 0, width: right - left + 1, height }, element("clipPath", { id: clip }, svg));
      element("rect", { x: left - 8, y: 0, width: right - left + 17, height }, element("clipPath", { id: `${clip}-marks` }, svg));
      for (const tick of ticks) {
        element("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }, svg);
        element("text", { class: "tick", x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, svg, write(tick));
      }
      const steps = timeSteps(begin, end, (right - left) / (narrow ? 64 : 92));
      for (const at of steps.ticks) {
        element("line", { class: "axis", x1: x(at), x2: x(at), y1: bottom, y2: bottom + 4 }, svg);
        const edge = x(at) > right - 18 ? "end" : x(at) < left + 18 ? "start" : "middle";
        element("text", { class: "tick", x: x(at), y: height - 5, "text-anchor": edge }, svg, steps.label(at));
      }
      element("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }, svg);
      if (low < 0 && high > 0) element("line", { class: "axis", x1: left, x2: right, y1: y(0), y2: y(0) }, svg);
      const drawn = element("g", { "clip-path": `url(#${clip})` }, svg);
      this.drawSpans(drawn, x, bottom);
      for (const line of [...this.lines].reverse()) this.drawLine(drawn, line, x, y, line === this.lines[0]);
      this.drawMarks(element("g", { "clip-path": `url(#${clip}-marks)` }, svg), x, y, narrow ? 4.5 : 5.5);
      const over = element("g", { "clip-path": `url(#${clip}-marks)` }, svg);
      this.plot = { svg, over, x, y, left, right, bottom, begin, end };
    }

    drawLine(parent, line, x, y, first) {
      const [begin, end] = this.range;
      const from = Math.max(0, line.t.findIndex((at) => at >= begin) - 1);
      let to = line.t.findIndex((at) => at > end);
      to = to < 0 ? line.t.length : to + 1;
      const at = (n, value) => `${x(line.t[n]).toFixed(1)} ${y(value).toFixed(1)}`;
      const indexes = Array.from({ length: Math.max(0, to - from) }, (_, n) => n + from);
      if (!indexes.length) return;
      if (line.lo) {
        const upper = indexes.map((n) => at(n, line.hi[n])), lower = indexes.map((n) => at(n, line.lo[n])).reverse();
        element("path", { class: "range", d: `M${upper.join("L")}L${lower.join("L")}Z` }, parent);
      }
      const path = indexes.map((n) => at(n, line.y[n])).join("L");
      if (this.data.fill && first) {
        const last = indexes[indexes.length - 1];
        element("path", { class: "area", d: `M${x(line.t[from])} ${y(0)}L${path}L${x(line.t[last])} ${y(0)}Z` }, parent);
      }
      element("path", { class: line.name, d: `M${path}` }, parent);
    }

    drawSpans(parent, x, bottom) {
      for (const [name, edges] of Object.entries(this.data.spans ?? {})) {
        let d = "";
        for (let n = 0; n < edges.length; n += 2) {
          const a = x(edges[n]).toFixed(1), b = Math.max(x(edges[n + 1]), x(edges[n]) + 1).toFixed(1);
          d += name === "long" ? `M${a} ${bottom + 6}H${b}V${bottom + 12}H${a}Z` : `M${a} ${bottom + 6.5}H${b}V${bottom + 11.5}H${a}Z`;
        }
        element("path", { class: name === "long" ? "long" : "held-short", d }, parent);
      }
    }

    drawMarks(parent, x, y, size) {
      const [begin, end] = this.range;
      for (const mark of this.marks) {
        let [lastX, lastY] = [-Infinity, -Infinity];
        mark.t.forEach((at, n) => {
          if (at < begin || at > end) return;
          const [px, py] = [x(at), y(mark.y[n])];
          // one that would lie on its predecessor adds nothing: zooming brings it out
          if (px - lastX < size * 1.3 && Math.abs(py - lastY) < size * 1.3) return;
          [lastX, lastY] = [px, py];
          const place = `translate(${px.toFixed(1)} ${py.toFixed(1)})`;
          element("path", { class: `mark ${mark.kind}`, d: SHAPES[mark.kind](size), transform: place }, parent);
        });
      }
    }

    /** Put the cursor at a time and say what stands there; null takes it away. */
    point(at) {
      if (!this.plot) return;
      this.plot.over.replaceChildren();
      this.cursor = at;
      if (at === null) return this.tell(null);
      const { over, x, y, bottom } = this.plot;
      element("line", { class: "cursor", x1: x(at), x2: x(at), y1: 4, y2: bottom }, over);
      for (const line of this.lines) {
        const n = nearest(line.t, at);
        element("circle", { class: "dot", cx: x(line.t[n]), cy: y(line.y[n]), r: 3.5 }, over);
      }
      this.tell(at);
    }

    tell(at) {
      if (!this.readout) return;
      this.readout.replaceChildren();
      if (at === null) {
        this.readout.append(this.box.dataset.hint ?? "");
        return;
      }
      const lead = document.createElement("b");
      lead.textContent = `${moment(at)} UTC`;
      const write = this.data.unit === "percent" ? (value) => percent(value, 2) : price;
      const said = this.lines.map((line) => {
        const n = nearest(line.t, at);
        const band = line.lo ? ` (${write(line.lo[n])} to ${write(line.hi[n])})` : "";
        return `${NAMES[line.name]} ${write(line.y[n])}${band}`;
      });
      const near = ((this.plot.end - this.plot.begin) / (this.plot.right - this.plot.left)) * 6;
      for (const mark of this.marks) {
        const n = nearest(mark.t, at);
        if (Math.abs(mark.t[n] - at) <= near) {
          said.push(`${WORDS[mark.kind]} at ${price(mark.y[n])}${mark.n[n] > 1 ? ` (${mark.n[n]} executions)` : ""}`);
        }
      }
      this.readout.append(lead, ` \u00b7 ${said.join(" \u00b7 ")}`);
    }

    time(event) {
      const { left, right, begin, end } = this.plot;
      const inside = Math.min(right, Math.max(left, event.clientX - this.box.getBoundingClientRect().left));
      return begin + ((inside - left) / (right - left)) * (end - begin);
    }

    snap(at) {
      const line = this.lines[0] ?? this.marks[0];
      return line ? line.t[nearest(line.t, at)] : at;
    }

    hover(event) {
      if (!this.plot) return;
      const at = this.time(event);
      if (this.pinned === null) return together(this, this.snap(at));
      const { over, x, bottom } = this.plot;
      over.replaceChildren();
      const [a, b] = [x(this.pinned), x(at)].sort((p, q) => p - q);
      element("rect", { class: "brush", x: a, y: 4, width: b - a, height: bottom - 4 }, over);
      return undefined;
    }

    press(event) {
      if (!this.plot) return;
      if (event.pointerType !== "mouse") this.hover(event);
      else if (event.button === 0) this.pinned = this.time(event);
    }

    release(event) {
      if (this.pinned === null) return;
      const [from, to] = [this.pinned, this.time(event)].sort((p, q) => p - q);
      this.pinned = null;
      if ((to - from) / (this.plot.end - this.plot.begin) > 0.015) this.clip(from, to);
    }

    leave() {
      this.pinned = null;
      together(this, null);
    }

    key(event) {
      if (!this.plot || event.altKey || event.ctrlKey || event.metaKey) return;
      const line = this.lines[0] ?? this.marks[0];
      if (!line) return;
      const { begin, end } = this.plot;
      const inside = line.t.filter((at) => at >= begin && at <= end);
      const step = event.shiftKey ? Math.max(1, Math.round(inside.length / 20)) : 1;
      const here = this.cursor === null ? inside.length - 1 : nearest(inside, this.cursor);
      const moves = { ArrowLeft: here - step, ArrowRight: here + step, Home: 0, End: inside.length - 1 };
      if (event.key in moves && inside.length) {
        together(this, inside[Math.min(inside.length - 1, Math.max(0, moves[event.key]))]);
      } else if (event.key === "+" || event.key === "=") this.zoom(0.5);
      else if (event.key === "-") this.zoom(2);
      else if (event.key === "Escape") this.look(null);
      else return;
      event.preventDefault();
    }
  }

  /** Charts over the whole run share the cursor. */
  const together = (source, at) => {
    source.point(at);
    if (source.box.dataset.group === undefined) return;
    for (const other of charts) {
      if (other !== source && other.box.dataset.group === source.box.dataset.group && other.plot) {
        const seen = at !== null && (at < other.plot.begin || at > other.plot.end) ? null : at;
        other.point(seen);
      }
    }
  };

  for (const box of document.querySelectorAll("[data-chart]")) {
    const data = page.charts[box.dataset.chart];
    if (data) new Chart(box).show(data);
  }

  // ---- trades on the price: one symbol at a time ----
  const box = document.querySelector("[data-chart='price']");
  if (box && page.symbols.length) {
    const chart = new Chart(box);
    const select = document.getElementById("symbol");
    const choose = () => {
      const one = page.symbols[Number(select.value)];
      box.setAttribute("aria-label", `Trades on the price of ${one.name}. Arrow keys move the cursor, plus and minus zoom.`);
      chart.show(one);
    };
    select.addEventListener("change", choose);
    const tools = {
      "zoom-in": () => chart.zoom(0.5), "zoom-out": () => chart.zoom(2), earlier: () => chart.shift(-0.5),
      later: () => chart.shift(0.5), all: () => chart.look(null),
    };
    for (const [name, act] of Object.entries(tools)) document.getElementById(name).addEventListener("click", act);
    choose();
  }

  // ---- only a table that scrolls is a stop of the Tab key ----
  const reachable = () => {
    for (const box of document.querySelectorAll(".scroll")) box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1;
  };
  reachable();
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", reachable);

  // ---- keep the drawings at the width of the page ----
  let waiting = 0;
  const widths = new Map(charts.map((chart) => [chart.box, chart.box.clientWidth]));
  const redraw = () => {
    reachable();
    for (const chart of charts) {
      if (widths.get(chart.box) === chart.box.clientWidth) continue;
      widths.set(chart.box, chart.box.clientWidth);
      chart.draw();
    }
  };
  new ResizeObserver(() => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(redraw);
  }).observe(document.body);
  addEventListener("beforeprint", redraw);
})();
