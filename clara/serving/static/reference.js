// The list of all requests, from the service's own description.

import { get, shownIn } from "./api.js";
import { byId, element, table } from "./dom.js";

/** Read the description, and list it. */
export function open() {
  return shownIn(byId("api-error"), async () => {
    const { paths } = await get("openapi.json");
    const rows = Object.entries(paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, about]) => [
        element("code", {}, `${method.toUpperCase()} ${path}`),
        about.description ?? about.summary ?? "",
        Object.keys(about.responses).join(", "),
      ]),
    );
    byId("api-list").replaceChildren(table("Requests", ["Request", "What it does", "Statuses"], rows));
  });
}
