// A passage: its text, where it is from, and its score taken apart.

import { post, ServiceError } from "./api.js";
import { element } from "./dom.js";

const FEATURES = { memory: "Memory", bm25: "Words (BM25)", dense: "Dense vectors" };
const DIGITS = { minimumFractionDigits: 2, maximumFractionDigits: 2 };
const figure = (value) => value.toLocaleString("en", DIGITS);
const nameOf = (feature) => FEATURES[feature] ?? feature;

function foundBy(sources) {
  if (!sources.length) return "scored because the filter lets it pass";
  return `found by ${sources.map((source) => nameOf(source).toLowerCase()).join(", ")}`;
}

/** What each feature adds to the score; bars are relative to the largest of all passages. */
function parts(why, largest) {
  const total = Object.values(why).reduce((sum, value) => sum + value, 0);
  const line = (name, value) => {
    const bar = element("span", { class: value < 0 ? "bar below" : "bar", "aria-hidden": "true" });
    bar.style.width = `${largest ? (100 * Math.abs(value)) / largest : 0}%`;
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      element("td", { class: "figure" }, figure(value)),
      element("td", { class: "bars" }, bar),
    );
  };
  return element(
    "table",
    { class: "score" },
    element("caption", {}, `Score ${figure(total)}, in logits`),
    element(
      "thead",
      { class: "unseen" },
      element("tr", {}, ...["Feature", "Adds", "Bar"].map((head) => element("th", { scope: "col" }, head))),
    ),
    element("tbody", {}, ...Object.entries(why).map(([name, value]) => line(nameOf(name), value))),
  );
}

function inWords({ utility, num_tokens: tokens }) {
  const factor = Math.exp(Math.abs(utility));
  const times = factor < 1e6 ? factor.toLocaleString("en", { maximumSignificantDigits: 3 }) : factor.toExponential(1);
  const way = utility < 0 ? "more" : "less";
  return `Without it the answer is ${times} times ${way} likely: utility ${figure(utility)} nats over ${tokens} tokens.`;
}

/** A button that measures the passage's utility, and the line that it writes. */
function utility(passage, answered) {
  const line = element("span", { role: "status" });
  const button = element("button", { type: "button" }, "How much does the answer need it?");
  button.addEventListener("click", async () => {
    button.disabled = true;
    line.className = "";
    line.textContent = "Measuring…";
    const rows = answered.passages.map((other) => other.row_id);
    const body = { question: answered.question, answer: answered.text, passages: rows, without: passage.row_id };
    try {
      line.textContent = inWords(await post("v1/utility", body));
    } catch (error) {
      if (!(error instanceof ServiceError)) throw error;
      line.className = "error";
      line.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  });
  return element("p", { class: "utility" }, button, " ", line);
}

/** The largest part of any passage's score, which bars are relative to. */
export function largestPart(passages) {
  return Math.max(0, ...passages.flatMap((passage) => Object.values(passage.why).map(Math.abs)));
}

/** A passage as an element of a list. */
export function passageItem(passage, largest) {
  return element(
    "li",
    {},
    element("h4", {}, passage.title || passage.document_id),
    element("p", { class: "note" }, `document ${passage.document_id} · row ${passage.row_id} · ${foundBy(passage.sources)}`),
    element("p", { class: "text" }, passage.text),
    parts(passage.why, largest),
  );
}

/** Add the button for the utility to each passage of a finished answer. */
export function addUtilities(items, answered) {
  answered.passages.forEach((passage, place) => items[place].append(utility(passage, answered)));
}
