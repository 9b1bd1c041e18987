// Drawing on a canvas: its size, its font, a straight line, a part of it.

/** Returns the page's theme, `dark` or `light`. */
export function theme() {
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** Makes a canvas as large as an element, at the screen's resolution, and returns its context in CSS pixels. */
export function resized(canvas, around) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [around.clientWidth, around.clientHeight];
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

/** The page's font at a size in pixels. */
export function font(size) {
  return `${size}px system-ui, "DejaVu Sans", sans-serif`;
}

/** Draws a straight line one pixel wide. */
export function stroke(context, fromX, fromY, toX, toY) {
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(fromX, fromY);
  context.lineTo(toX, toY);
  context.stroke();
}

/** Draws with everything outside a rectangle left as it is. */
export function clipped(context, left, top, right, bottom, draw) {
  context.save();
  context.beginPath();
  context.rect(left, top, right - left, bottom - top);
  context.clip();
  draw();
  context.restore();
}
