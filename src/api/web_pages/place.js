// What the page shows, as its address says it: everything after "#", so that a link can be sent to a colleague.

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** The ranges to choose from: how long, and in steps of how many seconds. No answer has more than 800 points. */
export const RANGES = {
  "1h": { name: "1 h", length: HOUR, step: 10 },
  "24h": { name: "24 h", length: DAY, step: 120 },
  "7d": { name: "7 d", length: 7 * DAY, step: 1200 },
  "30d": { name: "30 d", length: 30 * DAY, step: 3600 },
  "1y": { name: "1 y", length: 365 * DAY, step: 86_400 },
};

/** Steps for a range of one's own, each with how long the daemon keeps what such a point is made of, in milliseconds. */
const STEPS = [
  [10, HOUR],
  [60, 30 * DAY],
  [120, 30 * DAY],
  [600, 400 * DAY],
  [1200, 400 * DAY],
  [3600, 400 * DAY],
  [7200, 400 * DAY],
  [21_600, 400 * DAY],
  [86_400, Infinity],
];
const MOST_POINTS = 800;
/** Asked for so much less than what is kept, because an answer takes a while to be asked for. */
const MARGIN = 30_000;

/** Reads an address: `{view: "mesh", …}` or `{view: "link", peer, from, range, since, until}`. */
export function read(hash) {
  const told = new URLSearchParams(hash.replace(/^#/, ""));
  const peer = told.get("peer");
  if (!peer) {
    const closed = told.get("closed");
    return {
      view: "mesh",
      mode: told.get("mode") === "deviation" ? "deviation" : "absolute",
      // Null leaves the choice to the page: closed where the map would not fit.
      closed: closed === null ? null : new Set(closed.split(",").filter((site) => site !== "")),
    };
  }
  const [since, until] = ["since", "until"].map((name) => Date.parse(told.get(name)));
  const own = told.get("range") === "custom" && since < until;
  const range = own ? "custom" : told.get("range") in RANGES ? told.get("range") : "24h";
  return { view: "link", peer, from: told.get("from"), range, since: own ? since : NaN, until: own ? until : NaN };
}

/** Writes an address. */
export function write(place) {
  const told = new URLSearchParams();
  if (place.view === "mesh") {
    if (place.mode !== "absolute") told.set("mode", place.mode);
    if (place.closed !== null) told.set("closed", [...place.closed].join(","));
    return `#${told}`;
  }
  if (place.from) told.set("from", place.from);
  told.set("peer", place.peer);
  told.set("range", place.range);
  if (place.range === "custom") {
    told.set("since", minutes(place.since));
    told.set("until", minutes(place.until));
  }
  return `#${told}`.replaceAll("%3A", ":");
}

/** Returns the time a place shows, now being `now`: where it begins and ends, and its step in seconds. */
export function timeOf(place, now) {
  if (place.range === "custom") {
    const until = Math.min(place.until, now);
    const fits = ([step, kept]) => now - place.since <= kept - MARGIN && (until - place.since) / (step * 1000) <= MOST_POINTS;
    const [step] = STEPS.find(fits) ?? [86_400];
    return aligned(place.since, until, step);
  }
  const { length, step } = RANGES[place.range];
  return aligned(now - length + (step < 60 ? MARGIN : 0), now, step);
}

/** Points begin at whole steps, so that they are the same ones at the next look. */
function aligned(since, until, step) {
  const first = Math.floor(since / (step * 1000)) * step * 1000;
  return { since: first, until: Math.max(Math.ceil(until / (step * 1000)) * step * 1000, first + step * 1000), step };
}

function minutes(time) {
  return `${new Date(time).toISOString().slice(0, 16)}Z`;
}
