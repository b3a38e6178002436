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
  const changes = /** @type {Map<string, number>} */ (new Map()); // by the field, the number of its latest change
  let latest = 0;
  const note = (/** @type {Event} */ { target }) => {
    const field = /** @type {Element} */ (target).closest?.(".block[id]");
    if (field) changes.set(field.id, ++latest);
    return field?.id ?? "";
  };
  // Gradio fills a field once more in the moment after it has appeared: what was typed in this moment is typed again, once.
  // A number reaches Gradio only when typing pauses or ends: 1e-4 passes through 1e, over which the number before was written.
  const retyped = /** @type {WeakSet<Event>} */ (new WeakSet());
  let pass = () => {};
  document.addEventListener("input", (event) => {
    if (retyped.has(event)) return;
    const field = /** @type {HTMLInputElement} */ (event.target), { value } = field, id = note(event);
    const type = window.gradio_config?.components.find(({ props }) => props.elem_id === id)?.type, number = changes.get(id);
    if (!["textbox", "number"].includes(type ?? "")) return;
    let isHeld = type === "number";
    if (isHeld) event.stopImmediatePropagation();
    pass = () => {
      const isFilled = value !== "" && field.value !== value;
      if (changes.get(id) !== number || !(isHeld || isFilled)) return;
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
  const request = window.fetch, unanswered = /** @type {Set<Promise<Response>>} */ (new Set());
  window.fetch = (address, options) => {
    if (!String(address).includes("/gradio_api/run/")) return request(address, options);
    const answer = send(address, options).finally(() => unanswered.delete(answer));
    unanswered.add(answer);
    return answer;
  };
  const send = async (/** @type {string | URL | Request} */ address, /** @type {RequestInit | undefined} */ options) => {
    const sent = ++latest, answer = await request(address, options);
    const { fn_index: number } = JSON.parse(String(options?.body));
    const fields = window.gradio_config.dependencies.find(({ id }) => id === number)?.outputs.map(fieldOf) ?? [];
    if (!answer.ok || !fields.some(Boolean)) return answer;
    const answered = await answer.json();
    fields.forEach((field, place) => {
      const filled = answered.data?.[place], { value, ...others } = filled?.__type__ === "update" ? filled : { value: filled };
      if (!field || value === undefined) return;
      if ((changes.get(field) ?? 0) < sent) changes.set(field, sent);
      else answered.data[place] = { ...others, __type__: "update" };
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
    answered: () => Promise.allSettled(unanswered),
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
