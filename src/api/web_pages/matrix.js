// The heat-map: every link of the mesh as one cell, the observer down the side, the observed along the top.
//
// Two canvases of the size of the window lie over a space of the size of the whole map; scrolling moves the space, and
// only the cells in the window are drawn. So 40,000 cells cost no more elements than four.

import { clipped, font, resized, stroke, theme } from "./canvas.js";
import { at, palette, wantsDarkInk } from "./palette.js";
import { STATES, drawState } from "./state.js";
import { ratioToUsual } from "./mesh_table.js";

/** Side of a cell in pixels: the smallest that can still be hit, the largest that still reads as one map. */
const SMALLEST = 3;
const LARGEST = 56;
/** From here on a cell has room for its state's shape with an edge, for its names, and for its number. */
const ROOM_FOR_NAMES = 11;
const ROOM_FOR_NUMBER = 38;
/** And from here on for a frame in the place of a colour. */
const ROOM_FOR_FRAME = 5;
/** Side of the mark of a link that is down, where its cell is smaller. */
const OWN_MARK = 9;
/** Side of the mark of a link that is away from its usual, where its cell is smaller. */
const AWAY_MARK = 5;
/** Pixels between two sites, so that their blocks are seen. */
const SITE_GAP = 3;
/** A row older than this (seconds) is said to be old: rows are pulled every few seconds. */
export const OLD_ROW = 60;
/** Pixels of the names' margins at most. */
const MARGIN = 130;
const DOWN = STATES.indexOf("down");
const UNKNOWN = STATES.indexOf("unknown");

