// Elements, and how values are shown. Text is always set as text, so nothing that a service sends becomes markup.

const ofSvg = ["svg", "g", "rect", "path", "text"];
const handlers = ["onclick", "oninput", "onsubmit", "onclose"];

export function h(name, attributes = {}, ...children) {
  const element = ofSvg.includes(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element[key] = value;
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...shown(children));
  return element;
}

export function svgTitle(text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", "title");
  element.textContent = text;
  return element;
}

const shown = (children) => children.flat(3).filter((child) => child !== null && child !== undefined && child !== false);

// A table in a region that can be scrolled. `key` names each row, so that it stays the same element when others come and go
export function table(caption, columns, rows, empty, key) {
  if (!rows.length) return h("p", { class: "quiet" }, empty);
  const of = (column) => (column.number ? "number" : column.class ?? null);
  return region(caption, h("table", {}, h("caption", {}, caption),
    h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: of(column) }, column.title)))),
    h("tbody", {}, rows.map((row) => h("tr", { "data-key": key(row) }, columns.map((column) => h("td", { class: of(column) }, column.cell(row))))))));
}

export const region = (label, ...children) => h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, children);

// Give an element other content. What stays the same stays the same element: it keeps the focus, the selection, and its scroll position
export function replace(element, ...children) {
  become(element, shown(children).map((child) => (child instanceof Node ? child : document.createTextNode(child))));
}

function become(element, wanted) {
  const keyed = new Map([...element.children].filter((child) => child.dataset.key).map((child) => [child.dataset.key, child]));
  const needed = new Set(wanted.map((child) => child.dataset?.key).filter(Boolean));
  let at = element.firstChild;
  const skipTo = () => { while (at?.dataset?.key && !needed.has(at.dataset.key)) { const gone = at; at = at.nextSibling; gone.remove(); } };
  for (const child of wanted) {
    skipTo();
    const key = child.dataset?.key;
    const same = key ? keyed.get(key) : at && !at.dataset?.key && at.nodeName === child.nodeName ? at : null;
    if (!same) {
      element.insertBefore(child, at);
    } else if (same === at) {
      at = at.nextSibling;
      update(same, child);
    } else {
      element.insertBefore(same, at);
      update(same, child);
    }
  }
  while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
}

function update(old, wanted) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== wanted.data) old.data = wanted.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!wanted.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of wanted.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const name of handlers) old[name] = wanted[name];
  become(old, [...wanted.childNodes]);
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

// What the page remembers, where the browser lets it
export function remembered(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(`callboard-${name}`, value);
    return localStorage.getItem(`callboard-${name}`);
  } catch {
    return null;
  }
}
