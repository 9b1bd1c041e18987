// One link over time, in three strips that share their time axis: round trips as bands of percentiles, loss forward and
// reverse, and what tunnel and hosts add. Events are marks across all of them.

import { clipped, font, resized, stroke } from "./canvas.js";
import { clock, difference, loss, moment, percent, round, roundTrip } from "./quantity.js";

/** Pixels of the axes' margins, and of the strips below the first. */
const LEFT = 62;
const RIGHT = 12;
const EVENT_LANE = 16;
const LOSS_STRIP = 74;
const SPLIT_STRIP = 104;
const BETWEEN = 14;
const AXIS = 20;
/** Loss that fills its strip at least, so that one lost probe does not look like an outage. */
const LEAST_LOSS = 0.005;

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
/** Distances of marks on the time axis. */
const TICKS = [1, 2, 5, 10, 15, 30].map((n) => n * MINUTE).concat(
  [1, 2, 3, 6, 12].map((n) => n * HOUR),
  [1, 2, 7, 14, 30, 61, 91, 182].map((n) => n * DAY),
);

/** What an event's kind looks like; the rest are dots. */
const SIGNS = [
  [/down/, "✕"],
  [/degraded|step/, "▲"],
  [/suspect/, "○"],
  [/unknown|unwell/, "▨"],
  [/up$/, "●"],
  [/path/, "⇄"],
  [/clock/, "◷"],
];

/** Returns the sign of an event's kind. */
export function signOf(kind) {
  const found = SIGNS.find(([pattern]) => pattern.test(kind));
  return found ? found[1] : "◆";
}

/** The chart in an element; `told(point or null)` hears which point the user looks at. */
export class Series {
  constructor(frame, told) {
    this.frame = frame;
    this.told = told;
    this.picture = document.createElement("canvas");
    this.cross = document.createElement("canvas");
    frame.append(this.picture, this.cross);
    this.data = null;
    this.looked = null;
    frame.addEventListener("pointermove", (event) => this.look(this.nearest(event)));
    frame.addEventListener("pointerleave", () => this.look(null));
    frame.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(frame);
  }

  /** Shows points from `since` to `until`; `week` holds those of a week earlier, `peaks` asks for the whole range. */
  show(data) {
    this.data = data;
    // The point looked at stays, by its time, when newer ones come.
    if (this.looked !== null && !data.points.some((point) => point.at === this.looked)) this.looked = null;
    this.draw();
    this.told(this.lookedAt());
  }

  lookedAt() {
    return (this.data && this.data.points.find((point) => point.at === this.looked)) ?? null;
  }

  draw() {
    if (!this.data || this.frame.clientWidth === 0) return;
    const context = resized(this.picture, this.frame);
    const [width, height] = [this.frame.clientWidth, this.frame.clientHeight];
    context.clearRect(0, 0, width, height);
    this.colours = coloursOf(this.frame);
    const right = width - RIGHT;
    const { since, until } = this.data;
    this.x = (at) => LEFT + ((at - since) / (until - since)) * (right - LEFT);
    const splitTop = height - AXIS - SPLIT_STRIP;
    const lossTop = splitTop - BETWEEN - LOSS_STRIP;
    this.bottom = height - AXIS;
    this.right = right;
    this.times(context);
    this.roundTrips(context, EVENT_LANE + 4, lossTop - BETWEEN);
    this.losses(context, lossTop, lossTop + LOSS_STRIP);
    this.split(context, splitTop, this.bottom);
    this.events(context);
    this.drawCross();
  }

