// The map: services as nodes, and what flows between them as edges. Dots move along the edges as fast as messages do.

import { h, milliseconds, number, replace, svgTitle, table } from "./dom.js";

const width = 136;
const height = 58;
const most = 240; // dots at a time

export function mapView(state) {
  const figure = h("div", { class: "map panel" });
  const flows = h("div", {});
  const canvas = h("canvas", { "aria-hidden": "true" });
  let drawn = "";
  let edges = [];

  function update(part) {
    if (part === "streams") drawn = ""; // who reads whose events is part of the picture
    if (part === "theme") return colours();
    if (part !== "snapshot" && part !== "streams") return;
    if (!state.snapshot) return replace(flows, h("p", { class: "quiet" }, "waiting for the first picture"));
    draw();
    replace(flows, flowTable(state.snapshot));
  }

  function draw() {
    const graph = graphOf(state);
    const narrow = figure.clientWidth > 0 && figure.clientWidth < 700;
    const shape = JSON.stringify([narrow, graph.nodes.map((node) => node.name), graph.edges.map((edge) => edge.key)]);
    if (shape !== drawn) {
      drawn = shape;
      edges = place(graph, narrow, figure, canvas);
    }
    refresh(graph, figure, edges);
    colours();
  }

  let palette = {};
  function colours() {
    const style = getComputedStyle(document.documentElement);
    palette = { call: style.getPropertyValue("--call"), event: style.getPropertyValue("--event"), bad: style.getPropertyValue("--bad") };
  }

  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let last = performance.now();
  function frame(now) {
    if (!canvas.isConnected && figure.isConnected === false) return;
    move(canvas, edges, palette, Math.min((now - last) / 1000, 0.1));
    last = now;
    requestAnimationFrame(frame);
  }
  if (!still) requestAnimationFrame((now) => { last = now; setTimeout(() => requestAnimationFrame(frame)); });

  const legend = h("p", { class: "legend" }, h("span", { class: "call" }, "calls"), h("span", { class: "event" }, "events and signals"),
    h("span", {}, "messages per second, median time, and p99, of the last ten seconds"));
  return { element: h("div", {}, figure, legend, flows), update };
}

function graphOf(state) {
  const { instances, flows, services } = state.snapshot;
  const nodes = new Map([["clients", { name: "clients", instances: [] }]]);
  for (const one of instances) {
    if (!nodes.has(one.service)) nodes.set(one.service, { name: one.service, instances: [], calls: new Set() });
    nodes.get(one.service).instances.push(one);
    for (const callee of one.calls ?? []) nodes.get(one.service).calls.add(callee);
  }
  const edges = new Map();
  const edge = (caller, service, kind) => {
    const key = `${caller} ${service} ${kind}`;
    if (caller === service || !nodes.has(caller) || !nodes.has(service)) return null;
    if (!edges.has(key)) edges.set(key, { key, caller, service, kind, rate: 0, errors: 0, p50: null, p99: null });
    return edges.get(key);
  };
  for (const node of nodes.values()) for (const callee of node.calls ?? []) edge(node.name, callee, "call");
  if (nodes.has("gateway")) edge("clients", "gateway", "call");
  for (const service of state.snapshot.with_routes) edge("gateway", service, "call");
  for (const report of state.streams) for (const one of report.subscriptions) edge(one.publisher, report.service, "event");
  for (const flow of flows) {
    if (!nodes.has(flow.caller)) nodes.set(flow.caller, { name: flow.caller, instances: [], away: true });
    const found = edge(flow.caller, flow.service, flow.kind === "http" || flow.kind === "call" ? "call" : "event");
    if (!found) continue;
    if (flow.rate >= found.rate) Object.assign(found, { p50: flow.p50, p99: flow.p99 });
    found.rate += flow.rate;
    found.errors += flow.errors;
  }
  for (const node of nodes.values()) Object.assign(node, Object.hasOwn(services, node.name) ? services[node.name] : { rate: 0, errors: 0, p50: null, p99: null });
  return { nodes: [...nodes.values()], edges: [...edges.values()] };
}

