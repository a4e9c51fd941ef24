// Logs: the last records of all nodes, by level, service, request, and text.

import { clock, h, region, replace } from "./dom.js";

const levels = ["debug", "info", "warning", "error", "critical"];
const shown = 300;

export function logLines(lines) {
  const style = (level) => (level === "error" || level === "critical" ? "bad" : level === "warning" ? "warn" : "quiet");
  return region("Log records", h("table", {},
    h("thead", {}, h("tr", {}, ["Time", "Level", "Service", "Message", "Request"].map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, lines.map((line, at) => h("tr", { "data-key": line.number ?? at }, h("td", { class: "nowrap" }, clock(line.at)), h("td", { class: style(line.level) }, line.level),
      h("td", {}, line.service || line.logger), h("td", { class: "mono wrap" }, line.message),
      h("td", { class: "mono" }, line.request ? h("a", { href: `#/logs/${line.request}`, title: line.request }, line.request.slice(0, 8)) : "",
        line.trace ? [" ", h("a", { href: `#/traces/${line.trace}`, "aria-label": `trace of request ${line.request.slice(0, 8)}` }, "trace")] : ""))))));
}

export function logsView(state, argument) {
  const level = h("select", {}, levels.map((name) => h("option", { value: name, selected: name === "info" }, name)));
  const service = h("input", { spellcheck: "false" });
  const request = h("input", { value: argument, spellcheck: "false", class: "mono" });
  const text = h("input", { type: "search", spellcheck: "false" });
  const lines = h("div", {});

  function update(part) {
    if (part !== "logs" && part !== "filter") return;
    const least = levels.indexOf(level.value);
    const found = state.logs.filter((line) => levels.indexOf(line.level) >= least && (!service.value || line.service === service.value || line.logger === service.value)
      && (!request.value || line.request === request.value || line.trace === request.value) && line.message.toLowerCase().includes(text.value.toLowerCase()));
    replace(lines, h("p", { class: "quiet", role: "status" }, `${found.length} records${found.length > shown ? `, of which the last ${shown} are shown` : ""}, the newest first`),
      found.length ? logLines(found.slice(-shown).reverse()) : h("p", { class: "quiet" }, "No record fits, since somebody has begun to look."));
  }
  const bar = h("div", { class: "bar", oninput: () => update("filter") }, h("label", {}, "Level, at least", level), h("label", {}, "Service", service),
    h("label", {}, "Request or trace", request), h("label", {}, "Text", text));
  return { element: h("div", { class: "panel" }, bar, lines), update };
}
