// Requests: a form for each, made from the JSON Schema of its message, and run as an example user.

import { h, milliseconds, pretty, replace } from "./dom.js";
import { ask, askAs, isDevelopment, users } from "./session.js";

export function requestsView(state, { argument }) {
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
    const one = items.find((item) => item.name === chosen) ?? items[0];
    replace(element, h("div", { class: "split" },
      h("ul", { class: "panel list", tabindex: "0", "aria-label": "Requests" }, items.map((item) =>
        h("li", {}, h("a", { href: `#/requests/${item.name}`, "aria-current": item === one ? "true" : null }, item.name)))),
      one ? h("div", { class: "panel" }, requestForm(one, schemas)) : h("p", {}, "No service has requests.")));
  } catch (error) {
    replace(element, h("p", { class: "bad", role: "alert" }, error.message));
  }
}

function requestForm(item, schemas) {
  const schema = resolved(item.request, schemas);
  const fields = Object.entries(schema.properties ?? {}).map(([name, of]) => field(name, of, schemas, (schema.required ?? []).includes(name)));
  const user = h("select", { name: "user" }, Object.entries(users).map(([name, role]) => h("option", { value: name }, `${name} (${role})`)), h("option", { value: "" }, "console (operator, admin)"));
  user.value = sessionStorage.getItem("callboard-user") ?? user.options[0].value;
  user.addEventListener("change", () => sessionStorage.setItem("callboard-user", user.value));
  const answer = h("div", { role: "status" });
  const submit = async (event) => {
    event.preventDefault();
    const began = performance.now();
    try {
      const body = Object.fromEntries(fields.map((one) => [one.name, one.read()]).filter(([, value]) => value !== undefined));
      const { status, reply, request_id: id } = await askAs(user.value, `/console/requests/${item.service}/${item.name}`, body);
      replace(answer, h("p", { class: status < 400 ? "good" : "bad" }, `Answered with ${status} in ${milliseconds(performance.now() - began)}, as request `,
        h("a", { href: `#/traces/${id}` }, id)), h("pre", { tabindex: "0" }, pretty(reply)));
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

function typeOf(schema, schemas) {
  const found = resolved(schema, schemas);
  const options = found.anyOf ?? found.oneOf;
  if (options) {
    const real = options.map((one) => resolved(one, schemas)).filter((one) => one.type !== "null");
    return real.length === 1 ? real[0] : {};
  }
  if (Array.isArray(found.type)) return { ...found, type: found.type.find((one) => one !== "null") };
  return found;
}

// A field of the form. `read` returns its value, or undefined if it was left empty. Throws for what is no JSON.
function field(name, given, schemas, required) {
  const schema = typeOf(given, schemas);
  const hint = [schema.description ?? given.description, schema.format, required ? "required" : "default" in given ? `default ${JSON.stringify(given.default)}` : "optional"].filter(Boolean).join(", ");
  let input;
  let read;
  if (schema.enum) {
    input = h("select", { name, required }, h("option", { value: "" }, "–"), schema.enum.map((value) => h("option", { value: JSON.stringify(value) }, String(value))));
    read = () => (input.value ? JSON.parse(input.value) : undefined);
  } else if (schema.type === "boolean") {
    input = h("select", { name, required }, ["", "true", "false"].map((value) => h("option", { value }, value || "–")));
    read = () => (input.value ? input.value === "true" : undefined);
  } else if (schema.type === "integer" || schema.type === "number") {
    input = h("input", { name, required, type: "number", min: schema.minimum, max: schema.maximum, step: schema.type === "integer" ? 1 : "any" });
    read = () => (input.value === "" ? undefined : Number(input.value));
  } else if (schema.type === "string") {
    input = h("input", { name, required, type: schema.format === "password" ? "password" : "text", autocomplete: "off", maxlength: schema.maxLength, spellcheck: "false" });
    read = () => (input.value === "" && !required ? undefined : input.value);
  } else {
    input = h("textarea", { name, rows: 4, required, spellcheck: "false", placeholder: "JSON" });
    read = () => {
      try {
        return input.value.trim() ? JSON.parse(input.value) : undefined;
      } catch (error) {
        throw new Error(`${name}: ${error.message}: expected JSON`);
      }
    };
  }
  return { name, read, element: h("label", {}, `${name} (${hint})`, input) };
}
