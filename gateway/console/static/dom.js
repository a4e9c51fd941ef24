// Elements, and how values are shown. Text is always set as text, so nothing that a service sends becomes markup.

export function h(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "path", "text", "title", "line"].includes(name) && name !== "title";
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  return fill(element, attributes, children);
}

export function svgTitle(text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", "title");
  element.textContent = text;
  return element;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function table(caption, columns, rows, empty) {
  if (!rows.length) return h("p", { class: "quiet" }, empty);
  const of = (column) => (column.number ? "number" : column.class ?? null);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: of(column) }, column.title)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map((column) => h("td", { class: of(column) }, column.cell(row))))))));
}

// Replace the content of an element, but keep the focus on what has the same key, and the scroll positions of regions
export function replace(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.dataset.key;
  const scrolled = [...element.querySelectorAll(".scroll, .list")].map((one) => [one.scrollLeft, one.scrollTop]);
  element.replaceChildren(...children.flat(3).filter(Boolean));
  [...element.querySelectorAll(".scroll, .list")].forEach((one, at) => {
    if (scrolled[at]) [one.scrollLeft, one.scrollTop] = scrolled[at];
  });
  if (key) element.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

export const number = (value, digits = 1) =>
  value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: value < 10 ? digits : 0 });

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1000) return `${number(value / 1000)} s`;
  return `${value < 1 ? value.toFixed(2) : value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;
}

export const clock = (seconds) => {
  const at = new Date(seconds * 1000);
  return `${at.toLocaleTimeString("en-GB")}.${String(at.getMilliseconds()).padStart(3, "0")}`;
};

export function pretty(value) {
  return JSON.stringify(value, null, 2);
}
