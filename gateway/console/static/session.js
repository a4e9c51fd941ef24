// Who uses the console: in development the console's own user, elsewhere an operator who has logged in. Tokens stay in memory.

import { h } from "./dom.js";

const { mode, scheme } = document.querySelector("meta[name=callboard]").dataset;
export const isDevelopment = mode === "development";
export let users = {};
let token = null;
let until = 0;
const userTokens = new Map();

export class Failed extends Error {
  constructor(status, problem) {
    super(problem.reason ?? problem.detail ?? problem.title ?? `status ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

async function fetched(path, options) {
  const answer = await fetch(path, { ...options, cache: "no-store" });
  const text = await answer.text();
  let body = null;
  try {
    body = text ? JSON.parse(text) : null;
  } catch {
    body = { detail: text.slice(0, 500) };
  }
  if (!answer.ok) throw new Failed(answer.status, body ?? {});
  return body;
}

const json = (value) => ({ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value) });

async function session(user) {
  const found = await fetched("/console/session", json(user ? { user } : {}));
  users = found.users;
  return found;
}

async function renew() {
  if (!isDevelopment || performance.now() < until) return;
  const found = await session("");
  token = found.token;
  until = performance.now() + found.expires_in * 1000;
}

function withToken(options, given) {
  const headers = { ...options.headers };
  if (given) headers.authorization = `${scheme} ${given}`;
  return { ...options, headers };
}

// Ask the gateway as the operator. Throws Failed.
export async function ask(path, body) {
  await renew();
  return fetched(path, withToken(body === undefined ? {} : json(body), token));
}

// Make a request of a service as an example user. Returns its status, the reply, and the request's id. Throws Failed.
export async function askAs(user, path, body) {
  if (!user) return ask(path, body);
  if (!userTokens.has(user)) userTokens.set(user, (await session(user)).token);
  const answer = await fetched(path, withToken(json(body), userTokens.get(user)));
  if (answer.status === 401) userTokens.delete(user); // it has expired: the next one logs in again
  return answer;
}

// Follow a stream of events until the signal aborts. It connects again, with a new ticket, whenever it breaks off.
export async function follow(path, handlers, signal, status = () => {}) {
  while (!signal.aborted) {
    try {
      const { ticket } = await ask("/live/tickets", {});
      const url = new URL(path, location.href);
      url.searchParams.append("ticket", ticket);
      await listen(url, handlers, signal, status);
    } catch (error) {
      status(error.status === 401 || error.status === 403 ? "not logged in" : "not connected");
    }
    if (!signal.aborted) await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

function listen(url, handlers, signal, status) {
  return new Promise((resolve) => {
    const source = new EventSource(url);
    const close = () => { source.close(); resolve(); };
    for (const [name, handle] of Object.entries(handlers)) source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
    source.addEventListener("open", () => status("live"));
    source.addEventListener("end", close);
    source.addEventListener("error", () => { status("not connected"); close(); });
    signal.addEventListener("abort", close);
  });
}

// Resolve once the user may look: at once in development and with a cookie, else after a login.
export async function begin(main) {
  let why = "";
  try {
    if ((await ask("/console/session")).user) return;
  } catch (error) {
    if (!isDevelopment || error.status !== 403) throw error;
    why = error.message;
  }
  await new Promise((resolve) => main.replaceChildren(loginForm(resolve, why)));
}

function loginForm(resolve, why) {
  const problem = h("p", { class: "bad", role: "alert" }, why);
  const use = async (given) => {
    token = given;
    until = Infinity;
    if (!(await ask("/console/session")).user) throw new Error("This user is no operator, or the token does not work.");
    resolve();
  };
  const submit = (work) => async (event) => {
    event.preventDefault();
    problem.textContent = "";
    try {
      await use(await work(new FormData(event.target)));
    } catch (error) {
      token = null;
      problem.textContent = error.message;
    }
  };
  const login = submit(async (data) =>
    (await fetched("/sessions", json({ email: data.get("email"), password: data.get("password") }))).access_token);
  const paste = submit(async (data) => data.get("token").trim());
  return h("div", { class: "panel" },
    h("h2", {}, "Log in as an operator"), problem,
    h("form", { class: "bar", onsubmit: login },
      h("label", {}, "Email", h("input", { name: "email", type: "email", autocomplete: "username", required: true })),
      h("label", {}, "Password", h("input", { name: "password", type: "password", autocomplete: "current-password", required: true })),
      h("button", {}, "Log in")),
    h("form", { class: "bar", onsubmit: paste },
      h("label", {}, "Or an access token", h("input", { name: "token", type: "password", autocomplete: "off", required: true })),
      h("button", {}, "Use it")));
}
