// Elements made of text: nothing that a service sends is ever read as HTML.

/** An element with attributes and children; a child that is no node becomes text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** A table: heads, then rows of cells; the first cell of a row is its head. */
export function table(caption, heads, rows) {
  return element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element(
      "tbody",
      {},
      ...rows.map(([first, ...rest]) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, first),
          ...rest.map((cell) => element("td", typeof cell === "number" ? { class: "figure" } : {}, show(cell))),
        ),
      ),
    ),
  );
}

/** Names and values, one below the other. */
export function facts(pairs) {
  return element(
    "dl",
    { class: "facts" },
    ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, show(value))]),
  );
}

/** Whether a value has names and values itself. */
export const isTable = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** Where in a list a page is, with buttons to the page before and the page after; `turn` takes an offset. */
export function pager(offset, size, total, turn) {
  if (total <= size) return "";
  const button = (text, to) => element("button", { type: "button", onclick: () => turn(to) }, text);
  return element(
    "p",
    { class: "pager" },
    offset > 0 ? button("Earlier", Math.max(0, offset - size)) : null,
    ` ${show(offset + 1)}–${show(Math.min(total, offset + size))} of ${show(total)} `,
    offset + size < total ? button("Later", offset + size) : null,
  );
}

/** A number with its thousands apart, or anything else as it is. */
export function show(value) {
  if (typeof value === "number") return value.toLocaleString("en", { maximumFractionDigits: 4 });
  return value instanceof Node ? value : String(value);
}
