// The view of the whole mesh: what is in trouble, the worst links, the heat-map.

import { theme } from "./canvas.js";
import * as daemon from "./daemon.js";
import { Matrix, OLD_ROW } from "./matrix.js";
import { palette } from "./palette.js";
import { write } from "./place.js";
import { count, difference, percent, round, roundTrip, span } from "./quantity.js";
import { MEANING, SIGN, STATES, drawState } from "./state.js";
import { fill, say } from "./table.js";

/** Links in the list of the worst. */
const WORST = 10;
/** Sides of cells the buttons step through, in pixels. */
const ZOOMS = [3, 4, 6, 8, 11, 14, 18, 24, 32, 44];

const $ = (id) => document.getElementById(id);

/** The view; `go(place)` changes the page's address. */
export class MeshView {
  constructor(go) {
    this.go = go;
    this.table = null;
    this.closed = new Set();
    this.matrix = new Matrix($("matrix"), {
      point: (lines, at) => this.hint(lines, at),
      open: (row, column) => this.open(row, column),
      toggle: (site) => this.toggle(site),
    });
    for (const input of document.querySelectorAll('input[name="mode"]')) {
      input.addEventListener("change", () => this.go({ ...this.place, mode: input.value }));
    }
    $("close-all").addEventListener("click", () => this.close(this.table.sites().filter((site) => site !== "")));
    $("open-all").addEventListener("click", () => this.close([]));
    $("smaller").addEventListener("click", () => this.zoom(-1));
    $("larger").addEventListener("click", () => this.zoom(1));
    $("fit").addEventListener("click", () => this.matrix.set({ zoom: 0 }));
    $("find").addEventListener("input", () => this.find());
    $("choose").addEventListener("submit", (event) => this.choose(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  /** Takes a place of this view over. */
  enter(place) {
    this.place = place;
    document.querySelector(`input[name="mode"][value="${place.mode}"]`).checked = true;
    this.matrix.mode = place.mode;
    this.redraw();
  }

  /** Asks the daemon, and shows its answer. */
  async refresh(status) {
    this.table = await daemon.matrix();
    this.status = status;
    this.trouble(status);
    this.redraw();
  }

  redraw() {
    if (!this.table) return;
    const closed = this.place.closed ?? this.matrix.tooMany(this.table);
    if ([...closed].join() !== [...this.closed].join()) this.matrix.zoom = 0;
    this.matrix.closed = this.closed = closed;
    this.matrix.show(this.table);
    this.siteButtons();
    this.legend();
    const names = (this.table.bySite ? [] : this.table.nodes).map((node) => node.name).sort();
    if ($("names").childElementCount !== names.length) {
      $("names").replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name })));
    }
  }

  trouble(status) {
    if (this.table.bySite) return this.troubleBySite(status);
    const { counts, disagreeing } = this.table.counts();
    const parts = [];
    for (let state = STATES.length - 1; state >= 0; state -= 1) {
      const name = STATES[state];
      if (counts[state] === 0) continue;
      parts.push([state, `${SIGN[name]} ${counts[state].toLocaleString("en")}`.trim(), MEANING[name]]);
    }
    const missing = this.table.nodes.filter((node) => node.age === null).length;
    const oldest = Math.max(0, ...this.table.nodes.map((node) => node.age ?? 0));
    const rows = `rows of ${this.table.nodes.length - missing} of ${count(this.table.nodes.length, "node")}, oldest ${span(oldest)}`;
    const words = parts.map(([state, number, meaning]) => wordOf(STATES[state], number, meaning));
    const links = counts.reduce((sum, number) => sum + number, 0);
    words.push(wordOf("", "", `of ${count(links, "link")}`));
    if (disagreeing > 0) words.push(wordOf("suspect", `◥ ${disagreeing.toLocaleString("en")}`, "with ends that disagree"));
    words.push(wordOf(missing > 0 ? "unknown" : "", "", rows));
    sayWords(words);
    const ill = this.table.illNodes();
    this.problems(status.problems, ill);
    const worst = this.table.worst(WORST, ill);
    fill($("worst").tBodies[0], worst.map((link) => this.worstRow(link)));
    $("worst").hidden = worst.length === 0;
    $("no-worst").hidden = worst.length > 0;
  }

  troubleBySite(status) {
    const { nodes, rows, oldest } = this.table.bySite;
    const number = (what) => this.table.sum(what).toLocaleString("en");
    const kinds = [
      ["troubled", "degraded", "▲", "not up"],
      ["outside", "suspect", "±", "away from usual"],
      ["disagreeing", "suspect", "◥", "with ends that disagree"],
    ];
    const found = kinds.filter(([what]) => this.table.sum(what) > 0);
    sayWords([
      ...found.map(([what, state, sign, words]) => wordOf(state, `${sign} ${number(what)}`, words)),
      wordOf("", "", `of ${number("links")} directions, rows of ${rows} of ${count(nodes, "node")}, oldest ${span(oldest ?? NaN)}`),
    ]);
    this.problems(status.problems, []);
    fill($("worst").tBodies[0], []);
    $("worst").hidden = true;
    $("no-worst").hidden = false;
    say($("no-worst"), `${count(nodes, "node")} are shown by their sites. Each node's own page, or meshctl status, shows its links.`);
  }

  /** What this daemon says is wrong, and the nodes most of whose links are in trouble: one line each, not one per link. */
  problems(told, ill) {
    const nodes = ill.map(({ node, state, links, of }) => ({
      gravity: STATES[state] === "down" ? "critical" : "warning",
      message: `${SIGN[STATES[state]]} ${this.table.nodes[node].name}: ${links} of its ${of} links are not up, most of them ${MEANING[STATES[state]]}`,
    }));
    const problems = nodes.concat(told);
    const texts = problems.map((problem) => `${problem.message}${problem.advice ? `: ${problem.advice}` : ""}`);
    const list = $("problems");
    if (list.dataset.texts === texts.join("\n")) return;
    list.dataset.texts = texts.join("\n");
    list.replaceChildren(
      ...problems.map((problem, index) =>
        Object.assign(document.createElement("li"), { className: problem.gravity, textContent: texts[index] }),
      ),
    );
  }

  worstRow({ from, to, told, disagree }) {
    const [a, b] = [this.table.nodes[from].name, this.table.nodes[to].name];
    const state = STATES[told.state];
    return {
      key: `${a} ${b}`,
      cells: [
        { text: `${a} → ${b}${disagree ? " ◥" : ""}`, href: this.address(a, b) },
        { text: `${SIGN[state]} ${state}`.trim(), className: `state state-${state}` },
        { text: roundTrip(told.rtt), className: "number" },
        { text: difference(told.rtt - told.usual), className: "number" },
        { text: percent(told.loss), className: "number" },
      ],
    };
  }

  /** The address of a link's page, seen from the one of its ends that this daemon is, where it is one. */
  address(from, to) {
    const self = this.status?.node;
    const place = { view: "link", range: "24h", from: null, peer: to };
    if (from !== self) Object.assign(place, to === self ? { peer: from } : { from });
    return write(place);
  }

  open(row, column) {
    if (this.table.bySite) return;
    if (row.site !== undefined || column.site !== undefined) {
      // A closed site opens before any of its links can be chosen.
      const closed = new Set(this.closed);
      for (const line of [row, column]) closed.delete(line.site);
      return this.go({ ...this.place, closed });
    }
    const [from, to] = [row.nodes[0], column.nodes[0]];
    if (from !== to) location.hash = this.address(this.table.nodes[from].name, this.table.nodes[to].name);
  }

  toggle(site) {
    const closed = new Set(this.closed);
    if (!closed.delete(site)) closed.add(site);
    this.close(closed);
  }

  close(sites) {
    this.go({ ...this.place, closed: new Set(sites) });
  }

  zoom(direction) {
    const here = this.matrix.cell ?? 8;
    const next = direction > 0 ? ZOOMS.find((side) => side > here) : ZOOMS.findLast((side) => side < here);
    if (next) this.matrix.set({ zoom: next });
  }

  find() {
    const name = $("find").value.trim();
    const found = this.table?.numbers.get(name) ?? -1;
    this.matrix.set({ found });
    if (found < 0) return;
    const line = this.matrix.lines.findIndex((candidate) => candidate.nodes.includes(found));
    this.matrix.reveal([line, line]);
  }

  choose(event) {
    event.preventDefault();
    const [from, to] = ["from", "to"].map((id) => $(id).value.trim());
    const known = (name) => (this.table?.bySite ? name !== "" : this.table?.numbers.has(name));
    const unknown = [from, to].find((name) => !known(name));
    const problem = unknown !== undefined ? `There is no node “${unknown}”.` : from === to ? "Choose two nodes." : "";
    say($("choose-problem"), problem);
    $("choose-problem").hidden = problem === "";
    if (problem === "") location.hash = this.address(from, to);
  }

  /** Says what a cell holds: beside the pointer, and to those who listen. */
  hint(lines, at) {
    const hint = $("hint");
    hint.hidden = !lines;
    if (!lines) return say($("spoken"), "");
    const sentences = this.describe(...lines);
    hint.replaceChildren(
      ...sentences.map((text) => Object.assign(document.createElement("p"), { textContent: text })),
    );
    say($("spoken"), sentences.join(". "));
    const box = hint.getBoundingClientRect();
    hint.style.left = `${Math.max(4, Math.min(at.x + 14, window.innerWidth - box.width - 6))}px`;
    hint.style.top = `${at.y + 16 + box.height < window.innerHeight ? at.y + 16 : Math.max(4, at.y - box.height - 10)}px`;
  }

  describe(row, column) {
    const name = (line) => line.site ?? this.table.nodes[line.nodes[0]].name;
    if (row === column && row.nodes.length === 1 && !this.table.bySite) return [`${name(row)}: the node itself`];
    if (this.table.bySite || row.nodes.length > 1 || column.nodes.length > 1) {
      const cell = this.table.cell(row, column);
      if (!cell || cell.links === 0) return [`${name(row)} → ${name(column)}: nothing is told`];
      const state = STATES[cell.state];
      return [
        `${name(row)} → ${name(column)}: ${count(cell.links, "link")}, median ${roundTrip(cell.rtt)}`,
        cell.bad === 0 ? "all up" : this.table.bySite ? `▲ ${cell.bad} not up` : `${cell.bad} not up, the worst ${SIGN[state]} ${MEANING[state]}`,
      ];
    }
    const [a, b] = [row.nodes[0], column.nodes[0]];
    const sentences = [this.sentence(a, b), this.sentence(b, a)];
    if (this.table.disagree(a, b)) sentences.push("◥ the two ends disagree");
    return sentences;
  }

  sentence(from, to) {
    const [a, b] = [this.table.nodes[from], this.table.nodes[to]];
    const told = this.table.told(from, to);
    const age = a.age === null ? `${a.name} did not answer` : `told ${span(a.age)} ago`;
    if (!told) return `${a.name} → ${b.name}: nothing is told (${age})`;
    const state = STATES[told.state];
    const parts = [`${a.name} → ${b.name}: ${SIGN[state]} ${MEANING[state]}`.replace("  ", " ")];
    if (Number.isFinite(told.rtt)) {
      const usual = Number.isFinite(told.usual) ? ` (usual ${roundTrip(told.usual)}, ${difference(told.rtt - told.usual)})` : " (usual not known yet)";
      parts.push(roundTrip(told.rtt) + usual);
    }
    if (Number.isFinite(told.loss)) parts.push(`loss ${percent(told.loss)}`);
    if (Number.isFinite(told.jitter)) parts.push(`jitter ${roundTrip(told.jitter)}`);
    if (told.path) parts.push(told.path);
    return `${parts.join(", ")}; ${age}${a.age > OLD_ROW ? ", old" : ""}`;
  }

  siteButtons() {
    const sites = this.table.sites().filter((site) => site !== "");
    $("site-tools").hidden = sites.length === 0;
    const signature = sites.map((site) => `${site} ${this.closed.has(site)}`).join();
    if ($("sites").dataset.shown === signature) return;
    $("sites").dataset.shown = signature;
    const before = document.activeElement?.dataset?.site;
    $("sites").replaceChildren(
      ...sites.map((site) => {
        const closed = this.closed.has(site);
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.site = site;
        button.textContent = `${closed ? "▸" : "▾"} ${site}`;
        button.setAttribute("aria-expanded", String(!closed));
        button.addEventListener("click", () => this.toggle(site));
        return button;
      }),
    );
    if (before) $("sites").querySelector(`[data-site="${CSS.escape(before)}"]`)?.focus();
  }

  /** The scale in use and the shapes of states. */
  legend() {
    const absolute = this.place.mode === "absolute";
    const { low, high } = this.table.scale;
    const signature = [this.place.mode, low, high, theme()].join();
    if ($("legend").dataset.shown === signature) return;
    $("legend").dataset.shown = signature;
    const colours = palette(theme());
    const scale = absolute
      ? [round(low), colours.sequential, round(high)]
      : ["5 ms or half faster", colours.diverging, "5 ms or half slower than its usual"];
    const bar = legendCanvas(140, 12, (context) => {
      scale[1].forEach((colour, step) => {
        context.fillStyle = colour;
        context.fillRect((step * 140) / scale[1].length, 0, 140 / scale[1].length + 1, 12);
      });
    });
    const entries = [entry(scale[0], bar, scale[2])];
    for (const state of ["down", "degraded", "suspect", "unknown", "expired", "new"]) {
      entries.push(entry("", this.sample(state, colours), MEANING[state]));
    }
    entries.push(entry("", this.notch(colours), "the ends disagree"), entry(`${absolute ? "" : "framed: usual not known yet, "}blank: nothing told, numbers: ms`, "", ""));
    $("legend").replaceChildren(...entries);
  }

  sample(state, colours) {
    return legendCanvas(14, 14, (context) => {
      const style = getComputedStyle($("matrix"));
      const down = state === "down";
      context.fillStyle = down ? style.getPropertyValue("--down") : colours.sequential[20];
      context.fillRect(0, 0, 14, 14);
      const ink = down ? "#fff" : theme() === "dark" ? "#fff" : "#000";
      drawState(context, STATES.indexOf(state), 0, 0, 14, ink, theme() === "dark" ? "#000" : "#fff");
    });
  }

  notch(colours) {
    return legendCanvas(14, 14, (context) => {
      context.fillStyle = colours.sequential[20];
      context.fillRect(0, 0, 14, 14);
      context.fillStyle = theme() === "dark" ? "#fff" : "#000";
      context.beginPath();
      context.moveTo(9, 0);
      context.lineTo(14, 0);
      context.lineTo(14, 5);
      context.fill();
    });
  }
}

function sayWords(words) {
  if ($("counts").textContent !== words.map((word) => word.textContent).join("")) $("counts").replaceChildren(...words);
}

function wordOf(state, number, words) {
  const made = document.createElement("span");
  if (number) made.append(Object.assign(document.createElement("b"), { textContent: number }), ` ${words}`);
  else made.append(words);
  made.className = state && state !== "up" ? `state-${state}` : "";
  return made;
}

function entry(before, picture, after) {
  const made = document.createElement("span");
  made.append(before, picture, after);
  return made;
}

function legendCanvas(width, height, draw) {
  const canvas = document.createElement("canvas");
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [width * ratio, height * ratio];
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  draw(context);
  return canvas;
}
