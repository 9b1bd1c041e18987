// The states of a link: what they are called, how grave they are, and the shape each has beside its colour.

import { clipped, stroke } from "./canvas.js";

/** Every state, by the number that stands for it in a mesh's table; 0 is a pair that nobody has told about. */
export const STATES = ["none", "up", "new", "degraded", "suspect", "unknown", "expired", "down"];

/** What each means, for the legend. */
export const MEANING = {
  none: "not told",
  up: "up",
  new: "not up yet",
  suspect: "suspect",
  unknown: "unknown, observer unwell",
  degraded: "degraded",
  expired: "certificate ended",
  down: "down",
};

/** The sign of each in text. */
export const SIGN = { none: "", up: "", new: "·", suspect: "○", unknown: "▨", degraded: "▲", expired: "∅", down: "✕" };

/** Returns the number of a state, greater where it is graver; a word that is not known here counts as unknown. */
export function numberOf(name) {
  const number = STATES.indexOf(name);
  return number < 0 ? STATES.indexOf("unknown") : number;
}

/** Draws a state's shape into a square of a canvas; what is up has none. `ink` and `paper` are colours. */
export function drawState(context, state, x, y, size, ink, paper) {
  const inset = Math.max(0.5, size * 0.2);
  const [left, top, right, bottom] = [x + inset, y + inset, x + size - inset, y + size - inset];
  const middle = x + size / 2;
  context.lineWidth = Math.max(1, size * 0.12);
  context.strokeStyle = ink;
  context.fillStyle = ink;
  context.beginPath();
  switch (STATES[state]) {
    case "down":
      context.moveTo(left, top);
      context.lineTo(right, bottom);
      context.moveTo(right, top);
      context.lineTo(left, bottom);
      context.stroke();
      break;
    case "degraded":
      context.moveTo(middle, top);
      context.lineTo(right, bottom);
      context.lineTo(left, bottom);
      context.closePath();
      context.fill();
      if (size >= 9) {
        context.lineWidth = 1;
        context.strokeStyle = paper;
        context.stroke();
      }
      break;
    case "suspect":
      context.arc(middle, y + size / 2, size / 2 - inset, 0, 2 * Math.PI);
      context.stroke();
      break;
    case "unknown":
      hatch(context, x, y, size);
      break;
    case "expired":
      context.arc(middle, y + size / 2, size / 2 - inset, 0, 2 * Math.PI);
      context.moveTo(left, bottom);
      context.lineTo(right, top);
      context.stroke();
      break;
    case "new":
      context.arc(middle, y + size / 2, Math.max(0.5, size * 0.1), 0, 2 * Math.PI);
      context.fill();
      break;
  }
}

/** Diagonal lines that join those of the neighbouring cells. */
function hatch(context, x, y, size) {
  const distance = Math.max(3, Math.round(size / 3));
  clipped(context, x, y, x + size, y + size, () => {
    for (let start = -size; start < size; start += distance) stroke(context, x + start, y + size, x + start + size, y);
  });
}
