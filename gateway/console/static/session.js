// Who uses the console: in development the console's own user, elsewhere an operator who has logged in. Tokens stay in memory.

import { h } from "./dom.js";

const { mode, scheme } = document.querySelector("meta[name=callboard]").dataset;
export const isDevelopment = mode === "development";
export let users = {};
let token = null;
let until = 0;
let loggingIn = null;
const userTokens = new Map();
const pause = 1000;
const pauseWhenReplaced = 60_000;

export class Failed extends Error {
  constructor(status, problem) {
    super(problem.reason ?? problem.detail ?? problem.title ?? `status ${status}`);
    this.status = status;
  }
}

async function fetched(path, body, given) {
  const headers = given ? { authorization: `${scheme} ${given}` } : {};
  const options = body === undefined ? { headers } : { method: "POST", headers: { ...headers, "content-type": "application/json" }, body };
  const answer = await fetch(path, { ...options, cache: "no-store" });
  const text = await answer.text();
  let found = null;
  try {
    found = text ? JSON.parse(text) : null;
  } catch {
    found = { detail: text.slice(0, 500) };
  }
  if (!answer.ok) throw new Failed(answer.status, found ?? {});
  return found;
}

async function session(user) {
  const found = await fetched("/console/session", JSON.stringify(user ? { user } : {}));
  users = found.users;
  return found;
}

async function renew() {
  if (!isDevelopment || performance.now() < until) return;
  const found = await session("");
  token = found.token;
  until = performance.now() + found.expires_in * 1000;
}

// Ask the gateway as the operator. Throws Failed.
export async function ask(path, body) {
  return asked(path, body === undefined ? undefined : JSON.stringify(body));
}

async function asked(path, text) {
  try {
    await renew();
    return await fetched(path, text, token);
  } catch (error) {
    if (error.status === 401) until = 0;
    throw error;
  }
}

// Make a request of a service as an example user, from JSON text. Returns its status, the text of the reply, and the request's id. Throws Failed.
export async function askAs(user, path, text) {
  if (!user) return asked(path, text);
  if (!userTokens.has(user)) userTokens.set(user, (await session(user)).token);
  const answer = await fetched(path, text, userTokens.get(user));
  if (answer.status === 401) userTokens.delete(user); // it has expired: the next one logs in again
  return answer;
}

// Follow a stream of events until the signal aborts. It connects again, with a new ticket, whenever it breaks off
export async function follow(path, handlers, signal, status = () => {}) {
  while (!signal.aborted) {
    let wait = pause;
    try {
      const { ticket } = await ask("/live/tickets", {});
      const url = new URL(path, location.href);
      url.searchParams.append("ticket", ticket);
      const end = await listen(url, handlers, signal, status);
      if (end?.replaced) {
        status(`not live: ${end.reason}`);
        wait = pauseWhenReplaced;
      }
    } catch (error) {
      status("not connected");
      if (error.status === 401 || error.status === 403) {
        status("not logged in");
        if (!isDevelopment) await login("Your session has ended.");
      }
    }
    if (!signal.aborted) await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

// JSON with the digits of integers as they came, where the browser can keep them: a number of JavaScript holds 53 bits
export const parsed = (text) => JSON.parse(text, (_, value, written) =>
  (JSON.rawJSON && Number.isInteger(value) && !Number.isSafeInteger(value) && /^-?\d+$/.test(written?.source) ? JSON.rawJSON(written.source) : value));

function listen(url, handlers, signal, status) {
  return new Promise((resolve) => {
    const source = new EventSource(url);
    const close = (end) => { source.close(); resolve(end); };
    for (const [name, handle] of Object.entries(handlers)) source.addEventListener(name, (event) => handle(parsed(event.data)));
    source.addEventListener("open", () => status("live"));
    source.addEventListener("end", (event) => { status("not connected"); close(JSON.parse(event.data)); });
    source.addEventListener("error", () => { status("not connected"); close(null); });
    signal.addEventListener("abort", () => close(null));
  });
}

// Resolve once the user may look: at once in development and with a cookie, else after a login
export async function begin() {
  try {
    if ((await ask("/console/session")).user) return;
  } catch (error) {
    if (!isDevelopment || error.status !== 403) throw error;
    await login(error.message);
    return;
  }
  await login("");
}

// Let an operator log in, in a dialog over what is shown. All who wait for a login get the same one
function login(why) {
  loggingIn ??= new Promise((resolve) => {
    const dialog = h("dialog", { "aria-label": "Log in", oncancel: (event) => event.preventDefault() });
    dialog.append(loginForm(why, () => { dialog.close(); dialog.remove(); loggingIn = null; resolve(); }));
    document.body.append(dialog);
    dialog.showModal();
  });
  return loggingIn;
}

function loginForm(why, resolve) {
  const problem = h("p", { class: "bad", role: "alert" }, why);
  const submit = (work) => async (event) => {
    event.preventDefault();
    problem.textContent = "";
    try {
      token = await work(new FormData(event.target));
      until = Infinity;
      if (!(await ask("/console/session")).user) throw new Error("This user is no operator, or the token does not work.");
      resolve();
    } catch (error) {
      token = null;
      problem.textContent = error.message;
    }
  };
  const login = submit(async (data) =>
    (await fetched("/sessions", JSON.stringify({ email: data.get("email"), password: data.get("password") }))).access_token);
  const paste = submit(async (data) => data.get("token").trim());
  return h("div", {},
    h("h2", {}, "Log in as an operator"), problem,
    h("form", { class: "bar", onsubmit: login },
      h("label", {}, "Email", h("input", { name: "email", type: "email", autocomplete: "username", required: true })),
      h("label", {}, "Password", h("input", { name: "password", type: "password", autocomplete: "current-password", required: true })),
      h("button", {}, "Log in")),
    h("form", { class: "bar", onsubmit: paste },
      h("label", {}, "Or an access token", h("input", { name: "token", type: "password", autocomplete: "off", required: true })),
      h("button", {}, "Use it")));
}
