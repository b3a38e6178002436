// Adds images: those that are chosen, those of a folder, and those that are dropped anywhere while this tab is shown. They
// go to the project that the page shows, in parts that the server takes, and are taken in there whatever the page does.
const AT_ONCE = 500; // files in one request
let running = /** @type {XMLHttpRequest | null} */ (null);
const grid = () => /** @type {HTMLElement | null} */ (document.querySelector("#captions .captions"));
const shown = () => /** @type {Find} */ (element.querySelector.bind(element));

function tell(/** @type {number} */ share) {
  shown()("progress").value = share;
  shown()(".share").textContent = share < 1 ? `${Math.floor(100 * share)} %` : "[[Taking in the images…]]";
}

// Resolves to what the server says, or to nothing if the upload was canceled.
function send(/** @type {string} */ project, /** @type {File[]} */ files, /** @type {(share: number) => void} */ progress) {
  const request = new XMLHttpRequest(), body = new FormData();
  for (const file of files) body.append("files", file, file.webkitRelativePath || file.name);
  running = request;
  return /** @type {Promise<Added | null>} */ (new Promise((resolve) => {
    request.upload.onprogress = (event) => progress(event.loaded / event.total);
    request.onload = () => {
      try {
        resolve(JSON.parse(request.responseText));
      } catch {
        resolve({ project, report: request.responseText || "[[the server is not responding.]]", bad: true });
      }
    };
    request.onerror = () => resolve({ project, report: "[[the server is not responding.]]", bad: true });
    request.onabort = () => resolve(null);
    request.open("POST", `/images?project=${encodeURIComponent(project)}`);
    request.send(body);
  }));
}

async function add(/** @type {File[]} */ files) {
  if (running || !files.length) return;
  const own = grid()?.dataset.project ?? "";
  let project = own, reports = "", bad = false;
  shown()(".running-upload").hidden = false;
  for (let first = 0; first < files.length; first += AT_ONCE) {
    const part = files.slice(first, first + AT_ONCE);
    const answer = await send(project, part, (share) => tell((first + share * part.length) / files.length));
    if (!answer) break;
    project = answer.project;
    reports += (reports && " ") + answer.report;
    bad ||= answer.bad;
    if (answer.bad && !answer.project) break;
  }
  running = null;
  shown()(".running-upload").hidden = true;
  if (project && project !== own) window.limner.open(project, reports);
  else if (reports) trigger("end", { report: reports, bad });
}

element.addEventListener("change", ({ target }) => {
  add([...(target.matches("input") && target.files || [])]);
  if (target.matches("input")) target.value = ""; // the same file can be chosen again
});
shown()(".cancel-upload").addEventListener("click", () => running?.abort());
for (const kind of /** @type {const} */ (["dragover", "drop"])) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files") || !element.offsetParent) return;
    event.preventDefault();
    if (kind === "drop") add([...event.dataTransfer.files]);
  });
}
window.addEventListener("beforeunload", (event) => {
  if (running) event.preventDefault();
});
