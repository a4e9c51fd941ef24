// The console: it shows one view at a time, and passes on to it what the gateway sends once a second.

import { h, remembered } from "./dom.js";
import { begin, follow } from "./session.js";
import { mapView } from "./map.js";
import { instancesView } from "./instances.js";
import { messagesView } from "./messages.js";
import { tracesView } from "./traces.js";
import { logsView } from "./logs.js";
import { streamsView } from "./streams.js";
import { requestsView } from "./requests.js";
import { settingsView } from "./settings.js";

const views = {
  map: ["Map", mapView], instances: ["Instances", instancesView], messages: ["Messages", messagesView], traces: ["Traces", tracesView],
  logs: ["Logs", logsView], streams: ["Streams", streamsView], requests: ["Requests", requestsView], settings: ["Settings", settingsView],
};
const main = document.querySelector("#main");
const status = document.querySelector("#status");
const keptTraces = 300;
const keptLogs = 2000;

// What is known of the system. Views read it, and are told which part has changed.
const state = { snapshot: null, traces: new Map(), logs: [], streams: [] };
let view = null;
let lines = 0;

const say = (text) => { if (status.textContent !== text) status.textContent = text; };

function changed(part) {
  view?.update?.(part);
}

const handlers = {
  snapshot: (data) => { state.snapshot = data; changed("snapshot"); },
  streams: (data) => { state.streams = data; changed("streams"); },
  traces: (data) => {
    for (const trace of data) {
      state.traces.delete(trace.trace);
      state.traces.set(trace.trace, trace);
    }
    for (const id of state.traces.keys()) {
      if (state.traces.size <= keptTraces) break;
      state.traces.delete(id);
    }
    changed("traces");
  },
  logs: (data) => {
    state.logs = [...state.logs, ...data.map((line) => ({ ...line, number: (lines += 1) }))].slice(-keptLogs);
    changed("logs");
  },
};

function show() {
  const [name, ...rest] = location.hash.slice(2).split("/");
  const chosen = Object.hasOwn(views, name) ? name : "map";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${chosen}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const [title, make] = views[chosen];
  document.title = document.title.replace(/^.*?(?=Console)/, `${title} · `);
  view = make(state, rest.join("/"));
  main.replaceChildren(h("h2", {}, title), view.element);
  for (const part of ["snapshot", "streams", "traces", "logs"]) changed(part);
}

function themeButton() {
  const button = document.querySelector("#theme");
  const themes = ["system", "light", "dark"];
  const use = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    remembered("theme", theme);
    changed("theme");
  };
  let at = Math.max(themes.indexOf(remembered("theme")), 0);
  button.addEventListener("click", () => use(themes[(at = (at + 1) % themes.length)]));
  use(themes[at]);
}

// One key for each view, as the numbers on the links say. Not while something is typed
function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, dialog")) return;
  const name = Object.keys(views)[Number(event.key) - 1];
  if (name) location.hash = `/${name}`;
}

document.querySelector("#views").append(
  ...Object.entries(views).map(([name, [title]], at) => h("li", {}, h("a", { href: `#/${name}`, "aria-keyshortcuts": at + 1, title: `key ${at + 1}` }, title))));
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
themeButton();
try {
  say("logging in");
  await begin();
  say("connecting");
  addEventListener("hashchange", () => { show(); main.focus({ preventScroll: true }); });
  addEventListener("keydown", keys);
  show();
  await follow("/console/events", handlers, new AbortController().signal, say);
} catch (error) {
  say("not connected");
  main.replaceChildren(h("p", { class: "bad", role: "alert" }, error.message));
}
