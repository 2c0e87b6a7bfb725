// Tables of the class "sortable": a click, Enter or Space on a heading sorts by its column, again
// the other way round. Cells with data-value sort as numbers, cells without one as text; empty
// cells stay last.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    // The button is made here, so that a page without scripts promises nothing.
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = [...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column], down));
      body.append(...sorted);
    });
  });
}

function compare(a, b, down) {
  const [x, y] = [a, b].map((cell) => cell.dataset.value);
  const [left, right] = [a, b].map((cell) => cell.textContent);
  if (!left || !right) return !left - !right;
  const order = x !== undefined && y !== undefined
    ? (Number(x) > Number(y)) - (Number(x) < Number(y))
    : left.localeCompare(right, undefined, { numeric: true });
  return down ? -order : order;
}
