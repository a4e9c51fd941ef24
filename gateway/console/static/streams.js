// Streams: heads, cursors, and lags; stopped subscriptions, which an operator resumes; and dead letters.

import { h, number, replace, table } from "./dom.js";
import { ask } from "./session.js";

export function streamsView(state) {
  const said = h("p", { role: "status" });
  const streams = h("div", { class: "panel" });
  const letters = h("div", { class: "panel" });
  let chosen = null;

  const attempt = (work) => async () => {
    try {
      said.className = "good";
      said.textContent = await work();
    } catch (error) {
      said.className = "bad";
      said.textContent = error.message;
    }
  };
  const console_ = (service, name, body) => ask(`/console/services/${encodeURIComponent(service)}/${name}`, body);

  function update(part) {
    if (part !== "streams") return;
    const subscriptions = state.streams.flatMap((report) => report.subscriptions.map((one) => ({ ...one, service: report.service })));
    replace(streams, table("Streams", [
      { title: "Service", cell: (one) => one.service }, { title: "Head", number: true, cell: (one) => number(one.head) },
      { title: "Oldest retained", number: true, cell: (one) => number(one.oldest) }, { title: "Epoch", class: "mono", cell: (one) => one.epoch.slice(0, 8) || "–" },
      { title: "Readers, at their last request", cell: (one) => one.readers.map((reader) => `${reader.reader} at ${reader.seq}${reader.behind ? `, ${reader.behind} behind` : ""}`).join("; ") || "–" },
    ], state.streams, "No service has a stream.", (one) => one.service),
    h("h3", {}, "Subscriptions"), table("Who applies whose events", [
      { title: "Service", cell: (one) => one.service }, { title: "Publisher", cell: (one) => one.publisher },
      { title: "Cursor", number: true, cell: (one) => number(one.seq) }, { title: "Head", number: true, cell: (one) => number(one.head) },
      { title: "Lag", number: true, cell: (one) => (one.head === null ? "–" : number(Math.max(one.head - one.seq, 0))) },
      { title: "State", cell: (one) => h("span", { class: one.state === "STOPPED" ? "bad" : one.reason ? "warn" : "good" }, one.state || "–", one.reason ? `: ${one.reason}` : "") },
      { title: "Dead letters", cell: (one) => (one.dead_letters ? h("button", { type: "button", onclick: () => openLetters(one.service) }, `Show ${one.dead_letters}`) : "0") },
      { title: "Remedy", cell: (one) => (one.state === "STOPPED" ? h("button", { type: "button", "aria-label": `Resume ${one.publisher} in ${one.service}`,
        onclick: attempt(async () => { await console_(one.service, "ResumeStream", { publisher: one.publisher }); return `${one.service} applies the events of ${one.publisher} again.`; }) }, "Resume") : "") },
    ], subscriptions, "No service applies events.", (one) => `${one.service} ${one.publisher}`));
  }

  async function openLetters(service) {
    chosen = service;
    try {
      const page = await console_(service, "ListDeadLetters", {});
      if (chosen === service) showLetters(service, page);
    } catch (error) {
      replace(letters, h("p", { class: "bad", role: "alert" }, error.message));
    }
  }

  function showLetters(service, page) {
    const again = (work) => async () => { await attempt(work)(); await openLetters(service); };
    const retry = (one) => again(async () => {
      const outcome = await console_(service, "RetryDeadLetter", { id: one.id });
      if (outcome.error) throw new Error(`${one.type} ${one.seq} has failed again: ${outcome.error}`);
      return outcome.found ? `${one.type} ${one.seq} of ${one.publisher} was applied.` : `${one.type} ${one.seq} is no dead letter any more.`;
    });
    const drop = (one) => again(async () => {
      if (!confirm(`Delete ${one.type} ${one.seq} of ${one.publisher}? ${service} will never apply it.`)) return "";
      await console_(service, "DropDeadLetters", { ids: [one.id] });
      return `${one.type} ${one.seq} of ${one.publisher} was dropped.`;
    });
    replace(letters, h("h3", {}, `Dead letters of ${service}`), table(`${page.items.length}${page.next ? " or more" : ""} dead letters`, [
      { title: "Event", cell: (one) => `${one.type} ${one.seq}` }, { title: "Publisher", cell: (one) => one.publisher }, { title: "At", cell: (one) => one.at },
      { title: "Attempts", number: true, cell: (one) => one.attempts }, { title: "Last error", class: "mono wrap", cell: (one) => one.error },
      { title: "Remedies", cell: (one) => h("span", { class: "bar" }, ["Show", "Retry", "Drop"].map((what) => h("button", {
        type: "button", class: what === "Drop" ? "danger" : null, "aria-label": `${what} ${one.type} ${one.seq}`,
        onclick: { Show: () => showLetter(service, one), Retry: retry(one), Drop: drop(one) }[what] }, what))) },
    ], page.items, "There are no dead letters any more.", (one) => one.id));
  }

  async function showLetter(service, one) {
    const dialog = h("dialog", { "aria-label": `${one.type} ${one.seq}`, onclose: () => dialog.remove() }, h("h3", {}, `${one.type} ${one.seq}`));
    try {
      const letter = await console_(service, "ShowDeadLetter", { id: one.id });
      dialog.append(h("dl", {}, Object.entries(letter).filter(([name]) => name !== "body").map(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
        h("pre", { tabindex: "0" }, letter.body));
    } catch (error) {
      dialog.append(h("p", { class: "bad" }, error.message));
    }
    dialog.append(h("button", { type: "button", onclick: () => dialog.close() }, "Close"));
    document.body.append(dialog);
    dialog.showModal();
  }

  replace(letters, h("p", { class: "quiet" }, "Choose the dead letters of a subscription above to show, retry, or drop them."));
  return { element: h("div", {}, said, streams, letters), update };
}
