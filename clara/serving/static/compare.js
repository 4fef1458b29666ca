// The page that compares two systems on one question, or on those of a file.

import { get, post, ServiceError, shownIn } from "./api.js";
import { byId, element, facts, table } from "./dom.js";

const error = byId("compare-error");
const status = byId("compare-status");
const stop = byId("compare-stop");
let running = null;

/** The questions of a file: one a line, as text, or as JSON with the field question. */
export function questionsOf(text) {
  return text.split(/\r?\n/).flatMap((raw, place) => {
    const line = raw.trim();
    if (!line.startsWith("{")) return line ? [line] : [];
    try {
      const { question } = JSON.parse(line);
      if (typeof question === "string" && question.trim()) return [question];
    } catch {
      // Said below, with the line.
    }
    throw new ServiceError(`Line ${place + 1} of the file is no question: expected text, or JSON with the field question.`);
  });
}

/** Every passage of either system, with its place in both; 0: it is not there. */
function places(served, against) {
  const found = new Map();
  for (const [side, passages] of [["served", served], ["against", against]]) {
    passages.forEach((passage, place) => {
      const own = found.get(passage.row_id) ?? { passage, served: 0, against: 0 };
      found.set(passage.row_id, { ...own, [side]: place + 1 });
    });
  }
  return [...found.values()];
}

function move({ served, against }) {
  if (!served) return "only against";
  if (!against) return "only served";
  if (served === against) return "same place";
  return served < against ? `down ${against - served}` : `up ${served - against}`;
}

function detail({ question, served, against }) {
  const rows = places(served.passages, against.passages).map((own) => [
    own.passage.title || own.passage.document_id,
    own.passage.text,
    own.served || "–",
    own.against || "–",
    move(own),
  ]);
  const answer = (name, reply) => element("div", {}, element("h4", {}, name), element("p", { class: "answer" }, reply.text));
  return element(
    "article",
    {},
    element("h3", { tabindex: "-1" }, question),
    element("div", { class: "columns" }, answer("Served", served), answer("Against", against)),
    table("Places of the passages; the move is from served to against", ["Passage", "Text", "Served", "Against", "Move"], rows),
  );
}

const differs = ({ served, against }) => served.text !== against.text;
const firstDiffers = ({ served, against }) => served.passages[0]?.row_id !== against.passages[0]?.row_id;

function overlap({ served, against }) {
  const all = places(served.passages, against.passages);
  return all.length ? all.filter((own) => own.served && own.against).length / all.length : 1;
}

function show(results) {
  const whole = results.filter((result) => !result.error);
  const share = (holds) => `${whole.filter(holds).length} of ${whole.length}`;
  const mean = whole.reduce((sum, result) => sum + overlap(result), 0) / whole.length;
  const open = (result) => {
    byId("compare-detail").replaceChildren(detail(result));
    byId("compare-detail").querySelector("h3").focus();
  };
  const rows = results.map((result) =>
    result.error
      ? [result.question, element("span", { class: "error" }, result.error), "", "", ""]
      : [
          element("button", { type: "button", class: "link", onclick: () => open(result) }, result.question),
          result.served.text,
          result.against.text,
          differs(result) ? "changed" : "same",
          firstDiffers(result) ? "changed" : "same",
        ],
  );
  byId("compare-summary").replaceChildren(
    facts([
      ["Answers that changed", share(differs)],
      ["First passages that changed", share(firstDiffers)],
      ["Passages in common", whole.length ? `${(100 * mean).toFixed(0)} % of those of either, on average` : "–"],
    ]),
    table("Questions", ["Question", "Served", "Against", "Answer", "First passage"], rows),
  );
  if (results.length === 1 && whole.length === 1) byId("compare-detail").replaceChildren(detail(whole[0]));
}

async function compared(question, passages, signal) {
  const body = { question, ...(passages ? { passages: Number(passages) } : {}) };
  try {
    const [served, against] = await Promise.all(
      ["v1/answers", "against/v1/answers"].map((path) => post(path, body, signal)),
    );
    return { question, served, against };
  } catch (failed) {
    if (!(failed instanceof ServiceError)) throw failed;
    return { question, error: failed.message };
  }
}

async function compare(event) {
  event.preventDefault();
  running?.abort();
  const own = (running = new AbortController());
  const given = new FormData(event.target);
  status.textContent = "";
  byId("compare-summary").replaceChildren();
  byId("compare-detail").replaceChildren();
  stop.hidden = false;
  try {
    await shownIn(error, async () => {
      const file = given.get("file");
      const typed = given.get("question").trim();
      if (Boolean(typed) === Boolean(file.size)) {
        throw new ServiceError("Type a question, or choose a file of questions; one of the two.");
      }
      const questions = typed ? [typed] : questionsOf(await file.text());
      const results = [];
      for (const question of questions) {
        status.textContent = `Question ${results.length + 1} of ${questions.length}…`;
        results.push(await compared(question, given.get("passages"), own.signal));
        if (running !== own) return;
        show(results);
      }
      if (!results.length) throw new ServiceError("The file has no question.");
      status.textContent = `${results.length} compared.`;
    });
  } catch (failed) {
    if (!own.signal.aborted) throw failed;
    if (running === own) status.textContent = "Stopped.";
  } finally {
    if (running === own) stop.hidden = true;
  }
}

byId("compare-form").addEventListener("submit", compare);
stop.addEventListener("click", () => running?.abort());

/** Whether there is a second system decides what is seen. */
export function open() {
  return shownIn(error, async () => {
    const { paths } = await get("openapi.json");
    const there = "/against/v1/answers" in paths;
    byId("compare-form").hidden = !there;
    byId("compare-alone").hidden = there;
  });
}