  times(context) {
    const { since, until } = this.data;
    const room = (this.right - LEFT) / 78;
    const step = TICKS.find((tick) => (until - since) / tick <= room) ?? 365 * DAY;
    context.font = font(11);
    context.textAlign = "center";
    context.textBaseline = "top";
    for (let at = Math.ceil(since / step) * step; at <= until; at += step) {
      const x = Math.round(this.x(at)) + 0.5;
      context.strokeStyle = this.colours.line;
      stroke(context, x, EVENT_LANE, x, this.bottom);
      context.fillStyle = this.colours.muted;
      const text = at % DAY === 0 ? dayOf(at, until - since) : new Date(at).toISOString().slice(11, 16);
      if (x > LEFT + 14 && x < this.right - 14) context.fillText(text, x, this.bottom + 5);
    }
  }

  roundTrips(context, top, bottom) {
    const { points, week, step, peaks } = this.data;
    const known = points.filter((point) => point.path);
    const highest = topOf(known, week, peaks);
    const lowest = bottomOf(known, week, highest);
    const y = (value) => bottom - ((value - lowest) / (highest - lowest)) * (bottom - top);
    this.scale(context, lowest, highest, y, "round trip");
    context.save();
    context.beginPath();
    context.rect(LEFT, top - 1, this.right - LEFT, bottom - top + 2);
    context.clip();
    for (const run of runs(points, step, (point) => point.path)) {
      this.band(context, run, step, (p) => y(p.path.p5), (p) => y(p.path.p95), this.colours.band);
      this.band(context, run, step, (p) => y(p.path.p25), (p) => y(p.path.p75), this.colours.innerBand);
      this.curve(context, run, step, (p) => y(p.path.p99), { colour: this.colours.peak, width: 1 });
    }
    if (week) {
      for (const run of runs(week.points, week.step, (point) => point.path)) {
        this.curve(context, run, week.step, (p) => y(p.path.p50), { colour: this.colours.lastWeek, width: 1.5, dash: [5, 4] });
      }
    }
    for (const run of runs(points, step, (point) => point.path)) {
      this.curve(context, run, step, (p) => y(p.path.p50), { colour: this.colours.median, width: 2 });
    }
    this.lossMarks(context, known, y, step);
    this.clippedPeaks(context, known, top, highest);
    context.restore();
    if (Number.isFinite(this.data.usual) && this.data.usual < highest && this.data.usual > lowest) {
      const at = Math.round(y(this.data.usual)) + 0.5;
      context.strokeStyle = this.colours.muted;
      context.setLineDash([1, 3]);
      stroke(context, LEFT, at, this.right, at);
      context.setLineDash([]);
    }
  }

  /** Where probes were lost the median bears a dot, larger with the loss, so that it is seen without its colour too. */
  lossMarks(context, known, y, step) {
    for (const point of known) {
      const ratio = point.loss?.ratio ?? 0;
      if (ratio === 0) continue;
      const size = Math.min(6, 1.6 + Math.sqrt(ratio) * 12);
      context.beginPath();
      context.arc(this.x(point.at + step / 2), y(point.path.p50), size, 0, 2 * Math.PI);
      context.fillStyle = this.colours.down;
      context.fill();
      context.strokeStyle = this.colours.paper;
      context.lineWidth = 1;
      context.stroke();
    }
  }

  /** Peaks above the scale leave a small arrow at its top. */
  clippedPeaks(context, known, top, highest) {
    context.fillStyle = this.colours.peak;
    let last = -10;
    for (const point of known) {
      const x = this.x(point.at + this.data.step / 2);
      if (point.path.p99 <= highest || x - last < 6) continue;
      last = x;
      context.beginPath();
      context.moveTo(x, top);
      context.lineTo(x + 3.5, top + 6);
      context.lineTo(x - 3.5, top + 6);
      context.fill();
    }
  }

