// Tables that change in place: a row that stays keeps its element, so that focus, selection and screen readers stay too.

/** Makes a table's body show these rows: each has a `key`, `cells` of text or elements, and a `className` for its row. */
export function fill(body, rows) {
  const present = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  rows.forEach((row, index) => {
    let element = present.get(row.key);
    present.delete(row.key);
    if (!element) {
      element = document.createElement("tr");
      element.dataset.key = row.key;
      for (const cell of row.cells) element.append(document.createElement("td"), "");
      row.cells.forEach((cell, column) => (element.cells[column].className = cell.className ?? ""));
    }
    row.cells.forEach((cell, column) => set(element.cells[column], cell));
    if (body.rows[index] !== element) body.insertBefore(element, body.rows[index] ?? null);
  });
  for (const gone of present.values()) gone.remove();
}

/** Sets an element's text only where it differs: selected text stays selected. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function set(element, cell) {
  if (cell.className !== undefined && element.className !== cell.className) element.className = cell.className;
  if (cell.href === undefined) return say(element, cell.text);
  let link = element.firstElementChild;
  if (!link) {
    link = document.createElement("a");
    element.replaceChildren(link);
  }
  if (link.getAttribute("href") !== cell.href) link.setAttribute("href", cell.href);
  say(link, cell.text);
}