/** The heat-map in an element; `on.point(pair or null, place)` and `on.open(pair)` are told what the user does. */
export class Matrix {
  constructor(frame, on) {
    this.frame = frame;
    this.on = on;
    this.space = element("div", "matrix-space");
    this.window = element("div", "matrix-window");
    this.cells = element("canvas", "matrix-cells");
    this.marks = element("canvas", "matrix-marks");
    this.window.append(this.cells, this.marks);
    frame.append(this.space, this.window);
    this.table = null;
    this.mode = "absolute";
    this.zoom = 0;
    this.closed = new Set();
    this.found = -1;
    this.pointed = null;
    frame.addEventListener("scroll", () => this.draw(), { passive: true });
    frame.addEventListener("pointermove", (event) => this.point(this.under(event), event));
    frame.addEventListener("pointerleave", () => this.point(null));
    frame.addEventListener("click", (event) => this.click(event));
    frame.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.arrange()).observe(frame);
  }

  /** Shows a table; what was pointed at stays so. */
  show(table) {
    this.table = table;
    this.arrange();
  }

  /** Changes how it is shown: `mode`, `zoom`, `closed` sites, the `found` node. */
  set(settings) {
    Object.assign(this, settings);
    this.arrange();
  }

  /** Returns the sites to close where the nodes would not fit: all of them, or none. */
  tooMany(table) {
    const fits = this.frame.clientWidth === 0 || table.nodes.length * SMALLEST + 90 <= this.frame.clientWidth;
    return new Set(fits ? [] : table.sites().filter((site) => site !== ""));
  }

  /** Places rows and columns: one for each node, or for each closed site. */
  arrange() {
    if (!this.table || this.frame.clientWidth === 0) return;
    this.lines = this.table.lines(this.closed);
    this.names = this.lines.map((line) => (line.site === undefined ? this.table.nodes[line.nodes[0]].name : line.name));
    const context = this.cells.getContext("2d");
    context.font = font(11);
    const widest = Math.max(...this.names.map((name) => context.measureText(name).width), 20);
    const gaps = this.lines.filter((line, index) => index > 0 && line.group !== this.lines[index - 1].group).length;
    this.fit(Math.min(MARGIN, widest + 10), gaps);
    let place = 0;
    this.places = this.lines.map((line, index) => {
      if (index > 0 && line.group !== this.lines[index - 1].group) place += SITE_GAP;
      const here = place;
      place += this.cell;
      return here;
    });
    this.extent = place;
    const [width, height] = [this.left + this.extent + 2, this.top + this.extent + 2];
    this.space.style.width = `${width}px`;
    this.space.style.height = `${height}px`;
    // Rather a page that scrolls a little than a map that scrolls within the page.
    this.frame.style.height = `${Math.min(height + 2, Math.max(320, 1.3 * this.tallest()))}px`;
    // Only now is it known whether a scroll bar takes room.
    this.window.style.width = `${this.frame.clientWidth}px`;
    this.window.style.height = `${this.frame.clientHeight}px`;
    this.prepare();
    this.draw();
  }

  /** Chooses the side of a cell: by the zoom, or so that the whole map is in the window. */
  fit(names, gaps) {
    const number = this.lines.length;
    const side = (left, top) => {
      const room = Math.min(this.frame.clientWidth - left, Math.max(320, this.tallest()) - top) - gaps * SITE_GAP - 4;
      return Math.max(SMALLEST, Math.min(LARGEST, Math.floor(room / number)));
    };
    this.cell = this.zoom || side(names + 14, names + 14);
    this.named = this.cell >= ROOM_FOR_NAMES;
    // The names of nodes stand in the margin, or else those of sites.
    const grouped = this.lines.some((line) => line.group !== "");
    this.left = this.named ? names + (grouped ? 16 : 0) : 74;
    this.top = this.named ? names + (grouped ? 16 : 0) : 22;
    if (!this.zoom && !this.named) this.cell = Math.min(ROOM_FOR_NAMES - 1, side(this.left, this.top));
  }

  tallest() {
    return Math.max(window.innerHeight - 150, 240);
  }

  /** Works out every cell's look once, so that scrolling only copies it. */
  prepare() {
    const table = this.table;
    const colours = { ...palette(theme()), down: this.style("--down"), untold: this.style("--untold") };
    const number = this.lines.length;
    this.looks = new Array(number * number);
    for (let row = 0; row < number; row += 1) {
      for (let column = 0; column < number; column += 1) {
        const cell = table.cell(this.lines[row], this.lines[column]);
        this.looks[row * number + column] = cell && { ...cell, colour: this.colour(cell, colours, table) };
      }
    }
  }

  colour(cell, colours, table) {
    if (cell.state === DOWN) return colours.down;
    if (!Number.isFinite(cell.rtt)) return colours.untold;
    if (this.mode === "absolute") return at(colours.sequential, table.scale.place(cell.rtt));
    const deviation = ratioToUsual(cell.rtt, cell.usual);
    return Number.isFinite(deviation) ? at(colours.diverging, 0.5 + 0.5 * bend(deviation)) : colours.untold;
  }

  /** A link whose change cannot be told yet must not look as if there were none. */
  isFramed(look) {
    const known = Number.isFinite(look.rtt) && Number.isFinite(look.usual);
    return this.mode === "deviation" && look.state !== 0 && look.state !== DOWN && !known;
  }

  style(name) {
    return getComputedStyle(this.frame).getPropertyValue(name).trim();
  }

  draw() {
    if (!this.looks) return;
    const context = resized(this.cells, this.window);
    const { scrollLeft: dx, scrollTop: dy, clientWidth: width, clientHeight: height } = this.frame;
    const [ink, muted, paper] = ["--ink", "--muted", "--paper"].map((name) => this.style(name));
    context.clearRect(0, 0, width, height);
    const number = this.lines.length;
    const inner = this.cell > 5 ? this.cell - 1 : this.cell;
    context.save();
    context.beginPath();
    context.rect(this.left, this.top, width, height);
    context.clip();
    for (let row = 0; row < number; row += 1) {
      const y = this.top + this.places[row] - dy;
      if (y + this.cell < this.top || y > height) continue;
      for (let column = 0; column < number; column += 1) {
        const x = this.left + this.places[column] - dx;
        if (x + this.cell < this.left || x > width) continue;
        const look = this.looks[row * number + column];
        if (!look) continue;
        if (this.isFramed(look) && inner >= ROOM_FOR_FRAME) {
          context.strokeStyle = muted;
          context.lineWidth = 0.5;
          context.strokeRect(x + 0.5, y + 0.5, inner - 1, inner - 1);
        } else if (look.state !== 0) {
          context.fillStyle = look.colour;
          context.fillRect(x, y, inner, inner);
        }
        this.shape(context, look, x, y, inner, paper);
      }
    }
    if (this.cell < OWN_MARK) this.standOut(context, width, height, paper);
    context.restore();
    this.margins(context, width, height, ink, muted);
    this.mark();
  }

  /**
   * Where cells are smaller than a mark can be, what must not be missed is drawn over its neighbours: first what is away
   * from its usual, where that is asked for, then what is down.
   */
  standOut(context, width, height, paper) {
    const number = this.lines.length;
    const mark = (wanted, size, edge) =>
      this.looks.forEach((look, index) => {
        if (!look || !wanted(look)) return;
        const middle = (place) => this.places[place] + this.cell / 2;
        const x = this.left + middle(index % number) - this.frame.scrollLeft - size / 2;
        const y = this.top + middle(Math.floor(index / number)) - this.frame.scrollTop - size / 2;
        if (x > width || y > height || x < this.left - size || y < this.top - size) return;
        context.fillStyle = edge;
        context.fillRect(x - 1, y - 1, size + 2, size + 2);
        context.fillStyle = look.colour;
        context.fillRect(x, y, size, size);
        if (look.state === DOWN) drawState(context, DOWN, x, y, size, "#fff", "#fff");
      });
    const away = (look) => look.state !== DOWN && Math.abs(ratioToUsual(look.rtt, look.usual)) >= 1;
    if (this.mode === "deviation") mark(away, AWAY_MARK, paper);
    mark((look) => look.state === DOWN, OWN_MARK, "#fff");
  }

  /** The shape of a cell's state, its number, and the notch of a pair that disagrees. */
  shape(context, look, x, y, side, paper) {
    const onPaper = this.isFramed(look) && side >= ROOM_FOR_FRAME;
    const dark = look.state === DOWN ? false : onPaper ? theme() === "light" : wantsDarkInk(look.colour);
    const ink = look.state === DOWN || !dark ? "#fff" : "#000";
    drawState(context, look.state, x, y, side, ink, look.state === UNKNOWN ? paper : dark ? "#fff" : "#000");
    if (side >= ROOM_FOR_NUMBER && look.state !== DOWN && Number.isFinite(look.rtt)) {
      context.fillStyle = ink;
      context.font = font(11);
      context.textAlign = "center";
      context.textBaseline = "middle";
      const shaped = STATES[look.state] !== "up";
      context.fillText(short(look, this.mode), x + side / 2, y + (shaped ? side - 8 : side / 2));
    }
    if (look.disagree && side >= 6) {
      const notch = Math.max(3, side * 0.24);
      context.fillStyle = ink;
      context.beginPath();
      context.moveTo(x + side - notch, y);
      context.lineTo(x + side, y);
      context.lineTo(x + side, y + notch);
      context.fill();
    }
  }

  /** Names of nodes, of sites, and the age of rows that are old. */
  margins(context, width, height, ink, muted) {
    context.textBaseline = "middle";
    const each = (visit) => this.lines.forEach((line, index) => visit(line, this.places[index] + this.cell / 2, index));
    if (this.named) {
      context.font = font(11);
      const edge = this.left - 5;
      clipped(context, 0, this.top, this.left, height, () =>
        each((line, middle, index) => {
          const y = this.top + middle - this.frame.scrollTop;
          if (y < this.top - this.cell || y > height + this.cell) return;
          const old = !(this.table.ageOf(line) <= OLD_ROW);
          context.fillStyle = old ? muted : ink;
          context.textAlign = "right";
          context.fillText((old ? "◷ " : "") + this.names[index], edge, y, this.left - 18);
        }),
      );
      clipped(context, this.left, 0, width, this.top, () =>
        each((_, middle, index) => {
          const x = this.left + middle - this.frame.scrollLeft;
          if (x < this.left - this.cell || x > width + this.cell) return;
          context.save();
          context.translate(x, this.top - 5);
          context.rotate(-Math.PI / 2);
          context.fillStyle = ink;
          context.textAlign = "left";
          context.fillText(this.names[index], 0, 0, this.top - 18);
          context.restore();
        }),
      );
    }
    this.sites(context, width, height, muted);
  }

  /** The sites' names beside their blocks: inside the margin, or outside the names of nodes. */
  sites(context, width, height, muted) {
    const blocks = this.blocks();
    if (blocks.length === 0) return;
    context.fillStyle = muted;
    context.strokeStyle = muted;
    context.lineWidth = 1;
    context.font = font(11);
    clipped(context, 0, this.top, this.left, height, () => {
      for (const block of blocks) {
        const [first, last] = [block.first, block.last].map((place) => this.top + place - this.frame.scrollTop);
        const middle = (Math.max(first, this.top) + Math.min(last, height)) / 2;
        if (this.named) {
          stroke(context, 13.5, first + 1, 13.5, last - 2);
          upright(context, block.name, 7, middle, last - first);
        } else if (last - first >= 9) {
          stroke(context, this.left - 3.5, first, this.left - 3.5, last - 1);
          context.textAlign = "right";
          context.fillText(block.name, this.left - 8, middle, this.left - 10);
        }
      }
    });
    clipped(context, this.left, 0, width, this.top, () => {
      for (const block of blocks) {
        const [first, last] = [block.first, block.last].map((place) => this.left + place - this.frame.scrollLeft);
        const middle = (Math.max(first, this.left) + Math.min(last, width)) / 2;
        const level = this.named ? 7 : this.top - 11;
        context.textAlign = "center";
        stroke(context, first, level + 6.5, last - 1, level + 6.5);
        const room = last - first - 2;
        if (context.measureText(block.name).width <= room) context.fillText(block.name, middle, level);
        else if (room > 16) context.fillText(ending(context, block.name, room), middle, level);
      }
    });
  }

  /** Runs of lines of one site that has a name. */
  blocks() {
    const blocks = [];
    this.lines.forEach((line, index) => {
      const before = blocks[blocks.length - 1];
      const end = this.places[index] + this.cell;
      if (before && before.group === line.group) before.last = end;
      else blocks.push({ group: line.group, name: line.group, first: this.places[index], last: end });
    });
    return blocks.filter((block) => block.group !== "" && !(this.named && this.closed.has(block.group)));
  }

  /** Draws what is pointed at and what was searched for, over the cells. */
  mark() {
    const context = resized(this.marks, this.window);
    const { scrollLeft: dx, scrollTop: dy, clientWidth: width, clientHeight: height } = this.frame;
    context.clearRect(0, 0, width, height);
    context.save();
    context.beginPath();
    context.rect(this.left - 1, this.top - 1, width, height);
    context.clip();
    context.strokeStyle = this.style("--accent");
    context.lineWidth = 2;
    const found = this.lines.findIndex((line) => line.nodes.includes(this.found));
    if (found >= 0) {
      const place = this.places[found];
      context.strokeRect(this.left - dx, this.top + place - dy - 1, this.extent, this.cell + 1);
      context.strokeRect(this.left + place - dx - 1, this.top - dy, this.cell + 1, this.extent);
    }
    if (this.pointed) {
      const [row, column] = this.pointed;
      const [x, y] = [this.left + this.places[column] - dx, this.top + this.places[row] - dy];
      context.globalAlpha = 0.35;
      context.lineWidth = 1;
      context.strokeRect(this.left - dx, y - 0.5, this.extent, this.cell);
      context.strokeRect(x - 0.5, this.top - dy, this.cell, this.extent);
      context.globalAlpha = 1;
      context.lineWidth = 2;
      context.strokeRect(x - 1.5, y - 1.5, this.cell + 2, this.cell + 2);
    }
    context.restore();
  }

  /** Returns the row and column under a pointer, or null. */
  under(event) {
    if (!this.places) return null;
    const box = this.frame.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - this.frame.clientLeft, event.clientY - box.top - this.frame.clientTop];
    if (x < this.left || y < this.top) return null;
    const column = this.line(x - this.left + this.frame.scrollLeft);
    const row = this.line(y - this.top + this.frame.scrollTop);
    return row < 0 || column < 0 ? null : [row, column];
  }

  line(place) {
    let [low, high] = [0, this.places.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.places[middle] <= place) low = middle;
      else high = middle - 1;
    }
    const offset = place - this.places[low];
    return offset >= 0 && offset < this.cell ? low : -1;
  }

  point(pair, event) {
    this.pointed = pair;
    this.mark();
    const lines = pair && pair.map((index) => this.lines[index]);
    this.on.point(lines, pair && this.place(pair, event));
  }

  /** Where in the page the hint about a cell belongs. */
  place([row, column], event) {
    if (event) return { x: event.clientX, y: event.clientY };
    const box = this.frame.getBoundingClientRect();
    const x = box.left + this.left + this.places[column] - this.frame.scrollLeft + this.cell;
    return { x, y: box.top + this.top + this.places[row] - this.frame.scrollTop + this.cell };
  }

  click(event) {
    const pair = this.under(event);
    if (pair) return this.on.open(...pair.map((index) => this.lines[index]));
    const block = this.blockUnder(event);
    if (block) this.on.toggle(block.group);
  }

  blockUnder(event) {
    const box = this.frame.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const beside = x < this.left && y >= this.top;
    const place = beside ? y - this.top + this.frame.scrollTop : x - this.left + this.frame.scrollLeft;
    if (!beside && (y >= this.top || x < this.left)) return null;
    return this.blocks().find((block) => place >= block.first && place < block.last);
  }

  key(event) {
    if (!this.lines || event.ctrlKey || event.altKey || event.metaKey) return;
    const last = this.lines.length - 1;
    const [row, column] = this.pointed ?? [0, -1];
    const far = event.shiftKey ? 10 : 1;
    const moves = {
      ArrowUp: [row - far, Math.max(0, column)],
      ArrowDown: [row + far, Math.max(0, column)],
      ArrowLeft: [row, column - far],
      ArrowRight: [row, column + far],
      Home: [row, 0],
      End: [row, last],
    };
    if (event.key === "Enter" && this.pointed) {
      this.on.open(...this.pointed.map((index) => this.lines[index]));
    } else if (event.key === "Escape") {
      this.point(null);
    } else if (moves[event.key]) {
      const pair = moves[event.key].map((place) => Math.min(last, Math.max(0, place)));
      this.reveal(pair);
      this.point(pair);
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Scrolls a cell into the window. */
  reveal([row, column]) {
    const [x, y] = [this.places[column], this.places[row]];
    const [wide, high] = [this.frame.clientWidth - this.left, this.frame.clientHeight - this.top];
    const within = (scroll, place, room) => Math.max(place + this.cell - room + 4, Math.min(scroll, place - 4));
    this.frame.scrollTo(within(this.frame.scrollLeft, x, wide), within(this.frame.scrollTop, y, high));
  }
}

/** Presses a deviation, in thresholds, into -1 to 1: a tenth of full colour at the threshold, full colour at ten. */
function bend(thresholds) {
  const size = Math.min(1, Math.log1p(Math.max(0, Math.abs(thresholds) - 0.5)) / Math.log1p(9.5));
  return Math.sign(thresholds) * size;
}

function short(look, mode) {
  const value = mode === "absolute" ? look.rtt : look.rtt - look.usual;
  if (!Number.isFinite(value)) return "";
  const size = Math.abs(value * 1e3);
  const text = size < 1 ? size.toFixed(2) : size < 100 ? size.toFixed(1) : size.toFixed(0);
  return mode === "absolute" ? text : size < 0.005 ? "0" : (value < 0 ? "−" : "+") + text;
}

function ending(context, text, room) {
  let end = text.length;
  while (end > 1 && context.measureText(`${text.slice(0, end)}…`).width > room) end -= 1;
  return `${text.slice(0, end)}…`;
}

function upright(context, text, x, y, room) {
  context.save();
  context.translate(x, y);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  if (context.measureText(text).width <= room) context.fillText(text, 0, 0);
  else if (room > 16) context.fillText(ending(context, text, room), 0, 0);
  context.restore();
}

function element(name, className) {
  const made = document.createElement(name);
  made.className = className;
  return made;
}
