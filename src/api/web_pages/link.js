// The view of one link: what both ends say now, and what it was like over time.

import * as daemon from "./daemon.js";
import { RANGES, timeOf, write } from "./place.js";
import { difference, percent, roundTrip, span } from "./quantity.js";
import { Series, figures, signOf } from "./series.js";
import { MEANING, SIGN, STATES } from "./state.js";
import { fill, say } from "./table.js";

const WEEK = 7 * 24 * 3_600_000;
/** How old the other end's word may be, in milliseconds: the whole mesh is asked for it. */
const OTHER_END = 30_000;
/** Longer ranges show several weeks already. */
const WEEK_FITS = 8 * 24 * 3_600_000;

const $ = (id) => document.getElementById(id);

/** The view; `go(place)` changes the page's address. */
export class LinkView {
  constructor(go) {
    this.go = go;
    this.series = new Series($("chart"), (point) => this.read(point));
    this.kept = null;
    this.buttons();
    $("custom").addEventListener("submit", (event) => this.custom(event));
    $("week").addEventListener("change", () => this.changed());
    $("peaks").addEventListener("change", () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Takes a place of this view over. */
  enter(place) {
    const same = this.place && write(this.place) === write(place);
    this.place = place;
    if (same) return;
    this.kept = null;
    this.turn = (this.turn ?? 0) + 1;
    say($("link-title"), place.from ? `${place.from} → ${place.peer}` : place.peer);
    for (const anchor of $("ranges").querySelectorAll("a")) {
      anchor.href = write({ ...place, range: anchor.dataset.range, since: NaN, until: NaN });
      anchor.setAttribute("aria-current", String(anchor.dataset.range === place.range));
    }
    $("own-range").setAttribute("aria-pressed", String(place.range === "custom"));
    $("custom").hidden = place.range !== "custom";
    $("link-problem").hidden = true;
    $("series").hidden = place.from !== null;
    $("reading").dataset.shown = "";
    $("reading").replaceChildren("Asking for the history…");
    fill($("ends").tBodies[0], []);
  }

  buttons() {
    for (const [range, { name }] of Object.entries(RANGES)) {
      const anchor = document.createElement("a");
      anchor.dataset.range = range;
      anchor.textContent = name;
      $("ranges").append(anchor);
    }
    const own = document.createElement("button");
    own.type = "button";
    own.id = "own-range";
    own.textContent = "custom";
    own.addEventListener("click", () => this.offerCustom());
    $("ranges").append(own);
  }

  /** Opens the two fields with what is shown now. */
  offerCustom() {
    const { since, until } = timeOf(this.place, this.now ?? Date.now());
    $("since").value = new Date(since).toISOString().slice(0, 16);
    $("until").value = new Date(until).toISOString().slice(0, 16);
    $("custom").hidden = !$("custom").hidden;
  }

  custom(event) {
    event.preventDefault();
    const [since, until] = ["since", "until"].map((id) => Date.parse(`${$(id).value}Z`));
    if (!(since < until)) return this.problem("The range must begin before it ends.");
    this.go({ ...this.place, range: "custom", since, until });
  }

  problem(text) {
    say($("link-problem"), text);
    $("link-problem").hidden = text === "";
  }

  changed() {
    this.kept = null;
    this.again();
  }

  /** Asks the daemon, and shows its answer; of a series already here only what came since. */
  async refresh(status) {
    const turn = this.turn;
    this.now = status.now;
    this.status = status;
    const table = await daemon.matrix(OTHER_END);
    if (turn !== this.turn) return;
    this.ends(table, status);
    if (this.place.from !== null) return;
    say($("link-title"), `${status.node} → ${this.place.peer}`);
    try {
      await this.refreshSeries(turn);
      if (turn === this.turn) this.problem("");
    } catch (error) {
      if (!(error instanceof daemon.Refusal)) throw error;
      // It lives; it has no such link.
      this.problem(`${status.node} says: ${error.message}`);
      $("series").hidden = true;
    }
  }

  async refreshSeries(turn) {
    const { since, until, step } = timeOf(this.place, this.now);
    const wantsWeek = $("week").checked && until - since <= WEEK_FITS;
    const kept = this.kept?.step === step * 1000 ? this.kept : null;
    // The last two points may still have been filling.
    const from = kept ? Math.max(since, kept.points[kept.points.length - 3]?.at ?? since) : since;
    const [told, happened, week] = await Promise.all([
      daemon.history(this.place.peer, from, until, step),
      daemon.events(this.place.peer, since, until),
      wantsWeek ? this.weekBefore(kept?.week, since, until, step) : null,
    ]);
    if (turn !== this.turn) return;
    const before = kept ? kept.points.filter((point) => point.at >= since && point.at < from) : [];
    this.kept = {
      step: told.step,
      since,
      until,
      usual: told.usual,
      points: before.concat(told.points),
      week,
      events: happened.items,
      truncated: happened.truncated,
    };
    $("series").hidden = false;
    this.draw();
    this.list();
  }

  /** The same time a week earlier; what is here already will do while it still covers nearly all of it. */
  async weekBefore(kept, since, until, step) {
    if (kept && since - kept.since < (until - since) / 20) return kept;
    // Finer points than minutes are kept for an hour only.
    const told = await daemon.history(this.place.peer, since - WEEK, until - WEEK, Math.max(step, 60));
    return { since, step: told.step, points: told.points.map((point) => ({ ...point, at: point.at + WEEK })) };
  }

  draw() {
    if (!this.kept) return;
    this.series.show({ ...this.kept, peaks: $("peaks").checked });
    this.legend();
    const { points } = this.kept;
    const gaps = points.filter((point) => point.gap).length;
    const known = points.length - gaps;
    const partly = points.filter((point) => point.partial && !point.gap).length;
    const note = [`${known} of ${points.length} steps of ${span(this.kept.step / 1000)} are known`];
    if (partly > 0) note.push(`${partly} of them partly`);
    if (gaps > 0) note.push("a gap is a time nothing is known of, not a time without trouble");
    say($("series-note"), `${note.join("; ")}. Times are UTC.`);
  }

  /** Shows the figures of a point, or those of the newest one. */
  read(point) {
    if (!this.kept) return;
    const newest = this.kept.points.findLast((candidate) => !candidate.gap);
    const shown = point ?? newest;
    if (!shown) {
      $("reading").dataset.shown = "";
      return $("reading").replaceChildren("Nothing is known of this time: history begins when the daemon first measures the link.");
    }
    const { step, points } = this.kept.week ?? { step: 0, points: [] };
    const week = points.find((candidate) => candidate.at <= shown.at && shown.at < candidate.at + step);
    const pairs = figures(shown, this.kept.step, week);
    const events = this.kept.events.filter((event) => event.at >= shown.at && event.at < shown.at + this.kept.step);
    pairs.push(...events.map((event) => [signOf(event.kind), event.text]));
    // Read out only what was asked for, not every refresh.
    $("reading").setAttribute("aria-live", point ? "polite" : "off");
    const shownNow = `${point !== null} ${pairs.flat().join(" ")}`;
    if ($("reading").dataset.shown === shownNow) return;
    $("reading").dataset.shown = shownNow;
    $("reading").replaceChildren(
      ...pairs.map(([name, text], index) => {
        const made = document.createElement("span");
        if (index === 0) made.append(Object.assign(document.createElement("b"), { textContent: (point ? "" : "newest: ") + text }));
        else made.append(name ? `${name} ` : "", Object.assign(document.createElement("b"), { textContent: text }));
        return made;
      }),
    );
  }

  /** What both ends say of the link now. */
  ends(table, status) {
    const self = this.place.from ?? status.node;
    if (table.bySite) return fill($("ends").tBodies[0], []);
    const [a, b] = [self, this.place.peer].map((name) => table.numbers.get(name));
    if (a === undefined || b === undefined) {
      const missing = a === undefined ? self : this.place.peer;
      this.problem(`There is no node “${missing}” in the mesh now.`);
      return fill($("ends").tBodies[0], []);
    }
    if (a === b) return this.problem("A link has two ends: choose another node.");
    fill($("ends").tBodies[0], [[a, b], [b, a]].map(([from, to]) => endRow(table, from, to)));
    $("elsewhere").hidden = this.place.from === null;
    say(
      $("elsewhere"),
      `The history of this link is kept by its two ends, not here. On ${self}: meshctl history ${this.place.peer}; or the page that ${self} serves, if it does.`,
    );
  }

  list() {
    const { events, truncated } = this.kept;
    fill(
      $("events").tBodies[0],
      [...events].reverse().map((event) => ({
        key: `${event.sequence}`,
        cells: [
          { text: new Date(event.at).toISOString().slice(0, 19).replace("T", " ") },
          { text: signOf(event.kind) },
          { text: event.text, className: "wide" },
        ],
      })),
    );
    say($("no-events"), truncated ? "Older ones were left out: meshctl events shows them." : "None in this time.");
    $("no-events").hidden = events.length > 0 && !truncated;
  }

  legend() {
    if ($("series-legend").childElementCount > 0) return;
    const entries = [
      ["median", "median"],
      ["inner-band", "p25 to p75"],
      ["band", "p5 to p95"],
      ["peak", "p99 (▴ above the scale)"],
      ["last-week", "median a week before"],
      ["usual", "usual: median of seven days"],
      ["down", "loss: dots and bars"],
      ["tunnel", "tunnel above network, p50"],
      ["host", "host delay, p50 dotted, p99 shaded"],
    ];
    $("series-legend").replaceChildren(
      ...entries.map(([colour, text]) => {
        const made = document.createElement("span");
        const swatch = document.createElement("i");
        swatch.className = `swatch swatch-${colour}`;
        made.append(swatch, text);
        return made;
      }),
    );
  }
}

function endRow(table, from, to) {
  const [node, told] = [table.nodes[from], table.told(from, to)];
  const state = told ? STATES[told.state] : "none";
  const number = (text) => ({ text, className: "number" });
  return {
    key: node.name,
    cells: [
      { text: `${node.name} → ${table.nodes[to].name}` },
      { text: `${SIGN[state]} ${MEANING[state]}`.trim(), className: `state state-${state}` },
      number(roundTrip(told?.rtt)),
      number(told && Number.isFinite(told.usual) ? roundTrip(told.usual) : "not known yet"),
      number(difference(told ? told.rtt - told.usual : NaN)),
      number(percent(told?.loss)),
      number(roundTrip(told?.jitter)),
      { text: told?.path || "–" },
      { text: node.age === null ? "did not answer" : `${span(node.age)} ago` },
    ],
  };
}
