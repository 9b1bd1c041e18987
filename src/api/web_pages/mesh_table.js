// What every node says about every other, as one table of numbers, and the questions asked of it.

import { STATES, numberOf } from "./state.js";

/** Two directions of a link disagree from this relative difference on. */
const DISAGREE = 0.2;
/** States that are no trouble. */
const SOUND = new Set(["none", "up", "new"]);
/** With fewer links than this, most of them is no majority. */
const FEW = 5;
/** A change below this many seconds, or this share, is noise: the daemon's own rule for a step. */
const STEP_SECONDS = 0.0005;
const STEP_SHARE = 0.05;

/** Returns how far a round trip is from the usual one, in thresholds of a step; NaN where either is not known. */
export function ratioToUsual(rtt, usual) {
  return (rtt - usual) / Math.max(STEP_SECONDS, STEP_SHARE * usual);
}

/** A mesh at one moment. Cells lie row by row: the observer's number times the number of nodes, plus the observed's. */
export class MeshTable {
  /** Makes a table of nodes without cells; nodes have `name`, `site` and the `age` of their row in seconds. */
  constructor(nodes) {
    this.nodes = nodes;
    this.numbers = new Map(nodes.map((node, number) => [node.name, number]));
    const size = nodes.length * nodes.length;
    this.state = new Uint8Array(size);
    this.rtt = new Float64Array(size).fill(NaN);
    this.usual = new Float64Array(size).fill(NaN);
    this.loss = new Float64Array(size).fill(NaN);
    this.jitter = new Float64Array(size).fill(NaN);
    this.path = new Array(size);
  }

  /** Enters what `from` says about `to`, both numbers of nodes. */
  enter(from, to, told) {
    const place = from * this.nodes.length + to;
    this.state[place] = numberOf(told.state);
    this.rtt[place] = told.rtt ?? NaN;
    this.usual[place] = told.usual ?? NaN;
    this.loss[place] = told.loss ?? NaN;
    this.jitter[place] = told.jitter ?? NaN;
    this.path[place] = told.path ?? "";
  }

  /** Works out the scale of colours; call it when all is entered. */
  finish() {
    this.scale = scaleOf(this.rtt);
    return this;
  }

  /** Returns what one node says about another, or null where it says nothing. */
  told(from, to) {
    const place = from * this.nodes.length + to;
    if (from === to || this.state[place] === 0) return null;
    return {
      state: this.state[place],
      rtt: this.rtt[place],
      usual: this.usual[place],
      loss: this.loss[place],
      jitter: this.jitter[place],
      path: this.path[place],
    };
  }

  /** Returns the sites' names in their order; nodes without a site come last, under "". */
  sites() {
    const names = [...new Set(this.nodes.map((node) => node.site))];
    return names.sort((a, b) => (a === "") - (b === "") || a.localeCompare(b, "en", { numeric: true }));
  }

  /** Returns the lines of a map: one for each node, sorted by site and name, or one for each closed site. */
  lines(closed) {
    const lines = [];
    for (const site of this.sites()) {
      const nodes = this.nodes.map((_, number) => number).filter((number) => this.nodes[number].site === site);
      if (closed.has(site) && site !== "") {
        lines.push({ site, group: site, name: `${site} (${nodes.length})`, nodes });
        continue;
      }
      const name = (number) => this.nodes[number].name;
      nodes.sort((a, b) => name(a).localeCompare(name(b), "en", { numeric: true }));
      lines.push(...nodes.map((number) => ({ group: site, nodes: [number] })));
    }
    return lines;
  }

  /** Returns the age of a line's oldest row in seconds; Infinity where one never came. */
  ageOf(line) {
    return Math.max(...line.nodes.map((number) => this.nodes[number].age ?? Infinity));
  }

  /** Returns what a line says about another: of two nodes their cell, of sites the median with the worst of the rest. */
  cell(row, column) {
    if (row.nodes.length === 1 && column.nodes.length === 1) {
      const [from, to] = [row.nodes[0], column.nodes[0]];
      if (from === to) return null;
      const told = this.told(from, to) ?? { state: 0, rtt: NaN, usual: NaN };
      return { ...told, disagree: this.disagree(from, to), links: 1 };
    }
    const all = [];
    for (const from of row.nodes) {
      for (const to of column.nodes) {
        const told = this.told(from, to);
        if (told) all.push({ ...told, disagree: this.disagree(from, to) });
      }
    }
    if (all.length === 0) return row === column ? null : { state: 0, rtt: NaN, usual: NaN, links: 0 };
    const worst = all.reduce((a, b) => (b.state > a.state ? b : a));
    const measured = all.filter((told) => Number.isFinite(told.rtt)).sort((a, b) => a.rtt - b.rtt);
    const middle = measured[measured.length >> 1] ?? { rtt: NaN, usual: NaN };
    return {
      state: worst.state,
      rtt: middle.rtt,
      usual: middle.usual,
      loss: Math.max(...all.map((told) => (Number.isFinite(told.loss) ? told.loss : 0))),
      disagree: all.some((told) => told.disagree),
      links: all.length,
      bad: all.filter((told) => STATES[told.state] !== "up").length,
    };
  }

