// Traces: what was done for each request, in which service, and when, as a waterfall.

import { clock, h, milliseconds, replace, svgTitle, table } from "./dom.js";
import { ask } from "./session.js";
import { logLines } from "./logs.js";

export function tracesView(state, { argument }) {
  return argument ? oneTrace(argument) : listOfTraces(state);
}

function listOfTraces(state) {
  const text = h("input", { type: "search", spellcheck: "false" });
  const failed = h("input", { type: "checkbox" });
  const least = h("input", { type: "number", min: 0, value: 0 });
  const list = h("div", {});
  function update(part) {
    if (part !== "traces" && part !== "filter") return;
    const found = [...state.traces.values()].reverse().filter((one) => (!failed.checked || one.error) && one.ms >= Number(least.value)
      && `${one.name} ${one.services.join(" ")} ${one.request} ${one.trace} ${one.error}`.toLowerCase().includes(text.value.toLowerCase()));
    replace(list, table(`${found.length} traces, the newest first`, [
      { title: "Began", class: "nowrap", cell: (one) => clock(one.began) },
      { title: "What", cell: (one) => h("a", { href: `#/traces/${one.trace}`, "data-key": one.trace }, one.name) },
      { title: "Services", cell: (one) => one.services.join(", ") }, { title: "Spans", number: true, cell: (one) => one.spans },
      { title: "Time", number: true, cell: (one) => milliseconds(one.ms) },
      { title: "Error", cell: (one) => h("span", { class: "bad" }, one.error) }, { title: "Request", class: "mono", cell: (one) => one.request },
    ], found.slice(0, 150), "No traces yet: they are kept from when somebody looks. Make a request."));
  }
  return { element: h("div", { class: "panel" },
    h("div", { class: "bar", oninput: () => update("filter") }, h("label", {}, "Text, request, or trace", text), h("label", {}, "At least, in ms", least), h("label", { class: "check" }, failed, "failed only")), list), update };
}

function oneTrace(id) {
  const element = h("div", {}, h("p", { class: "quiet" }, "loading"));
  const load = async () => {
    try {
      const { spans, logs } = await ask(`/console/traces/${encodeURIComponent(id)}`);
      replace(element, h("div", { class: "panel" }, waterfall(id, spans)), h("div", { class: "panel" }, h("h3", {}, "Logs"),
        logs.length ? logLines(logs) : h("p", { class: "quiet" }, "No log record belongs to it.")));
    } catch (error) {
      replace(element, h("p", { class: "bad", role: "alert" }, error.message));
    }
  };
  load();
  return { element };
}

function waterfall(id, spans) {
  const start = Math.min(...spans.map((span) => span.began));
  const total = Math.max(...spans.map((span) => span.began + span.seconds)) - start || 1e-6;
  const ids = new Set(spans.map((span) => span.id));
  const children = Map.groupBy ? Map.groupBy(spans, (span) => (ids.has(span.parent) ? span.parent : "")) : grouped(spans, ids);
  const rows = [];
  const add = (parent, depth) => {
    for (const span of children.get(parent) ?? []) {
      rows.push(row(span, depth));
      if (span.id) add(span.id, depth + 1);
    }
  };
  const row = (span, depth) => {
    const from = ((span.began - start) / total) * 1000;
    const wide = Math.max((span.seconds / total) * 1000, 3);
    const attributes = span.attributes.map(([name, value]) => `${name}=${value}`).join("\n");
    const name = `${"\u00a0\u00a0".repeat(depth)}${span.service} · ${span.name}`;
    return h("div", { class: `span ${span.kind === "CONSUMER" ? "event" : ""} ${span.error ? "failed" : ""}`, role: "listitem" },
      h("div", { class: "name", title: `${name}\n${attributes}` }, name, " ", h("span", { class: span.error ? "bad" : "quiet" }, milliseconds(span.seconds * 1000), span.error ? ` ${span.error}` : "")),
      h("svg", { viewBox: "0 0 1000 18", preserveAspectRatio: "none", "aria-hidden": "true" }, svgTitle(`${milliseconds(span.seconds * 1000)} from ${milliseconds((span.began - start) * 1000)}`), h("rect", { class: "bar-of", x: Math.min(from, 997), y: 3, width: wide, height: 12, rx: 2 })));
  };
  add("", 0);
  return [h("p", {}, "Trace ", h("code", {}, id), `, ${spans.length} spans, ${milliseconds(total * 1000)}, began ${clock(start)}. `, h("a", { href: "#/traces" }, "All traces")),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Spans" }, h("div", { class: "waterfall", role: "list" }, rows))];
}

function grouped(spans, ids) {
  const found = new Map();
  for (const span of spans) {
    const parent = ids.has(span.parent) ? span.parent : "";
    found.set(parent, [...(found.get(parent) ?? []), span]);
  }
  return found;
}
