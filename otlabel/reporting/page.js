"use strict";
// Search and sort for the table of classes; without this script the table is there all the same.
(() => {
  const table = document.getElementById("classes");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const search = document.getElementById("search");
  search.parentElement.hidden = false;
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
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
    });
  });
})();
