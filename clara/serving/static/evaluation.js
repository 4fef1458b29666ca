// The page that shows a whole evaluation report: figures of each split, paired differences, counts.

import { get, shownIn } from "./api.js";
import { byId, element, isTable, table } from "./dom.js";

const FIRST = ["index.recall@5", "index.mrr", "index.log_likelihood", "index.exact_match", "index.f1", "answer.seconds"];
const digits = (value) => value.toLocaleString("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const interval = (figure) => `[${digits(figure.low)}, ${digits(figure.high)}]`;

/** A table that scrolls by itself where it is wider than the page. */
function wide(caption, heads, rows) {
  return element("div", { class: "wide-table", tabindex: "0", role: "region", "aria-label": caption }, table(caption, heads, rows));
}

function folded(title, ...children) {
  return element("details", {}, element("summary", {}, title), ...children);
}

/** Measures as rows, systems as columns; only measures that some system has. */
function figures(caption, bySystem, only) {
  const systems = Object.keys(bySystem);
  const every = [...new Set(systems.flatMap((system) => Object.keys(bySystem[system])))];
  const chosen = only ? only.filter((name) => every.includes(name)) : every;
  const cell = (figure) => (figure ? `${digits(figure.value)} ${interval(figure)}` : "");
  const numbers = (name) => Math.max(...systems.map((system) => bySystem[system][name]?.num_questions ?? 0));
  const rows = chosen.map((name) => [name, numbers(name), ...systems.map((system) => cell(bySystem[system][name]))]);
  return rows.length ? wide(caption, ["Measure", "Questions", ...systems], rows) : null;
}

function differences(caption, byPair) {
  const row = (pair, name, own) => [pair, name, digits(own.difference), interval(own), own.p_value, own.num_questions];
  const rows = Object.entries(byPair).flatMap(([pair, measures]) =>
    Object.entries(measures).map(([name, own]) => row(pair, name, own)),
  );
  const heads = ["Pair", "Measure", "Difference", "95 % interval", "p", "Questions"];
  return rows.length ? folded("Paired differences", wide(caption, heads, rows)) : null;
}

/** By who finds a right document among the first five: a row for each pair and kind of question. */
function overlaps(caption, byPair) {
  const row = (pair, own) => [pair, own.kind || "not known", own.both, own.first.length, own.second.length, own.neither];
  const rows = Object.entries(byPair).flatMap(([pair, kinds]) => kinds.map((own) => row(pair, own)));
  const heads = ["A - B", "Kind", "Both", "A alone", "B alone", "Neither"];
  return rows.length ? folded("Questions with a right document among the first five", wide(caption, heads, rows)) : null;
}

function moved(lists) {
  const heads = ["Question", "Document", "Right", "Rank by words", "Before", "After", "Utility, generator", "Utility, text"];
  const row = (own) => [
    own.question,
    own.title,
    own.positive ? "yes" : "no",
    ...[own.lexical_place, own.before, own.after].map((place) => place + 1),
    digits(own.utility),
    digits(own.text_utility),
  ];
  return Object.entries(lists).map(([where, own]) => folded(where, wide(where, heads, own.map(row))));
}

function split(name, report) {
  const title = name || "All questions";
  const of = Object.fromEntries(
    Object.entries(report.systems).flatMap(([system, splits]) => (name in splits ? [[system, splits[name]]] : [])),
  );
  return element(
    "article",
    {},
    element("h3", {}, `Split: ${title}`),
    figures(`Most asked for, ${title}`, of, FIRST),
    folded("All measures", figures(`All measures, ${title}`, of)),
    differences(`Paired differences, ${title}`, report.differences?.[name] ?? {}),
    overlaps(`Questions with a right document among the first five, ${title}`, report.overlaps?.[name] ?? {}),
    ...Object.entries(report.kinds?.[name] ?? {}).map(([kind, own]) =>
      folded(`Questions of kind ${kind || "not known"}`, figures(`Kind ${kind || "not known"}, ${title}`, own)),
    ),
    ...moved(report.moved?.[name] ?? {}),
  );
}

function shown({ name, report }) {
  if (!name) {
    const how = ["Start the service with ", element("code", {}, "--evaluation DIR"), ", or with a registered model (--model)."];
    return [element("p", { class: "note" }, "No evaluation report is known. ", ...how)];
  }
  const splits = [...new Set(Object.values(report.systems).flatMap(Object.keys))];
  const counts = Object.entries(report.counts ?? {}).filter(([, value]) => !isTable(value));
  return [
    element("p", {}, "Report of ", element("code", {}, name)),
    ...splits.map((own) => split(own, report)),
    counts.length ? folded("Counts", table("Counts", ["What", "Number"], counts)) : null,
  ];
}

/** The versions whose reports can be read, as links. */
function choices(versions, version) {
  const link = (own) => {
    const attributes = { href: `#evaluation/${own.version}`, "aria-current": own.version === version ? "true" : null };
    return element("li", {}, element("a", attributes, `Version ${own.version} ${own.aliases.join(", ")}`.trim()));
  };
  return versions.length ? [element("ul", { "aria-label": "Registered versions" }, ...versions.map(link))] : [];
}

/** Read the report of the version that the address names, else of the one with an alias, else the given one. */
export function open() {
  byId("evaluation-report").replaceChildren();
  return shownIn(byId("evaluation-error"), async () => {
    const { versions } = await get("v1/registry");
    const given = await get("v1/evaluation");
    const held = versions.find((own) => own.aliases.length) ?? versions.at(-1);
    const version = location.hash.split("/")[1] ?? (given.name ? "" : held?.version ?? "");
    byId("evaluation-choices").replaceChildren(...choices(versions, version));
    const found = version ? await get(`v1/evaluation?version=${encodeURIComponent(version)}`) : given;
    byId("evaluation-report").replaceChildren(...shown(found).filter((part) => part !== null));
  });
}