// Columns by how far a service is from the clients along calls; what nobody calls comes last
function columns({ nodes, edges }) {
  const depth = new Map([["clients", 0], ["gateway", 1]]);
  for (const node of nodes) if (!depth.has(node.name)) depth.set(node.name, 2);
  for (let round = 0; round < nodes.length; round++) {
    for (const { caller, service, kind } of edges) {
      if (kind !== "call" || service === "gateway" || service === "clients" || caller === "clients" || caller === "gateway") continue;
      if (depth.get(service) <= depth.get(caller) && depth.get(caller) < 5) depth.set(service, depth.get(caller) + 1);
    }
  }
  const found = [];
  for (const node of [...nodes].sort((one, other) => one.name.localeCompare(other.name))) (found[depth.get(node.name)] ??= []).push(node);
  return found.filter(Boolean);
}

const inRows = (layer, most) => Array.from({ length: Math.ceil(layer.length / most) }, (_, row) => layer.slice(row * most, (row + 1) * most));

function place(graph, narrow, figure, canvas) {
  const layers = columns(graph).flatMap((layer) => (narrow ? inRows(layer, 3) : [layer]));
  const across = Math.max(...layers.map((layer) => layer.length));
  const [deep, wide] = narrow ? [height + 58, width + 16] : [width + 150, height + 40];
  const size = { along: layers.length * deep, across: across * wide };
  const [w, t] = narrow ? [size.across, size.along] : [size.along, size.across];
  const at = new Map();
  layers.forEach((layer, column) => layer.forEach((node, row) => {
    const along = (column + 0.5) * deep;
    const beside = (row + 0.5 + (across - layer.length) / 2) * wide;
    at.set(node.name, narrow ? { x: beside, y: along } : { x: along, y: beside });
  }));
  const boxes = h("svg", { class: "boxes", viewBox: `0 0 ${w} ${t}`, "aria-hidden": "true" });
  const svg = h("svg", { viewBox: `0 0 ${w} ${t}`, role: "img", "aria-label": "Services, and the messages between them. The table below says the same." });
  const placed = graph.edges.map((edge) => {
    const title = svgTitle("");
    const path = h("path", { d: curve(at.get(edge.caller), at.get(edge.service), edge.kind, narrow) }, title);
    const label = h("text", {});
    svg.append(path);
    boxes.append(label);
    return { ...edge, path, title, label, dots: [], due: 0 };
  });
  for (const node of graph.nodes) {
    const { x, y } = at.get(node.name);
    boxes.append(h("g", { class: "node", "data-node": node.name, transform: `translate(${x} ${y})` }, svgTitle(node.name),
      h("rect", { x: -width / 2, y: -height / 2, width, height, rx: 8 }),
      h("text", { y: -9 }), h("text", { class: "small", y: 7 }), h("text", { class: "small", y: 20 })));
  }
  figure.replaceChildren(h("div", { class: "layers" }, svg, canvas, boxes));
  canvas.width = w * 2;
  canvas.height = t * 2;
  const taken = [];
  for (const edge of placed) {
    edge.length = edge.path.getTotalLength();
    const spot = freeSpot(edge, [...at.values()], taken);
    taken.push(spot);
    edge.label.setAttribute("x", spot.x);
    edge.label.setAttribute("y", spot.y + 4);
    edge.points = Array.from({ length: 41 }, (_, step) => edge.path.getPointAtLength((edge.length * step) / 40));
  }
  return placed;
}

// A point of the edge at which its label covers neither a box nor another label, or else its middle
function freeSpot(edge, boxes, labels) {
  const near = (point, other, wide, tall) => Math.abs(point.x - other.x) < wide && Math.abs(point.y - other.y) < tall;
  const spots = [0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8].map((share) => edge.path.getPointAtLength(edge.length * share));
  const free = (spot) => !boxes.some((box) => near(spot, box, width / 2 + 44, height / 2 + 8)) && !labels.some((label) => near(spot, label, 86, 13));
  return spots.find(free) ?? spots[0];
}

// Messages leave a service at the end of its box and arrive at the beginning of another; those that go back take the other way round.
// Calls and events between the same two run beside each other.
function curve(from, to, kind, narrow) {
  const turn = (point) => (narrow ? { along: point.y, beside: point.x } : { along: point.x, beside: point.y });
  const [half, lane] = narrow ? [height / 2, 14] : [width / 2, 9];
  const [a, b] = [turn(from), turn(to)];
  const step = Math.sign(Math.round(b.along - a.along));
  const shift = kind === "event" ? lane : -lane;
  const back = step < 0 ? 2 * lane : 0;
  const start = { along: a.along + (step < 0 ? -half : half), beside: a.beside + shift + back };
  const end = { along: b.along + (step > 0 ? -half : half), beside: b.beside + shift + back };
  const bend = step ? Math.max(Math.abs(end.along - start.along) / 2, 30) * step : 55 + shift * 2;
  const points = [start, { along: start.along + bend, beside: start.beside }, { along: end.along - (step ? bend : -bend), beside: end.beside }, end];
  const [m, c, d, e] = points.map(({ along, beside }) => (narrow ? `${beside} ${along}` : `${along} ${beside}`));
  return `M${m} C${c} ${d} ${e}`;
}