  /** Whether the two ends of a link say different things about it: another state, or a fifth more or less. */
  disagree(from, to) {
    const [here, there] = [this.told(from, to), this.told(to, from)];
    if (!here || !there) return false;
    if (here.state !== there.state) return true;
    const difference = Math.abs(here.rtt - there.rtt);
    return difference > DISAGREE * Math.min(here.rtt, there.rtt) && difference > STEP_SECONDS / 10;
  }

  /** Returns how many links (pairs) there are in each state, by the graver word of both ends, and how many disagree. */
  counts() {
    const counts = new Array(STATES.length).fill(0);
    let disagreeing = 0;
    this.pairs((a, b) => {
      const [here, there] = [this.told(a, b), this.told(b, a)];
      counts[Math.max(here?.state ?? 0, there?.state ?? 0)] += 1;
      if (this.disagree(a, b)) disagreeing += 1;
    });
    return { counts, disagreeing };
  }

  /**
   * Returns the nodes that are in trouble with most others, and so are it themselves, with the state that most of those
   * links are in; the worst first.
   */
  illNodes() {
    const nodes = this.nodes.map((_, node) => ({ node, states: new Array(STATES.length).fill(0), links: 0, of: 0 }));
    this.pairs((a, b) => {
      const state = Math.max(this.told(a, b)?.state ?? 0, this.told(b, a)?.state ?? 0);
      if (state === 0) return;
      for (const node of [nodes[a], nodes[b]]) {
        node.of += 1;
        if (!SOUND.has(STATES[state])) {
          node.links += 1;
          node.states[state] += 1;
        }
      }
    });
    const ill = nodes.filter((node) => node.of >= FEW && node.links > node.of / 2);
    for (const node of ill) node.state = node.states.indexOf(Math.max(...node.states));
    return ill.sort((one, other) => other.state - one.state || other.links - one.links);
  }

  /**
   * Returns the worst links, each once, by the worse word of its two ends. Those of nodes that are `ill` are left out, but
   * for the ones in a graver state than their node's line tells.
   */
  worst(limit, ill = []) {
    const told = new Map(ill.map(({ node, state }) => [node, state]));
    const found = [];
    this.pairs((a, b) => {
      const state = Math.max(this.told(a, b)?.state ?? 0, this.told(b, a)?.state ?? 0);
      if (state <= Math.max(told.get(a) ?? -1, told.get(b) ?? -1)) return;
      const ends = [[a, b], [b, a]].map(([from, to]) => ({ from, to, told: this.told(from, to) }));
      const known = ends.filter((end) => end.told).map((end) => ({ ...end, badness: badness(end.told) }));
      if (known.length === 0) return;
      const worse = known.reduce((one, other) => (other.badness > one.badness ? other : one));
      if (worse.badness > 0) found.push({ ...worse, disagree: this.disagree(a, b) });
    });
    return found.sort((one, other) => other.badness - one.badness).slice(0, limit);
  }

  pairs(visit) {
    for (let a = 0; a < this.nodes.length; a += 1) {
      for (let b = a + 1; b < this.nodes.length; b += 1) visit(a, b);
    }
  }
}

/** Orders links, the one to look at first being the greatest: by state, then by what it costs beside the usual. */
function badness(told) {
  const deviation = Math.max(0, ratioToUsual(told.rtt, told.usual) || 0);
  const lost = (told.loss || 0) * 100;
  // A link as it always is, without loss, is not bad however long it is.
  return (told.state > 1 ? told.state * 1e4 : 0) + (deviation >= 1 ? deviation : 0) + (lost >= 0.5 ? lost : 0);
}

/** The scale of round trips: logarithmic, between round numbers around what there is. */
function scaleOf(rtts) {
  const known = Float64Array.from(rtts.filter((rtt) => rtt > 0)).sort();
  if (known.length === 0) return { low: 0.001, high: 0.1, place: () => 0 };
  const low = rounded(known[Math.floor(known.length * 0.01)], Math.floor);
  const high = Math.max(rounded(known[Math.floor((known.length - 1) * 0.99)], Math.ceil), low * 10);
  const width = Math.log(high / low);
  return { low, high, place: (rtt) => Math.log(rtt / low) / width };
}

/** The next 1, 2 or 5 times a power of ten. */
function rounded(value, towards) {
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = [1, 2, 5, 10].map((step) => step * power);
  return towards === Math.ceil
    ? steps.find((step) => step >= value * 0.999)
    : steps.filter((step) => step <= value * 1.001).pop();
}
