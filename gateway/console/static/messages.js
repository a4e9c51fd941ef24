// Messages: a tail of events and signals, from now on. Nobody retains anything for it.

import { clock, h, region } from "./dom.js";
import { follow } from "./session.js";

const kept = 300;

let view = null;

// The view goes on listening while another one is shown, so that what a request causes can be read afterwards
export function messagesView() {
  view ??= makeView();
  return view;
}

function makeView() {
  const status = h("p", { role: "status", class: "quiet" }, "connecting");
  const rows = h("tbody", {});
  const found = h("table", {}, h("caption", {}, `The last ${kept} messages since this view was opened, the newest first`),
    h("thead", {}, h("tr", {}, ["Time", "Name", "Body", "From", "Kind", "Trace"].map((title) => h("th", { scope: "col" }, title)))), rows);
  const match = h("input", { name: "match", value: "*", spellcheck: "false" });
  const kind = h("select", { name: "kind" }, h("option", { value: "" }, "events and signals"), h("option", { value: "event" }, "events"), h("option", { value: "signal" }, "signals"));
  const text = h("input", { name: "text", type: "search", spellcheck: "false", oninput: () => [...rows.children].forEach(filter) });
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => { paused = !paused; pause.setAttribute("aria-pressed", paused); pause.textContent = paused ? "Continue" : "Pause"; } }, "Pause");
  let paused = false;
  let following = new AbortController();

  const filter = (row) => { row.hidden = !row.textContent.toLowerCase().includes(text.value.toLowerCase()); };

  function add(what) {
    return (message) => {
      if (paused) return;
      const at = message.at ? new Date(message.at).getTime() / 1000 : Date.now() / 1000;
      const trace = message.trace?.slice(3, 35);
      const row = h("tr", {}, h("td", { class: "nowrap" }, clock(at)), h("td", {}, message.name), h("td", { class: "wrap" }, h("code", {}, JSON.stringify(message.body))),
        h("td", {}, message.from), h("td", {}, what), h("td", { class: "mono" }, trace ? h("a", { href: `#/traces/${trace}` }, trace.slice(0, 8)) : ""));
      filter(row);
      rows.prepend(row);
      while (rows.children.length > kept) rows.lastChild.remove();
    };
  }

  function start(event) {
    event?.preventDefault();
    following.abort();
    following = new AbortController();
    rows.replaceChildren();
    const query = new URLSearchParams([["match", match.value || "*"], ...(kind.value ? [["kind", kind.value]] : [])]);
    const said = (state) => { status.textContent = state === "live" ? `Listening to ${kind.value || "event"}s ${kind.value ? "" : "and signals "}that match ${match.value || "*"}.` : state; };
    follow(`/console/tail?${query}`, { event: add("event"), signal: add("signal"), gap: (gap) => { status.textContent = `A gap in the events of ${gap.from}: ${gap.why}`; } }, following.signal, said);
  }
  start();
  return { element: h("div", { class: "panel" },
    h("form", { class: "bar", onsubmit: start }, h("label", {}, "Names", match), h("label", {}, "Kind", kind), h("button", {}, "Listen"), h("label", {}, "Text", text), pause),
    status, region("Messages", found)) };
}
