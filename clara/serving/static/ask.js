// The page that asks: a form, the answer as it comes, its passages.

import { ServiceError, stream } from "./api.js";
import { byId } from "./dom.js";
import { addUtilities, largestPart, passageItem } from "./passage.js";

const answer = byId("answer");
const status = byId("ask-status");
const stop = byId("stop");
let running = null;

function bodyOf(form) {
  const given = new FormData(form);
  const body = { question: given.get("question"), stream: true };
  for (const name of ["passages", "max_tokens"]) if (given.get(name)) body[name] = Number(given.get(name));
  const documents = given.get("documents").split(",").map((name) => name.trim()).filter(Boolean);
  if (documents.length) body.documents = documents;
  return body;
}

function clear() {
  byId("ask-error").textContent = "";
  byId("unread").textContent = "";
  answer.textContent = "";
  byId("passages").replaceChildren();
  byId("ask-result").hidden = true;
}

function showPassages(passages) {
  const largest = largestPart(passages);
  byId("passages").replaceChildren(...passages.map((passage) => passageItem(passage, largest)));
  byId("ask-result").hidden = false;
  status.textContent = `${passages.length} passages found; reading them…`;
}

function finish(answered, began) {
  answer.textContent = answered.text || "(The answer is empty.)";
  if (answered.unread) byId("unread").textContent = `This end of the question was not searched for: ${answered.unread}`;
  if (answered.text) addUtilities([...byId("passages").children], answered);
  status.textContent = `Answered in ${((performance.now() - began) / 1000).toFixed(1)} s.`;
}

async function ask(event) {
  event.preventDefault();
  running?.abort();
  const own = (running = new AbortController());
  clear();
  status.textContent = "Searching…";
  stop.hidden = false;
  answer.setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    for await (const [name, content] of stream("v1/answers", bodyOf(event.target), own.signal)) {
      if (name === "passages") showPassages(content.passages);
      else if (name === "piece") answer.append(content.text);
      else finish(content, began);
    }
  } catch (error) {
    if (running !== own) return; // another question took its place
    status.textContent = own.signal.aborted ? "Stopped." : "";
    if (error instanceof ServiceError) byId("ask-error").textContent = error.message;
    else if (!own.signal.aborted) throw error;
  } finally {
    if (running === own) {
      running = null;
      stop.hidden = true;
      answer.removeAttribute("aria-busy");
    }
  }
}

byId("ask-form").addEventListener("submit", ask);
stop.addEventListener("click", () => running?.abort());
