// Which part of the page is seen: the one that the address names after its #.

import "./ask.js";
import { get } from "./api.js";
import { byId } from "./dom.js";
import * as evaluation from "./evaluation.js";
import * as compare from "./compare.js";
import * as lineage from "./lineage.js";
import * as memory from "./memory.js";
import * as reference from "./reference.js";

const opened = {
  ask: () => byId("question").focus(),
  compare: compare.open,
  memory: memory.open,
  lineage: lineage.open,
  evaluation: evaluation.open,
  api: reference.open,
};

function show(moved) {
  const wanted = location.hash.slice(1).split("/")[0];
  const name = wanted in opened ? wanted : "ask";
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = byId(`${name}-title`);
  document.title = `${title.textContent} · CLaRa`;
  if (moved) title.focus();
  opened[name]();
}

async function showSystem() {
  try {
    const { rows } = await get("health/ready");
    byId("system").textContent = `ready · ${rows.toLocaleString("en")} rows in MEMORY`;
  } catch {
    byId("system").textContent = "The service does not answer now.";
  }
}

addEventListener("hashchange", () => show(true));
show(false);
showSystem();
