"use strict";
// Search, sort and pages for the table of classes; without this script the whole table is there all the same.
(() => {
  const table = document.getElementById("classes");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const search = document.getElementById("search");
  const turn = document.getElementById("turn");
  const [previous, next] = turn.querySelectorAll("button");
  const ROWS = 50; // of a page
  let first = 0;
  const show = (from) => {
    const wanted = search.value.trim().toLowerCase();
    const found = rows.filter((row) => row.textContent.toLowerCase().includes(wanted));
    first = Math.max(0, Math.min(from, found.length - 1));
    const shown = new Set(found.slice(first, first + ROWS));
    for (const row of rows) row.hidden = !shown.has(row);
    const count = (number) => number.toLocaleString("en");
    const last = Math.min(first + ROWS, found.length);
    document.getElementById("place").textContent =
      `${count(first + 1)} to ${count(last)} of ${count(found.length)} classes`;
    turn.hidden = found.length <= ROWS;
    previous.disabled = first === 0;
    next.disabled = last === found.length;
    table.parentElement.scrollTop = 0;
  };
  search.parentElement.hidden = false;
  search.addEventListener("input", () => show(0));
  previous.addEventListener("click", () => show(first - ROWS));
  next.addEventListener("click", () => show(first + ROWS));
  show(0);
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    if (head.classList.contains("plain")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const downward = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", downward ? "descending" : "ascending");
      const value = (row) => {
        const text = row.cells[column].dataset.value;
        return text === undefined || text === "" ? NaN : Number(text);
      };
      const words = head.classList.contains("words");
      rows.sort((one, two) => {
        if (words) {
          const order = one.cells[column].textContent.localeCompare(two.cells[column].textContent);
          return downward ? -order : order;
        }
        const [a, b] = [value(one), value(two)];
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return downward ? b - a : a - b;
      });
      body.append(...rows);
      show(0);
    });
  });
})();
