"use strict";
// Tables: a click on a column's head sorts by it, numbers by value, dashes last.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((head, column) => {
    const cells = () => [...body.rows].map((row) => row.cells[column]);
    if (cells().some((cell) => "value" in cell.dataset)) {
      for (const cell of [head, ...cells()]) cell.classList.add("number");
    }
    head.addEventListener("click", () => {
      const down = head.ariaSort === "ascending";
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.ariaSort = down ? "descending" : "ascending";
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const missing = (key(a) === "—") - (key(b) === "—");
        const order = key(a).localeCompare(key(b), undefined, { numeric: true });
        const numbers = Number(key(a)) - Number(key(b));
        return missing || (down ? -1 : 1) * (Number.isNaN(numbers) ? order : numbers);
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
// A button copies what is above it; what it selects shows that it did.
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = document.execCommand("copy") ? "copied" : "copy what is marked";
  });
}
// Pictures: a click shows one as large as the window, another one or Escape puts it back.
for (const image of document.querySelectorAll(".picture img")) {
  image.addEventListener("click", () => image.parentElement.classList.toggle("large"));
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelector(".large")?.classList.remove("large");
});
// Charts: their text and lines take the page's colours, also when those change.
const dark = matchMedia("(prefers-color-scheme: dark)");
function paint() {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, line, card] = ["--ink", "--soft", "--line", "--card"].map((name) =>
    style.getPropertyValue(name).trim());
  const colours = {
    axis_label_text_color: soft, major_label_text_color: soft, label_text_color: ink,
    axis_line_color: line, major_tick_line_color: line, grid_line_color: line,
  };
  for (const chart of Bokeh.documents) {
    for (const model of chart.roots().flatMap((root) => [...root.references()])) {
      if (model.type === "Legend") model.setv({ background_fill_color: card });
      if (model.tags.includes("cover")) model.setv({ background_fill_color: card });
      if (model.type === "Title" || model.tags.includes("ink")) {
        model.setv({ text_color: ink });
      } else if (model.type !== "Text") {
        const known = Object.entries(colours).filter(([name]) => name in model.properties);
        model.setv(Object.fromEntries(known));
      }
    }
  }
}
// Where fingers scroll the page, a chart must not hold them.
function release() {
  for (const chart of Bokeh.documents) {
    for (const tool of chart.roots().flatMap((root) => root.toolbar.tools)) {
      if (tool.type === "BoxZoomTool") tool.active = false;
    }
  }
}
async function draw(charts) {
  await Promise.all(JSON.parse(charts.textContent).map((item) => Bokeh.embed.embed_item(item)));
  paint();
  dark.addEventListener("change", paint);
  if (matchMedia("(pointer: coarse)").matches) release();
}
const charts = document.getElementById("charts");
Promise.resolve(charts && draw(charts)).then(() => {
  document.documentElement.dataset.drawn = "true";
});
