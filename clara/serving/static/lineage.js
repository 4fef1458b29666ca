// The page that says what made the artefacts that are served, as far as their manifests say it.

import { get, shownIn } from "./api.js";
import { byId, element, facts, isTable, table } from "./dom.js";
import * as registry from "./registry.js";

/** Nested settings as rows: a dotted name and a value. */
function flat(value, name = "") {
  if (!isTable(value)) return [[name, Array.isArray(value) ? JSON.stringify(value) : String(value)]];
  return Object.entries(value).flatMap(([key, inner]) => flat(inner, name ? `${name}.${key}` : key));
}

/** The settings, with the names of served artefacts beside their hashes. */
function settings(caption, value, kinds) {
  const rows = flat(value).map(([name, text]) => [
    name,
    kinds.has(text) ? element("span", {}, element("code", {}, text), ` = the ${kinds.get(text)} of this page`) : text,
  ]);
  if (!rows.length) return null;
  return element("details", {}, element("summary", {}, caption), table(caption, ["Name", "Value"], rows));
}

function artefact(own, kinds) {
  const known = [
    ["Place", own.name],
    ["Hash", element("code", {}, own.hash)],
    ["Made", own.created],
  ];
  if (own.parent) known.push(["Follows", element("code", {}, own.parent)]);
  if (own.fields.stage) known.push(["Stage", own.fields.stage]);
  const inputs = own.recipe.inputs ?? {};
  const others = Object.fromEntries(Object.entries(own.recipe).filter(([name]) => name !== "inputs"));
  return element(
    "article",
    {},
    element("h3", {}, own.kind),
    facts(known),
    settings("Inputs", inputs, kinds),
    settings("Settings that made it", others, kinds),
    settings("Counts", own.counts, kinds),
    settings("What it holds", own.fields, kinds),
    settings("Programs", own.versions, kinds),
  );
}

/** Read the manifests' facts. */
export function open() {
  return shownIn(byId("lineage-error"), async () => {
    const { artefacts } = await get("v1/lineage");
    const kinds = new Map(artefacts.map((own) => [own.hash, own.kind]));
    byId("lineage-list").replaceChildren(...artefacts.map((own) => artefact(own, kinds)));
    await registry.open();
  });
}
