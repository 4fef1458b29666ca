// Requests of the page: with the key of the service, with errors in one line, streamed where asked.

import { byId } from "./dom.js";

const STORED = "clara-key";

/** What went wrong, in one line for a reader. */
export class ServiceError extends Error {}

const hasKey = () => sessionStorage.getItem(STORED) !== null;

function showKey() {
  byId("forget").hidden = !hasKey();
}

byId("forget").addEventListener("click", () => {
  sessionStorage.removeItem(STORED);
  showKey();
});
showKey();

/** Ask for the key; whether one was given. One dialog serves all requests that wait for it. */
let asking = null;
function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const field = byId("key");
    byId("key-wrong").textContent = wrong ? "This key is not the service's." : "";
    field.value = "";
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "use" && field.value.trim() !== "";
        if (given) sessionStorage.setItem(STORED, field.value.trim());
        field.value = "";
        asking = null;
        showKey();
        resolve(given);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

async function lineOf(response) {
  const text = await response.text();
  let message = text.slice(0, 300);
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // No error of this service: a proxy's, say.
  }
  const wait = response.headers.get("Retry-After");
  return `${message || response.statusText} (status ${response.status}${wait ? `; try again in ${wait} s` : ""})`;
}

async function send(path, body, signal) {
  for (;;) {
    const headers = body === undefined ? {} : { "Content-Type": "application/json" };
    const key = sessionStorage.getItem(STORED);
    if (key !== null) headers.Authorization = `Bearer ${key}`;
    let response;
    try {
      const method = body === undefined ? "GET" : "POST";
      response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServiceError(`The service does not answer (${error.message}). Check that it runs, then try again.`);
    }
    if (response.ok) return response;
    if (response.status !== 401) throw new ServiceError(await lineOf(response));
    if (!(await askForKey(key !== null))) throw new ServiceError("This service needs a key (status 401).");
  }
}

/** The reply to a request without a body. */
export async function get(path, signal) {
  return (await send(path, undefined, signal)).json();
}

/** The reply to a request with a body. */
export async function post(path, body, signal) {
  return (await send(path, body, signal)).json();
}

/** Do some work; what the service refuses is shown in an element, in one line. */
export async function shownIn(place, work) {
  place.textContent = "";
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    place.textContent = error.message;
  }
}

/** Names and contents of the events of a streamed reply. */
export async function* stream(path, body, signal) {
  const reader = (await send(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let name = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        name = /^event: (.*)$/m.exec(block)[1];
        const content = JSON.parse(/^data: (.*)$/m.exec(block)[1]);
        if (name === "error") throw new ServiceError(content.error.message);
        yield [name, content];
      }
    }
  } catch (error) {
    if (error instanceof ServiceError || error.name === "AbortError") throw error;
    throw new ServiceError("The connection to the service ended; try again.");
  } finally {
    reader.cancel().catch(() => {});
  }
  if (name !== "answer") throw new ServiceError("The answer ended before it was complete; try again.");
}
