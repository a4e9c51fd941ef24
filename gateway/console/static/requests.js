// Requests: a form for each, made from the JSON Schema of its message, and run as an example user.

import { h, milliseconds, remembered, replace } from "./dom.js";
import { ask, askAs, isDevelopment, users } from "./session.js";

export function requestsView(state, argument) {
  const element = h("div", {}, h("p", { class: "quiet" }, "loading"));
  load(element, argument);
  return { element };
}

async function load(element, chosen) {
  if (!isDevelopment) {
    return replace(element, h("p", {}, "Forms are for development. ", h("a", { href: "/docs" }, "The REST API and its documentation"), " are at /docs."));
  }
  try {
    const { items, schemas } = await ask("/console/requests");
    const one = items.find((item) => item.name === chosen);
    const found = h("ul", { class: "list", tabindex: "0", "aria-label": "Requests" }, items.map((item) =>
      h("li", {}, h("a", { href: `#/requests/${item.name}`, "aria-current": item === one ? "true" : null, title: item.summary }, item.name))));
    const search = h("input", { type: "search", spellcheck: "false", oninput: () => {
      for (const entry of found.children) entry.hidden = !entry.textContent.toLowerCase().includes(search.value.toLowerCase());
    } });
    replace(element, h("div", { class: "split" }, h("div", { class: "panel" }, h("label", {}, "Search", search), found),
      h("div", { class: "panel" }, one ? requestForm(one, schemas) : h("p", { class: "quiet" }, "Choose a request. Each is made as the user that you choose."))));
    const current = found.querySelector("[aria-current]");
    if (current) found.scrollTop = current.offsetTop - found.clientHeight / 2;
  } catch (error) {
    replace(element, h("p", { class: "bad", role: "alert" }, error.message));
  }
}

function requestForm(item, schemas) {
  const schema = resolved(item.request, schemas);
  const isObject = schema.properties !== undefined;
  const fields = isObject
    ? Object.entries(schema.properties).map(([name, of]) => field(name, of, schemas, (schema.required ?? []).includes(name)))
    : [jsonField("message", "JSON", true)];
  const user = h("select", { name: "user" }, Object.entries(users).map(([name, role]) => h("option", { value: name }, `${name} (${role})`)), h("option", { value: "" }, "console (operator, admin)"));
  user.value = remembered("user") ?? user.options[0].value;
  user.onchange = () => remembered("user", user.value);
  const answer = h("div", { role: "status" });
  const submit = async (event) => {
    event.preventDefault();
    const began = performance.now();
    try {
      const parts = fields.map((one) => [one.name, one.read()]).filter(([, text]) => text !== undefined);
      const text = isObject ? `{${parts.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}` : parts[0]?.[1] ?? "{}";
      const { status, reply, trace } = await askAs(user.value, `/console/requests/${item.service}/${item.name}`, text);
      replace(answer, h("p", { class: status < 400 ? "good" : "bad" }, `Answered with ${status} in ${milliseconds(performance.now() - began)}, as trace `,
        h("a", { href: `#/traces/${trace}` }, trace)), h("pre", { tabindex: "0" }, reply));
    } catch (error) {
      replace(answer, h("p", { class: "bad" }, error.message));
    }
  };
  return [h("h3", {}, item.name), h("p", {}, item.summary), item.description ? h("p", { class: "quiet" }, item.description) : null,
    h("dl", {}, h("dt", {}, "Allowed"), h("dd", {}, item.allow), h("dt", {}, "Route"), h("dd", {}, item.route ?? "none")),
    item.takes_stream ? h("p", {}, "It takes a stream of bytes, which a form cannot send.") : h("form", { class: "fields", onsubmit: submit },
      fields.length ? fields.map((one) => one.element) : h("p", { class: "quiet" }, "It has no fields."),
      h("label", {}, "As", user), h("div", {}, h("button", {}, "Send"))),
    answer];
}

function resolved(schema, schemas) {
  const name = schema?.$ref?.split("/").pop();
  return name ? resolved(schemas[name] ?? {}, schemas) : schema ?? {};
}

// The type of a field, and whether it may be null
function typeOf(schema, schemas) {
  const found = resolved(schema, schemas);
  const options = (found.anyOf ?? found.oneOf)?.map((one) => resolved(one, schemas));
  if (!options) return { type: found, nullable: false };
  const real = options.filter((one) => one.type !== "null");
  return { type: real.length === 1 ? real[0] : {}, nullable: real.length < options.length };
}

// A field of the form. `read` returns the JSON text of its value, or undefined to leave it out. Throws for what is no JSON
function field(name, given, schemas, required) {
  const { type, nullable } = typeOf(given, schemas);
  const must = required ? "required" : "default" in given ? `default ${JSON.stringify(given.default)}` : "optional";
  const hint = [type.description ?? given.description, type.format, must, nullable ? "or null" : ""].filter(Boolean).join(", ");
  const empty = required ? (nullable ? "null" : undefined) : undefined;
  const needed = required && !nullable;
  const made = (input, read) => ({ name, read: () => (input.value === "" ? empty : read(input.value)), element: h("label", {}, `${name} (${hint})`, input) });
  if (type.enum) {
    return made(h("select", { name, required: needed }, h("option", { value: "" }, "–"), type.enum.map((value) => h("option", { value: JSON.stringify(value) }, String(value)))), (value) => value);
  }
  if (type.type === "boolean") {
    return made(h("select", { name, required: needed }, ["", "true", "false"].map((value) => h("option", { value }, value || "–"))), (value) => value);
  }
  if (type.type === "integer" || type.type === "number") { // the digits as they were typed: a number of JavaScript holds 53 bits
    const input = h("input", { name, required: needed, inputmode: type.type === "integer" ? "numeric" : "decimal", autocomplete: "off", spellcheck: "false" });
    return made(input, (value) => checkedJson(name, value.trim(), "number", "a number"));
  }
  if (type.type === "string") {
    const input = h("input", { name, type: type.format === "password" ? "password" : "text", autocomplete: "off", maxlength: type.maxLength, required: needed && type.minLength > 0, spellcheck: "false" });
    return { name, read: () => (input.value === "" && !needed ? empty : JSON.stringify(input.value)), element: h("label", {}, `${name} (${hint})`, input) };
  }
  return jsonField(name, hint, needed, empty);
}

function jsonField(name, hint, required, empty) {
  const input = h("textarea", { name, rows: 4, required, spellcheck: "false", placeholder: "JSON" });
  return { name, read: () => (input.value.trim() ? checkedJson(name, input.value, null, "JSON") : empty), element: h("label", {}, `${name} (${hint})`, input) };
}

function checkedJson(name, text, type, expected) {
  try {
    if (type === null || typeof JSON.parse(text) === type) return type === null ? (JSON.parse(text), text) : text;
  } catch { /* said below */ }
  throw new Error(`${name}: expected ${expected}, got ${text.slice(0, 40)}`);
}
