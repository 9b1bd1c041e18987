// Colours of the heat-map and the charts, for eyes of every kind.
//
// Two rules make them readable without telling red from green. The scale of round trips only ever falls in lightness (light
// page) or rises (dark page), away from the paper: more ink is slower, on a photocopy too. The scale of deviations runs from
// blue over grey to orange, an axis that the common colour blindnesses keep. States are never told by colour alone: each
// has a shape as well.

/** Steps of a scale: more than the eye tells apart, and few enough to be kept as ready strings. */
const STEPS = 64;

/** Stops of the scale of round trips, each [lightness, chroma, hue in degrees] in OKLCH. */
const SEQUENTIAL = {
  light: [[0.965, 0.035, 110], [0.88, 0.07, 160], [0.76, 0.09, 205], [0.59, 0.11, 240], [0.4, 0.12, 265]],
  dark: [[0.26, 0.05, 275], [0.39, 0.1, 265], [0.54, 0.11, 240], [0.72, 0.1, 205], [0.92, 0.09, 150]],
};

/** Stops of the scale of deviations: faster, as usual, slower. */
const DIVERGING = {
  light: [[0.5, 0.15, 255], [0.75, 0.09, 245], [0.945, 0.004, 250], [0.79, 0.12, 70], [0.55, 0.16, 45]],
  dark: [[0.72, 0.13, 240], [0.48, 0.09, 250], [0.3, 0.006, 260], [0.55, 0.11, 55], [0.8, 0.15, 70]],
};

/** Returns the palette of a page: `dark` or `light`. */
export function palette(theme) {
  return { theme, sequential: ramp(SEQUENTIAL[theme]), diverging: ramp(DIVERGING[theme]) };
}

/** Returns the colour at a place between 0 and 1 of a scale. */
export function at(scale, place) {
  const index = Math.round(Math.min(1, Math.max(0, place)) * (scale.length - 1));
  return scale[index];
}

/** Returns whether dark ink is the more readable one on a colour `rgb(r g b)`. */
export function wantsDarkInk(colour) {
  const [r, g, b] = channels(colour).map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.2;
}

/** Returns the three channels of a colour `rgb(r g b)`, 0 to 255. */
export function channels(colour) {
  return colour.match(/\d+/g).slice(0, 3).map(Number);
}

function ramp(stops) {
  return Array.from({ length: STEPS }, (_, step) => {
    const place = (step / (STEPS - 1)) * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    return rgb(...between(polar(stops[first]), polar(stops[first + 1]), place - first));
  });
}

function between(from, to, share) {
  return from.map((value, axis) => value + (to[axis] - value) * share);
}

/** OKLCH to OKLab; mixed there, no stop lends its neighbours a hue that neither has. */
function polar([lightness, chroma, hue]) {
  const angle = (hue * Math.PI) / 180;
  return [lightness, chroma * Math.cos(angle), chroma * Math.sin(angle)];
}

/** OKLab to sRGB; the matrices are those of the OKLab definition (B. Ottosson, 2020). */
function rgb(lightness, a, b) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const channel = (value) => Math.round(255 * Math.min(1, Math.max(0, encoded(value))));
  const red = channel(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s);
  const green = channel(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s);
  const blue = channel(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s);
  return `rgb(${red} ${green} ${blue})`;
}

function encoded(value) {
  return value <= 0.0031308 ? 12.92 * value : 1.055 * Math.max(value, 0) ** (1 / 2.4) - 0.055;
}

function linear(channel) {
  const value = channel / 255;
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
}
