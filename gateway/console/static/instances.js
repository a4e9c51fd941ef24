// Instances: which services run where, with their version and load.

import { h, number, replace, table } from "./dom.js";

export function instancesView(state) {
  const element = h("div", { class: "panel" });
  function update(part) {
    if (part !== "snapshot" || !state.snapshot) return;
    const nodes = new Set(state.snapshot.instances.map((one) => one.node)).size;
    replace(element, table(`${state.snapshot.instances.length} instances on ${nodes === 1 ? "1 node" : `${nodes} nodes`}`, [
      { title: "Service", cell: (one) => one.service }, { title: "Version", cell: (one) => one.version }, { title: "Node", class: "mono", cell: (one) => one.node },
      { title: "State", cell: (one) => h("span", { class: one.state === "there" ? "good" : "warn" }, one.state) },
      { title: "Load", number: true, cell: (one) => number(one.load) }, { title: "In flight", number: true, cell: (one) => number(one.in_flight) },
      { title: "Requests", number: true, cell: (one) => number(one.requests) }, { title: "Calls", cell: (one) => one.calls.join(", ") || "–" },
      { title: "Instance", class: "mono", cell: (one) => one.instance },
    ], state.snapshot.instances, "No instance is known.", (one) => one.instance));
  }
  return { element, update };
}
