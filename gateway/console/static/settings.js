// Settings: each with its value and where it was set. Secrets are masked before they leave the gateway.

import { h, replace, table } from "./dom.js";
import { ask } from "./session.js";

export function settingsView() {
  const text = h("input", { type: "search", spellcheck: "false" });
  const set = h("input", { type: "checkbox" });
  const found = h("div", {});
  let items = null;
  const show = () => {
    const rows = (items ?? []).filter((one) => (!set.checked || one.source !== "default") && `${one.setting} ${one.value} ${one.source}`.toLowerCase().includes(text.value.toLowerCase()));
    replace(found, table(`${rows.length} settings of the gateway's process`, [
      { title: "Setting", class: "mono", cell: (one) => one.setting }, { title: "Value", class: "mono wrap", cell: (one) => one.value }, { title: "Source", cell: (one) => one.source },
    ], rows, items ? "No setting fits." : "loading", (one) => one.setting));
  };
  ask("/console/settings").then((answer) => { items = answer.items; show(); }, (error) => replace(found, h("p", { class: "bad", role: "alert" }, error.message)));
  show();
  return { element: h("div", { class: "panel" }, h("div", { class: "bar", oninput: show }, h("label", {}, "Text", text), h("label", { class: "check" }, set, "set only, no defaults")), found) };
}
