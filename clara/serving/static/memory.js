// The page that looks into MEMORY: facts, counts by reason, documents with their chunks, dead letters.

import { get, shownIn } from "./api.js";
import { byId, element, facts, isTable, pager, table } from "./dom.js";

const PAGE = 20;
const error = byId("memory-error");

function query(path, fields) {
  return `${path}?${new URLSearchParams(fields)}`;
}

function showFacts(memory) {
  const several = Object.keys(memory.fingerprints).length > 1;
  byId("memory-facts").replaceChildren(
    facts([
      ["Place", memory.name],
      ["Hash", element("code", {}, memory.hash)],
      ["Made", memory.created],
      ["Rows", memory.rows],
      ["Codec", memory.codec],
      ["Shards", `${memory.num_shards}, overlays ${memory.num_overlays}, rows removed ${memory.num_tombstones}`],
      [several ? "Versions" : "Fingerprint", element("code", {}, Object.keys(memory.fingerprints).join(" "))],
    ]),
  );
  const plain = Object.entries(memory.counts).filter(([, value]) => !isTable(value));
  const nested = Object.entries(memory.counts).filter(([, value]) => isTable(value) && Object.keys(value).length);
  const tables = nested.map(([name, value]) => table(name, ["Reason", "Count"], Object.entries(value)));
  if (plain.length) tables.unshift(table("Counts of the job that made it", ["What", "Count"], plain));
  byId("memory-counts").replaceChildren(...tables);
}

/** Fill a place with a page of a list, and the buttons that lead to the others. */
function paged(place, pageOf, tableOf) {
  const turn = (offset) =>
    shownIn(error, async () => {
      const { total, rows } = await pageOf(offset);
      byId(place).replaceChildren(
        rows.length ? tableOf(rows) : element("p", { class: "note" }, "None."),
        pager(offset, PAGE, total, turn),
      );
    });
  return turn(0);
}

const documents = (search) =>
  paged(
    "documents",
    async (offset) => {
      const found = await get(query("v1/memory/documents", { search, offset, limit: PAGE }));
      return { total: found.total, rows: found.documents };
    },
    (rows) =>
      table(
        "Documents",
        ["Document", "Title", "Chunks"],
        rows.map((row) => [
          element("button", { type: "button", class: "link", onclick: () => chunks(row.document_id) }, row.document_id),
          row.title,
          row.num_chunks,
        ]),
      ),
  );

async function chunks(document) {
  await paged(
    "chunks",
    async (offset) => {
      const found = await get(query("v1/memory/chunks", { document, offset, limit: PAGE }));
      return { total: found.total, rows: found.chunks };
    },
    (rows) =>
      table(
        `Chunks of ${document}`,
        ["Row", "Characters", "Tokens", "Text", "Source"],
        rows.map((row) => [
          element("code", {}, row.row_id),
          `${row.start}–${row.end}`,
          `${row.num_tokens}${row.truncated ? ", cut" : ""}`,
          element("div", {}, row.title ? element("strong", {}, row.title) : null, element("p", { class: "text" }, row.text)),
          row.source,
        ]),
      ),
  );
  byId("chunks").focus();
}

const deadLetters = () =>
  paged(
    "dead-letters",
    async (offset) => {
      const found = await get(query("v1/memory/dead-letters", { offset, limit: PAGE }));
      return { total: found.total, rows: found.dead_letters };
    },
    (rows) =>
      table(
        "Dead letters",
        ["Place", "Reason", "Detail", "Record"],
        rows.map((row) => [`${row.source}:${row.line}`, row.reason, row.detail, row.snippet]),
      ),
  );

byId("documents-form").addEventListener("submit", (event) => {
  event.preventDefault();
  documents(new FormData(event.target).get("search"));
});

/** Read everything; what was opened before is read again. */
export function open() {
  byId("chunks").replaceChildren();
  return shownIn(error, async () => {
    showFacts(await get("v1/memory"));
    await documents("");
    await deadLetters();
  });
}