function refresh(graph, figure, edges) {
  const now = new Map(graph.edges.map((edge) => [edge.key, edge]));
  for (const edge of edges) {
    const { rate, errors, p50, p99 } = now.get(edge.key);
    Object.assign(edge, { rate, errors });
    edge.path.setAttribute("class", `edge ${edge.kind} ${rate ? "" : "still"} ${errors ? "failing" : ""}`);
    edge.title.textContent = `${edge.caller} to ${edge.service}, ${edge.kind}s: ${number(rate)} per second, median ${milliseconds(p50)}, p99 ${milliseconds(p99)}, ${number(errors)} errors per second`;
    edge.label.setAttribute("class", `edge-label ${errors ? "bad" : ""}`);
    edge.label.textContent = rate ? `${number(rate)}/s ${milliseconds(p50)}${errors ? ` ${number(errors)} err/s` : ""}` : "";
  }
  for (const node of graph.nodes) {
    const group = figure.querySelector(`[data-node="${CSS.escape(node.name)}"]`);
    if (!group) continue;
    const running = node.instances.length;
    group.setAttribute("class", `node ${node.errors ? "failing" : ""} ${node.away ? "away" : ""}`);
    const [name, first, second] = group.querySelectorAll("text");
    name.textContent = running > 1 ? `${node.name} ×${running}` : node.name;
    first.textContent = node.name === "clients" ? "" : `${number(node.rate)}/s`;
    second.textContent = node.errors ? `${number(node.errors)} errors/s` : node.p99 === null || node.p99 === undefined ? "" : `${milliseconds(node.p50)}, p99 ${milliseconds(node.p99)}`;
    second.setAttribute("class", node.errors ? "small bad" : "small");
  }
}

function move(canvas, edges, palette, seconds) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  const share = Math.min(1, most / Math.max(1, edges.reduce((sum, edge) => sum + edge.rate, 0)));
  for (const edge of edges) {
    edge.due += edge.rate * share * seconds;
    while (edge.due >= 1) {
      edge.due -= 1;
      edge.dots.push(edge.errors && Math.random() < edge.errors / edge.rate ? { at: 0, bad: true } : { at: 0 });
    }
    edge.dots = edge.dots.filter((dot) => (dot.at += seconds * 0.9) < 1);
    for (const dot of edge.dots) {
      const exact = dot.at * 40;
      const from = edge.points[Math.floor(exact)];
      const to = edge.points[Math.min(Math.floor(exact) + 1, 40)];
      const part = exact % 1;
      context.fillStyle = dot.bad ? palette.bad : palette[edge.kind];
      context.beginPath();
      context.arc(2 * (from.x + (to.x - from.x) * part), 2 * (from.y + (to.y - from.y) * part), dot.bad ? 9 : 7, 0, 7);
      context.fill();
    }
  }
}

function flowTable({ flows }) {
  const rows = flows.flatMap((flow) => flow.messages.map((message) => ({ ...message, caller: flow.caller, service: flow.service, kind: flow.kind })));
  rows.sort((one, other) => other.rate - one.rate || one.name.localeCompare(other.name));
  return table("What flows, of the last ten seconds", [
    { title: "From", cell: (row) => row.caller }, { title: "To", cell: (row) => row.service }, { title: "Kind", cell: (row) => row.kind },
    { title: "Message", cell: (row) => row.name }, { title: "Per second", number: true, cell: (row) => number(row.rate) },
    { title: "Errors per second", number: true, cell: (row) => (row.errors ? h("span", { class: "bad" }, number(row.errors)) : "0") },
    { title: "Median", number: true, cell: (row) => milliseconds(row.p50) }, { title: "p99", number: true, cell: (row) => milliseconds(row.p99) },
  ], rows, "No messages in the last ten seconds. Make a request, and watch.", (row) => `${row.caller} ${row.service} ${row.kind} ${row.name}`);
}
