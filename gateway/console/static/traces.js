// Traces: what was done for each request, in which service, and when, as a waterfall.

import { clock, h, milliseconds, region, replace, svgTitle, table } from "./dom.js";
import { ask } from "./session.js";
import { logLines } from "./logs.js";

export function tracesView(state, argument) {
  return argument ? oneTrace(argument, state) : listOfTraces(state);
}

function listOfTraces(state) {
  const text = h("input", { type: "search", spellcheck: "false" });
  const failed = h("input", { type: "checkbox" });
  const ofClients = h("input", { type: "checkbox", checked: true });
  const least = h("input", { type: "number", min: 0, value: 0 });
  const list = h("div", {});
  function update(part) {
    if (part !== "traces" && part !== "filter") return;
    const found = [...state.traces.values()].sort((one, other) => other.began - one.began).filter((one) => (!ofClients.checked || one.services.includes("gateway")) && (!failed.checked || one.error) && one.ms >= Number(least.value)
      && `${one.name} ${one.services.join(" ")} ${one.request} ${one.trace} ${one.error}`.toLowerCase().includes(text.value.toLowerCase()));
    replace(list, table(`${found.length} traces, the newest first`, [
      { title: "Began", class: "nowrap", cell: (one) => clock(one.began) },
      { title: "What", cell: (one) => h("a", { href: `#/traces/${one.trace}` }, one.name) },
      { title: "Services", cell: (one) => one.services.join(", ") }, { title: "Spans", number: true, cell: (one) => one.spans },
      { title: "Time", number: true, cell: (one) => milliseconds(one.ms) },
      { title: "Error", cell: (one) => h("span", { class: "bad" }, one.error) }, { title: "Request", class: "mono", cell: (one) => one.request },
    ], found.slice(0, 150), "No traces yet: they are kept from when somebody looks. Make a request.", (one) => one.trace));
  }
  return { element: h("div", { class: "panel" },
    h("div", { class: "bar", oninput: () => update("filter") }, h("label", {}, "Text, request, or trace", text), h("label", {}, "At least, in ms", least), h("label", { class: "check" }, ofClients, "of clients only"), h("label", { class: "check" }, failed, "failed only")), list), update };
}

function oneTrace(id, state) {
  const element = h("div", {}, h("p", { class: "quiet", role: "status" }, "Waiting for its spans, which come once a second."));
  let seen = 0;
  let loading = false;
  async function load() {
    loading = true;
    try {
      const { spans, logs } = await ask(`/console/traces/${encodeURIComponent(id)}`);
      replace(element, h("div", { class: "panel" }, waterfall(id, spans)), h("div", { class: "panel" }, h("h3", {}, "Logs"),
        logs.length ? logLines(logs) : h("p", { class: "quiet" }, "No log record belongs to it.")));
    } catch (error) {
      replace(element, h("p", { class: "bad", role: "alert" }, error.message));
    }
    loading = false;
  }
  // It has grown, or its last log record has come a moment after its spans
  function update(part) {
    const known = state.traces.get(id);
    const size = known ? known.spans + state.logs.filter((line) => line.trace === id).length : 0;
    if ((part !== "traces" && part !== "logs") || loading || size === seen) return;
    seen = size;
    load();
  }
  return { element, update };
}

function waterfall(id, spans) {
  const start = Math.min(...spans.map((span) => span.began));
  const total = Math.max(...spans.map((span) => span.began + span.seconds)) - start || 1e-6;
  const children = byParent(spans);
  const rows = [];
  const left = new Set(spans);
  const add = (parent, depth) => {
    for (const span of children.get(parent) ?? []) {
      if (!left.delete(span)) continue;
      rows.push(row(span, depth));
      add(span.id, depth + 1);
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
  for (const span of left) rows.push(row(span, 0)); // their parents are each other
  return [h("p", {}, "Trace ", h("code", {}, id), `, ${spans.length} spans, ${milliseconds(total * 1000)}, began ${clock(start)}. `, h("a", { href: "#/traces" }, "All traces")),
    region("Spans", h("div", { class: "waterfall", role: "list" }, rows))];
}

function byParent(spans) {
  const ids = new Set(spans.map((span) => span.id));
  const found = new Map();
  for (const span of spans) {
    const parent = ids.has(span.parent) && span.parent !== span.id ? span.parent : "";
    found.set(parent, [...(found.get(parent) ?? []), span]);
  }
  return found;
}
