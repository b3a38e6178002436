() => {
  // Gradio would set the browser's language as that of the page, whatever language the page is in.
  document.documentElement.lang = "{language}";

  // Gradio counts the seconds of its own start in each frame, and goes on for as long as the page is open, although
  // what shows them is gone. Each count reads the clock and then asks for its next frame, which is canceled here.
  performance.now = () => {
    if (new Error().stack?.includes("/statustracker-")) {
      const next = requestAnimationFrame(() => {}) + 1;
      queueMicrotask(() => cancelAnimationFrame(next));
    }
    return Performance.prototype.now.call(performance);
  };
  setTimeout(() => { Reflect.deleteProperty(performance, "now"); }, 1000);

  // An answer changes no field that was edited, or filled by the answer to a later request, after its own request had left.
  const FIELDS = ["textbox", "number", "dropdown", "radio", "checkbox", "checkboxgroup", "slider", "json"];
  const edits = /** @type {Map<string, number>} */ (new Map()); // by the field, the number of its latest edit
  let latest = 0;
  const note = (/** @type {Event} */ { target }) => {
    const field = /** @type {Element} */ (target).closest?.(".block[id]");
    if (field) edits.set(field.id, ++latest);
    return field?.id ?? "";
  };
  // Gradio fills a field once more in the moment after it has appeared: what was typed in this moment is typed again, once.
  // A number reaches Gradio only when typing pauses or ends: 1e-4 passes through 1e, over which the number before was written.
  const retyped = /** @type {WeakSet<Event>} */ (new WeakSet());
  let pass = () => {};
  document.addEventListener("input", (event) => {
    if (retyped.has(event)) return;
    const field = /** @type {HTMLInputElement} */ (event.target), { value } = field, id = note(event);
    const type = window.gradio_config?.components.find(({ props }) => props.elem_id === id)?.type, number = edits.get(id) ?? 0;
    if (!["textbox", "number"].includes(type ?? "")) return;
    let isHeld = type === "number";
    if (isHeld) event.stopImmediatePropagation();
    pass = () => {
      const isFilled = value !== "" && field.value !== value;
      if (edits.get(id) !== number || (said.get(`${id} value`)?.sent ?? 0) > number || !(isHeld || isFilled)) return;
      const again = new Event("input", { bubbles: true });
      if (isFilled) field.value = value;
      isHeld = false;
      retyped.add(again);
      field.dispatchEvent(again);
    };
    setTimeout(pass, 60);
  }, true);
  document.addEventListener("change", () => pass(), true);
  addEventListener("pagehide", () => pass(), true);
  // Browsers drop a comma that is typed or pasted in a number, so that 1,5 became 15. As it may also have been meant to part
  // thousands, the field says how it is read.
  document.addEventListener("beforeinput", (event) => {
    const field = /** @type {HTMLInputElement} */ (event.target);
    if (!event.data?.includes(",") || field.type !== "number") return;
    event.preventDefault();
    document.execCommand("insertText", false, event.data.replaceAll(",", "."));
    field.setCustomValidity("[[A comma is read as a decimal point. Type a thousand as 1000.]]");
    field.reportValidity();
    field.addEventListener("blur", () => field.setCustomValidity(""), { once: true });
  });
  document.addEventListener("focusout", (event) => { // a dropdown shows its choice only by this
    if (/** @type {Element} */ (event.target).matches("[role=combobox]")) note(event);
  }, true);
  const fieldOf = (/** @type {number} */ output) => {
    const { type = "", props } = window.gradio_config.components.find(({ id }) => id === output) ?? {};
    return FIELDS.includes(type) ? props?.elem_id : undefined;
  };
  // Nor does it undo what a later one said of a field besides, such as its choices: later by what the server read, where both
  // say so by the revision of a view, else by what was asked.
  const said = /** @type {Map<string, { sent: number; revision: number }>} */ (new Map()); // by field and property
  const isNewest = (/** @type {string} */ field, /** @type {string} */ name, /** @type {{ sent: number; revision: number }} */ answer) => {
    const property = `${field} ${name}`, before = said.get(property);
    const by = before?.revision && answer.revision ? "revision" : "sent";
    if (before && before[by] > answer[by]) return false;
    if (name === "value" && (edits.get(field) ?? 0) > answer.sent) return false;
    said.set(property, answer);
    return true;
  };
  const request = window.fetch, unanswered = /** @type {Map<Promise<Response>, (string | undefined)[]>} */ (new Map());
  const brought = /** @type {{ field: string; sent: number; value: unknown }[]} */ ([]); // by answers, in their order
  window.fetch = (address, options) => {
    if (!String(address).includes("/gradio_api/run/")) return request(address, options);
    const { fn_index: number } = JSON.parse(String(options?.body));
    const fields = window.gradio_config.dependencies.find(({ id }) => id === number)?.outputs.map(fieldOf) ?? [];
    const answer = send(fields, address, options).finally(() => unanswered.delete(answer));
    unanswered.set(answer, fields);
    return answer;
  };
  /** @type {(fields: (string | undefined)[], ...request: Parameters<typeof fetch>) => Promise<Response>} */
  const send = async (fields, ...options) => {
    const sent = ++latest, answer = await request(...options);
    if (!answer.ok || !fields.some(Boolean)) return answer;
    const answered = await answer.json();
    const view = answered.data?.find((/** @type {Partial<RunView> | null} */ value) => value?.revision), revision = view?.revision ?? 0;
    if (view?.asked === "" && (edits.get("run") ?? 0) > sent) view.asked = view.run; // it does not choose a run, as another one was chosen since
    fields.forEach((field, place) => {
      const filled = answered.data?.[place], update = filled?.__type__ === "update" ? filled : { value: filled, __type__: "update" };
      if (!field || filled === undefined) return;
      if (update.value !== undefined) brought.push({ field, sent, value: update.value });
      const late = Object.keys(update).filter((name) => name !== "__type__" && !isNewest(field, name, { sent, revision }));
      for (const name of late) delete update[name];
      if (late.length) answered.data[place] = update;
    });
    return new Response(JSON.stringify(answered), { status: answer.status, headers: answer.headers });
  };

  // The address says which project a page shows, for as long as it lives, and which tab and run are chosen in it.
  const tabOf = (/** @type {URL} */ url) => url.searchParams.get("tab") ?? "images";
  const buttonOf = (/** @type {string} */ tab) => /** @type {HTMLElement | null} */ (document.getElementById(`tab-${tab}-button`));
  let address = new URL(location.href);
  const go = (/** @type {Record<string, string>} */ change, replaces = false) => {
    const url = new URL(location.href);
    for (const [name, value] of Object.entries(change)) url.searchParams.set(name, value);
    if (url.href === location.href) return;
    history[replaces ? "replaceState" : "pushState"](null, "", url);
    address = url;
  };
  window.limner = {
    open(project, report = "") {
      if (report) sessionStorage.setItem("limner-report", report);
      location.assign(`/?project=${encodeURIComponent(project)}`);
    },
    show: (change) => go(change),
    answered: () => Promise.allSettled(unanswered.keys()),
    async filled(fields, values) {
      const edited = new Map(edits), known = brought.length;
      await window.limnerForm?.store(); // there is none before the Train tab has been opened
      await new Promise((resolve) => { setTimeout(resolve, 0); }); // requests that waited for this leave now
      const asked = latest, due = [...unanswered].filter(([, filled]) => filled.some((field) => field && fields.includes(field)));
      await Promise.allSettled(due.map(([answer]) => answer));
      const arrived = brought.map((answer, place) => ({ ...answer, isNew: place >= known })).sort((one, other) => one.sent - other.sent);
      return values.map((value, place) => {
        const isOf = (/** @type {typeof arrived[0]} */ { field, sent }) => field === fields[place] && sent <= asked && sent > (edited.get(field) ?? 0);
        const last = arrived.findLast(isOf);
        return last?.isNew ? last.value : value;
      });
    },
    ask(question, text) {
      const field = box.querySelector("input"), isText = text !== undefined;
      const /** @type {HTMLElement} */ words = box.querySelector("span");
      words.textContent = question;
      field.hidden = !isText;
      field.value = text ?? "";
      box.returnValue = "";
      box.showModal();
      /** @type {HTMLElement} */ (isText ? field : box.querySelector(".yes")).focus();
      if (isText) field.select();
      return new Promise((resolve) => {
        box.addEventListener("close", () => resolve(box.returnValue ? field.value || "yes" : ""), { once: true });
      });
    },
    arrive(project) {
      sessionStorage.removeItem("limner-report");
      go({ project }, true);
    },
  };
  const box = document.createElement("dialog");
  box.className = "ask";
  box.innerHTML = `<form method="dialog"><label><span></span> <input></label>
    <div class="acts"><button class="act" value="">[[Cancel]]</button> <button class="act yes" value="yes">[[OK]]</button></div></form>`;
  document.body.append(box);
  document.addEventListener("click", (event) => {
    const tab = /** @type {Element} */ (event.target).closest?.("#tabs [role=tab]")?.id.match(/^tab-(.+)-button$/)?.[1];
    if (tab && tab !== tabOf(address)) go({ tab });
  });
  window.addEventListener("popstate", () => {
    const url = new URL(location.href), before = address;
    address = url;
    const isOther = ["project", "run"].some((name) => url.searchParams.get(name) !== before.searchParams.get(name));
    if (isOther) location.reload();
    else if (tabOf(url) !== tabOf(before)) buttonOf(tabOf(url))?.click();
  });
}