  losses(context, top, bottom) {
    const { points, step } = this.data;
    const middle = (top + bottom) / 2;
    const ratios = points.flatMap((point) => [point.forward?.ratio, point.reverse?.ratio, point.loss?.ratio]);
    const most = Math.max(LEAST_LOSS, ...ratios.filter(Number.isFinite));
    const high = (ratio) => (ratio === 0 ? 0 : Math.max(2, (ratio / most) * ((bottom - top) / 2 - 2)));
    this.caption(context, "loss", top, bottom, [
      [percent(most), top + 6],
      ["to peer", top + 19],
      ["back", bottom - 19],
      [percent(most), bottom - 6],
    ]);
    const width = Math.max(1, this.x(points[0]?.at + step) - this.x(points[0]?.at) - 0.5);
    for (const point of points) {
      const x = this.x(point.at);
      if (point.gap) continue;
      const directed = point.forward || point.reverse;
      context.fillStyle = this.colours.down;
      if (directed) {
        const up = high(point.forward?.ratio ?? 0);
        context.fillRect(x, middle - up, width, up);
        context.fillRect(x, middle, width, high(point.reverse?.ratio ?? 0));
      } else if (point.loss) {
        // The direction is not known: around the middle.
        const size = high(point.loss.ratio);
        context.globalAlpha = 0.55;
        context.fillRect(x, middle - size / 2, width, size);
        context.globalAlpha = 1;
      }
    }
    context.strokeStyle = this.colours.muted;
    stroke(context, LEFT, Math.round(middle) + 0.5, this.right, Math.round(middle) + 0.5);
  }

  /** What the tunnel's round trip has above the network's, and the hosts' share of it, medians. */
  split(context, top, bottom) {
    const { points, step } = this.data;
    const added = (point) => point.tunnel && point.path && Math.max(0, point.tunnel.p50 - point.path.p50);
    const values = points.flatMap((point) => [added(point), point.host?.p50, point.host?.p99]).filter(Number.isFinite);
    const sorted = values.sort((a, b) => a - b);
    const highest = Math.max(0.0002, (sorted[Math.floor((sorted.length - 1) * 0.99)] ?? 0) * 1.15);
    const y = (value) => bottom - (value / highest) * (bottom - top);
    this.scale(context, 0, highest, y, "added");
    context.save();
    context.beginPath();
    context.rect(LEFT, top - 1, this.right - LEFT, bottom - top + 2);
    context.clip();
    for (const run of runs(points, step, (point) => point.host)) {
      this.band(context, run, step, (p) => y(p.host.p50), (p) => y(p.host.p99), this.colours.band);
      this.curve(context, run, step, (p) => y(p.host.p50), { colour: this.colours.host, width: 1.5, dash: [2, 2] });
    }
    for (const run of runs(points, step, (point) => point.tunnel && point.path)) {
      this.curve(context, run, step, (p) => y(added(p)), { colour: this.colours.tunnel, width: 1.5 });
    }
    context.restore();
  }

  events(context) {
    context.font = font(12);
    context.textAlign = "center";
    context.textBaseline = "middle";
    let last = -Infinity;
    for (const event of this.data.events) {
      const x = this.x(event.at);
      if (x < LEFT || x > this.right) continue;
      context.strokeStyle = this.colours.muted;
      context.setLineDash([2, 3]);
      stroke(context, Math.round(x) + 0.5, EVENT_LANE, Math.round(x) + 0.5, this.bottom);
      context.setLineDash([]);
      // One sign has room where several things happened at once; the list below has them all.
      if (x - last < 11) continue;
      last = x;
      context.fillStyle = /down|degraded|step/.test(event.kind) ? this.colours.down : this.colours.ink;
      context.fillText(signOf(event.kind), x, EVENT_LANE / 2);
    }
  }

  scale(context, lowest, highest, y, name) {
    const step = niceStep((highest - lowest) / 6);
    const marks = [];
    for (let value = Math.ceil(lowest / step) * step; value <= highest * 1.0001; value += step) {
      const at = Math.round(y(value)) + 0.5;
      context.strokeStyle = this.colours.line;
      stroke(context, LEFT, at, this.right, at);
      marks.push([value === 0 ? "0" : round(value), at]);
    }
    this.caption(context, name, y(highest), y(lowest), marks);
  }

