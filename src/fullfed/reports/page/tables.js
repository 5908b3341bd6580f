// Tables that sort: rows in the order of a column, by the button in its heading.

function makeSortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const first = heading.dataset.first;
      const second = first === "ascending" ? "descending" : "ascending";
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const key = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) => compare(key(a), key(b), order));
      body.append(...rows);
    });
  });
}

// Numbers by value, words by the alphabet, and what has no value last in both orders.
function compare(a, b, order) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const numbers = [Number(a), Number(b)];
  const difference = numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
  return order === "ascending" ? difference : -difference;
}
