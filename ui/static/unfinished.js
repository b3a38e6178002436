// What was typed in a field that the server does not store, such as a prompt, is put back after a reload of its page.
// Gradio reloads a page by itself when the server was away, and draws most fields only when their tab is opened.
const STORE = "limner-unfinished-fields";
const isReload = performance.getEntriesByType("navigation").some((entry) => "type" in entry && entry.type === "reload");
const project = () => new URL(location.href).searchParams.get("project") ?? "";
const before = JSON.parse(sessionStorage.getItem(STORE) ?? "{}");
const missing = /** @type {Map<string, string>} */ (new Map(isReload && before.project === project() ? before.fields : []));
const edited = new Set(missing.keys());
sessionStorage.removeItem(STORE);

const fieldOf = (/** @type {string} */ id) => /** @type {HTMLInputElement | null} */ (
  document.getElementById(id)?.querySelector("textarea, input") ?? null
);

function restore() {
  for (const [id, text] of missing) {
    const field = fieldOf(id);
    if (!field) continue;
    missing.delete(id);
    if (field.value === text) continue;
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }
  if (!missing.size) drawing.disconnect();
}

const drawing = new MutationObserver(restore);
document.addEventListener("input", ({ target }) => {
  const block = target.closest?.(".block[id]"), id = block?.id ?? "";
  const type = window.gradio_config?.components.find(({ props }) => props.elem_id === id)?.type ?? "";
  if (!["textbox", "number"].includes(type) || window.limnerFields.isStored(id)) return;
  missing.delete(id);
  edited.add(id);
});
window.addEventListener("pagehide", () => {
  const fields = [...edited].map((id) => [id, missing.get(id) ?? fieldOf(id)?.value]).filter(([, text]) => text !== undefined);
  sessionStorage.setItem(STORE, JSON.stringify({ project: project(), fields }));
});
if (missing.size) drawing.observe(document.body, { childList: true, subtree: true });
restore();
