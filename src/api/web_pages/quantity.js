// Numbers as people read them: always with a unit, never more digits than were measured.

/** A duration of a round trip, in seconds, as "12.61 ms"; a dash where it is not known. */
export function roundTrip(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const size = Math.abs(seconds);
  if (size < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (size < 1) return `${digits(seconds * 1e3)} ms`;
  return `${digits(seconds)} s`;
}

/** A round number of seconds, as a scale has them: "200 µs", "20 ms". */
export function round(seconds) {
  return roundTrip(seconds).replace(/\.(\d*?)0+ /, (_, kept) => (kept ? `.${kept} ` : " "));
}

/** A difference of two round trips, with its sign. */
export function difference(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (Math.abs(seconds) < 5e-7) return "±0 µs";
  const text = roundTrip(Math.abs(seconds));
  return seconds < 0 ? `−${text}` : `+${text}`;
}

/** A ratio between 0 and 1 in per cent. */
export function percent(ratio) {
  if (!Number.isFinite(ratio)) return "–";
  const value = ratio * 100;
  if (value === 0) return "0 %";
  if (value >= 10) return `${value.toFixed(value > 99.9 && value < 100 ? 2 : 0)} %`;
  if (value >= 1) return `${value.toFixed(1)} %`;
  return `${Number(value.toPrecision(2))} %`;
}

/** A loss with its 95 % interval: what the probes cannot rule out, so never a bare zero. */
export function loss(measured) {
  if (!measured || !(measured.sent > 0)) return "–";
  if (measured.lost === 0) return `<${percent(measured.high)}`;
  return `${percent(measured.lost / measured.sent)} (${percent(measured.low)} to ${percent(measured.high)})`;
}

/** A span of time in seconds, in its largest unit: "9 s", "4 min", "3 h", "12 d". */
export function span(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  if (whole < 172_800) return `${Math.floor(whole / 3600)} h`;
  return `${Math.floor(whole / 86_400)} d`;
}

/** A point in time, in milliseconds since 1970, to the second and in UTC. */
export function moment(milliseconds) {
  if (!Number.isFinite(milliseconds)) return "–";
  return `${new Date(milliseconds).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

/** The time of day of a point in time, in UTC. */
export function clock(milliseconds) {
  return `${new Date(milliseconds).toISOString().slice(11, 19)} UTC`;
}

/** A count with its noun: "1 node", "2 nodes". */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** Three digits that count, as far as two decimals. */
function digits(value) {
  const size = Math.abs(value);
  return value.toFixed(size < 100 ? 2 : size < 1000 ? 1 : 0);
}