  caption(context, name, top, bottom, marks) {
    context.font = font(11);
    context.fillStyle = this.colours.muted;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const [text, y] of marks) context.fillText(text, LEFT - 5, y);
    context.save();
    context.translate(6, (top + bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText(name, 0, 0);
    context.restore();
  }

  band(context, run, step, low, high, colour) {
    context.beginPath();
    steps(run, step, this.x, low, (x, y, first) => (first ? context.moveTo(x, y) : context.lineTo(x, y)));
    steps([...run].reverse(), step, this.x, high, (x, y) => context.lineTo(x, y));
    context.closePath();
    context.fillStyle = colour;
    context.fill();
  }

  curve(context, run, step, value, { colour, width, dash = [] }) {
    context.beginPath();
    steps(run, step, this.x, value, (x, y, first) => (first ? context.moveTo(x, y) : context.lineTo(x, y)));
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.lineJoin = "round";
    context.setLineDash(dash);
    context.stroke();
    context.setLineDash([]);
    context.lineWidth = 1;
  }

  nearest(event) {
    if (!this.data || this.data.points.length === 0 || !this.x) return null;
    const { since, until, step, points } = this.data;
    const x = event.clientX - this.frame.getBoundingClientRect().left;
    if (x < LEFT || x > this.right) return null;
    const at = since + ((x - LEFT) / (this.right - LEFT)) * (until - since);
    const index = Math.min(points.length - 1, Math.max(0, Math.floor((at - points[0].at) / step)));
    return points[index].at;
  }

  look(at) {
    if (at === this.looked) return;
    this.looked = at;
    this.drawCross();
    this.told(this.lookedAt());
  }

  key(event) {
    if (!this.data || this.data.points.length === 0) return;
    const { points } = this.data;
    const here = points.findIndex((point) => point.at === this.looked);
    const far = event.shiftKey ? Math.max(1, Math.round(points.length / 20)) : 1;
    const moves = {
      ArrowLeft: (here < 0 ? points.length : here) - far,
      ArrowRight: here + far,
      Home: 0,
      End: points.length - 1,
    };
    if (event.key === "Escape") this.look(null);
    else if (event.key in moves) this.look(points[Math.min(points.length - 1, Math.max(0, moves[event.key]))].at);
    else return;
    event.preventDefault();
  }

  drawCross() {
    const context = resized(this.cross, this.frame);
    context.clearRect(0, 0, this.frame.clientWidth, this.frame.clientHeight);
    const point = this.lookedAt();
    if (!point) return;
    const [from, to] = [this.x(point.at), this.x(point.at + this.data.step)];
    context.fillStyle = this.colours.accent;
    context.globalAlpha = 0.25;
    context.fillRect(from, EVENT_LANE, Math.max(1, to - from), this.bottom - EVENT_LANE);
    context.globalAlpha = 1;
    context.strokeStyle = this.colours.accent;
    const middle = Math.round((from + to) / 2) + 0.5;
    stroke(context, middle, EVENT_LANE, middle, this.bottom);
  }
}

/** Returns a point's figures as [name, text] pairs, each with its unit. */
export function figures(point, step, week) {
  const when = step < DAY ? `${moment(point.at).slice(0, 19)} to ${clock(point.at + step)}` : moment(point.at).slice(0, 10);
  if (point.gap) return [["", when], ["", "nothing is known of this time"]];
  const pairs = [["", when + (point.partial ? ", partly known" : "")]];
  if (point.path) {
    const { p5, p25, p50, p75, p95, p99, min, max } = point.path;
    pairs.push(["p50", roundTrip(p50)], ["p25 to p75", `${roundTrip(p25)} to ${roundTrip(p75)}`]);
    pairs.push(["p5 to p95", `${roundTrip(p5)} to ${roundTrip(p95)}`], ["p99", roundTrip(p99)]);
    pairs.push(["min", roundTrip(min)], ["max", roundTrip(max)]);
  } else {
    pairs.push(["", "no probe was answered"]);
  }
  if (week?.path && point.path) {
    pairs.push(["a week before", `${roundTrip(week.path.p50)} (${difference(point.path.p50 - week.path.p50)})`]);
  }
  if (point.forward || point.reverse) {
    pairs.push(["loss to peer", loss(point.forward)], ["loss back", loss(point.reverse)]);
  } else {
    pairs.push(["loss", loss(point.loss)]);
  }
  if (point.dataForward || point.dataReverse) {
    pairs.push(["data loss", `${loss(point.dataForward)} / ${loss(point.dataReverse)}`]);
  }
  if (point.tunnel) pairs.push(["tunnel p50", roundTrip(point.tunnel.p50)], ["tunnel p99", roundTrip(point.tunnel.p99)]);
  if (point.host) pairs.push(["host delay p50", roundTrip(point.host.p50)], ["p99", roundTrip(point.host.p99)]);
  if (Number.isFinite(point.jitter)) pairs.push(["jitter", roundTrip(point.jitter)]);
  const away = (point.states?.down ?? 0) + (point.states?.unknown ?? 0);
  if (away >= 1) pairs.push(["not up", `${Math.round(away)} s of ${Math.round(step / 1000)} s`]);
  return pairs;
}

/** Runs of points that follow each other and have what is drawn: a gap is never drawn across. */
function runs(points, step, has) {
  const found = [];
  let run = null;
  for (const point of points) {
    if (!has(point)) {
      run = null;
    } else if (run && point.at - run[run.length - 1].at <= step * 1.5) {
      run.push(point);
    } else {
      run = [point];
      found.push(run);
    }
  }
  return found;
}

/** A run through the middle of its points, out to the ends of the first and the last, so that a single one is seen. */
function steps(run, step, x, value, visit) {
  const [first, last] = [run[0], run[run.length - 1]];
  const outward = first.at <= last.at ? [0, step] : [step, 0];
  visit(x(first.at + outward[0]), value(first), true);
  for (const point of run) visit(x(point.at + step / 2), value(point), false);
  visit(x(last.at + outward[1]), value(last), false);
}

/** The top of the scale: above nearly all p99, so that a few peaks do not press the rest flat, unless asked for. */
function topOf(known, week, peaks) {
  if (known.length === 0) return 0.001;
  if (peaks) return Math.max(...known.map((point) => point.path.max)) * 1.05;
  const high = known.map((point) => point.path.p99).sort((a, b) => a - b);
  const bulk = high[Math.floor((high.length - 1) * 0.97)];
  const bands = Math.max(...known.map((point) => point.path.p75));
  const before = (week?.points ?? []).filter((point) => point.path).map((point) => point.path.p50);
  return Math.max(bulk, bands, ...before) * 1.08;
}

/** The bottom: zero, unless what there is takes up little of the height above it. */
function bottomOf(known, week, highest) {
  const before = (week?.points ?? []).filter((point) => point.path).map((point) => point.path.p50);
  const least = Math.min(...known.map((point) => point.path.p5), ...before, highest);
  return least > highest * 0.5 ? Math.max(0, least - (highest - least) * 0.3) : 0;
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= rough) ?? rough;
}

function dayOf(at, width) {
  const options = width > 200 * DAY ? { month: "short", year: "numeric" } : { day: "numeric", month: "short" };
  return new Date(at).toLocaleDateString("en-GB", { ...options, timeZone: "UTC" });
}

function coloursOf(frame) {
  const style = getComputedStyle(frame);
  const names = ["paper", "ink", "muted", "line", "accent", "down", "band", "inner-band", "median", "peak", "last-week"];
  const colours = {};
  for (const name of [...names, "tunnel", "host"]) {
    const key = name.replace(/-(.)/, (_, letter) => letter.toUpperCase());
    colours[key] = style.getPropertyValue(`--${name}`).trim();
  }
  return colours;
}
