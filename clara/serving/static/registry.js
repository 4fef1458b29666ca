// The registered model that is served: its versions with their measures, and who got which alias, when and why.

import { get } from "./api.js";
import { byId, element, facts, table } from "./dom.js";

/** A link to a page of MLflow, or nothing where the store has none. */
const link = (page, text) => (page ? element("a", { href: page, rel: "noreferrer" }, text) : null);

/** `20261130T164501.123456Z` as `2026-11-30 16:45:01 UTC`. */
const time = (at) => at.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d).*$/, "$1-$2-$3 $4:$5:$6 UTC");

function version(own) {
  const known = [
    ["Registered", own.registered],
    ["System", own.system],
    ["Memory", element("code", {}, own.memory_hash)],
    ["Questions", element("code", {}, own.questions_hash)],
  ];
  const rows = Object.entries(own.measures);
  const held = own.aliases.length ? ` (${own.aliases.join(", ")})` : "";
  return element(
    "article",
    {},
    element("h4", {}, `Version ${own.version}${held}`),
    facts(known),
    element("p", {}, element("a", { href: `#evaluation/${own.version}` }, `Evaluation report of version ${own.version}`)),
    link(own.page, `Run of version ${own.version} in MLflow`),
    rows.length
      ? element(
          "details",
          {},
          element("summary", {}, "Means of its evaluation"),
          table(`Means of the evaluation of version ${own.version}`, ["Split, system, measure", "Mean"], rows),
        )
      : null,
  );
}

/** The floors of a decision, each with its figures. */
function floors(own) {
  const line = (floor) =>
    element(
      "li",
      {},
      `${floor.floor} ${floor.reached ? "reached" : "not reached"}: ${signed(floor.difference)} ` +
        `[${signed(floor.low)}, ${signed(floor.high)}], ${floor.num_questions} questions`,
    );
  return own.floors.length ? element("ul", {}, ...own.floors.map(line)) : null;
}

const signed = (value) => value.toLocaleString("en", { signDisplay: "always", maximumSignificantDigits: 4 });

function decisions(record) {
  if (!record.length) return element("p", {}, "No decision is on record.");
  const rows = record.map((own) => [time(own.at), own.alias, own.version, own.before ?? "nobody", own.outcome, element("div", {}, own.reason, floors(own))]);
  return table("Promotions", ["When", "Alias", "Version", "Held by", "Outcome", "Why"], rows.reverse());
}

/** Read the registry; where paths are served there is none, and nothing is shown. */
export async function open() {
  const { name, page, versions, record } = await get("v1/registry");
  const shown = name
    ? [element("h3", {}, `Registered model ${name}`), link(page, "Model in MLflow"), decisions(record), ...versions.map(version).reverse()]
    : [];
  byId("registry").replaceChildren(...shown.filter((part) => part !== null));
}
