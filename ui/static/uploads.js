// Adds images: those that are chosen, those of a folder, and those that are dropped anywhere while this tab is shown. They
// go to the project that the page shows, one part after the other, and are taken in there whatever the page does.
const AT_ONCE = 500; // files in one request
const AGAIN = 2000, TRIES = 3; // milliseconds until it is sent again, and how often to a server that is there
let running = /** @type {XMLHttpRequest | null} */ (null);
let adding = Promise.resolve(), waiting = 0, round = 0; // a round ends when all is added or canceled
let target = "", reports = "", bad = false;
const own = () => /** @type {HTMLElement | null} */ (document.querySelector("#captions .captions"))?.dataset.project ?? "";
const part = /** @type {Find} */ (element.querySelector.bind(element));

function tell(/** @type {number} */ share) {
  part("progress").value = share;
  part(".share").textContent = share < 1 ? `${Math.floor(100 * share)} %` : "[[Taking in the images…]]";
}

// Fills in the trigger word that the captions share, as if it was typed, unless there is one or the field is being edited.
function propose(/** @type {string | undefined} */ word) {
  const field = /** @type {HTMLInputElement | null} */ (document.querySelector("#trigger :is(input, textarea)"));
  if (!word || !field || field.value || field === document.activeElement) return;
  field.value = word;
  for (const event of ["input", "blur"]) field.dispatchEvent(new Event(event, { bubbles: event === "input" }));
}

// Resolves to what the server says, to nothing if the upload was canceled, and to "cut off" if the connection was.
function send(/** @type {string} */ project, /** @type {File[]} */ files, /** @type {Progress} */ progress) {
  const request = new XMLHttpRequest(), body = new FormData();
  for (const file of files) body.append("files", file, file.webkitRelativePath || file.name);
  running = request;
  return /** @type {Promise<Added | "cut off" | null>} */ (new Promise((resolve) => {
    request.upload.onprogress = (event) => progress(event.loaded / event.total);
    request.onload = () => {
      try {
        resolve(JSON.parse(request.responseText));
      } catch {
        resolve({ project, report: request.responseText || "[[the server is not responding.]]", bad: true });
      }
    };
    request.onerror = () => resolve("cut off");
    request.onabort = () => resolve(null);
    request.open("POST", `/images?project=${encodeURIComponent(project)}`);
    request.send(body);
  }));
}

// Sends files until they have arrived. While the server is away, as it is while it starts again, this goes on.
async function deliver(/** @type {string} */ project, /** @type {File[]} */ files, /** @type {Progress} */ progress, /** @type {number} */ of) {
  for (let failures = 0; failures < TRIES;) {
    const answer = await send(project, files, progress);
    if (answer !== "cut off") return answer;
    if (await fetch("/favicon.ico", { cache: "no-store" }).then(() => true, () => false)) failures += 1;
    else part(".share").textContent = "[[The server is not responding. The upload goes on when it does.]]";
    await new Promise((resume) => setTimeout(resume, AGAIN));
    if (of !== round) return null;
  }
  return { project: "", report: "[[The images could not be sent. Choose them again.]]", bad: true };
}

async function add(/** @type {(File | null)[]} */ found, /** @type {number} */ of) {
  const files = found.filter((file) => file !== null);
  part(".running-upload").hidden = false;
  for (let first = 0; first < files.length && of === round; first += AT_ONCE) {
    const some = files.slice(first, first + AT_ONCE);
    const progress = (/** @type {number} */ share) => tell((first + share * some.length) / files.length);
    const answer = await deliver(target || own(), some, progress, of);
    if (!answer) break;
    target = answer.project || target;
    reports += (reports && " ") + answer.report;
    bad ||= answer.bad;
    if (!answer.project) break;
    if (target === own()) propose(answer.trigger);
  }
  let unread = "";
  if (!files.length) unread = "[[No files could be read in this folder.]]";
  else if (files.length < found.length) unread = "[[Some files of the folder could not be read.]]";
  if (unread) [reports, bad] = [`${reports} ${unread}`.trim(), true];
  running = null;
  waiting -= 1;
  if (waiting) return;
  part(".running-upload").hidden = true;
  const added = { report: reports, bad };
  [reports, bad] = ["", false];
  if (target && target !== own()) window.limner.open(target, added.report);
  else if (added.report) trigger("end", added);
}

function take(/** @type {(File | null)[] | Promise<(File | null)[]>} */ found) {
  waiting += 1;
  const of = round;
  adding = adding.then(async () => add(await found, of));
}

// The files in a folder that was dropped, with their paths in it as when a folder is chosen; null for what cannot be read.
async function filesIn(/** @type {any} */ entry) { // of the file system
  if (entry.isFile) {
    const file = /** @type {File | null} */ (await new Promise((resolve) => { entry.file(resolve, () => resolve(null)); }));
    if (file) Object.defineProperty(file, "webkitRelativePath", { value: entry.fullPath.slice(1) });
    return [file];
  }
  const reader = entry.createReader(), files = /** @type {(File | null)[]} */ ([]);
  for (let some = [null]; some.length;) { // it lists a hundred at a time
    some = await new Promise((resolve) => { reader.readEntries(resolve, () => { files.push(null); resolve([]); }); });
    for (const each of some) files.push(...await filesIn(each));
  }
  return files;
}

element.addEventListener("change", ({ target }) => {
  const chosen = [...(target.matches("input") && target.files || [])];
  if (chosen.length) take(chosen);
  if (target.matches("input")) target.value = ""; // the same file can be chosen again
});
part(".cancel-upload").addEventListener("click", () => {
  round += 1;
  running?.abort();
});
for (const kind of /** @type {const} */ (["dragover", "drop"])) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files") || !element.offsetParent) return;
    event.preventDefault();
    if (kind === "dragover") return;
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    take(Promise.all(items.map((item) => {
      const entry = item.webkitGetAsEntry();
      return entry?.isDirectory ? filesIn(entry) : [item.getAsFile()];
    })).then((all) => all.flat()));
  });
}
window.addEventListener("beforeunload", (event) => {
  if (waiting) event.preventDefault();
});
